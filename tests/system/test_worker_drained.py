"""A worker is told to leave (SIGTERM): its jobs go on elsewhere at once, and that costs them nothing."""

import asyncio
import signal
from pathlib import Path

from tests.processes import Processes
from tests.system.stack import runs, start
from tests.system.witness import at, logged, witness

LEASE_S = 10  # so that whoever had to wait for a lease would be noticed


async def test_the_jobs_of_a_leaving_worker_start_elsewhere_at_once_and_no_attempt_is_used(
    processes: Processes, tmp_path: Path
) -> None:
    stack = await start(processes, lease_s=LEASE_S)
    [leaver] = stack.workers
    directory = runs(tmp_path)
    async with witness(stack.api) as client:
        jobs = [await client.submit("stuck_once", {"directory": directory}, max_attempts=1) for _ in range(50)]
        await client.until(jobs, "chunk")
        heir = await stack.worker()
        leaver.signal(signal.SIGTERM)
        ends = await client.ends(*jobs, within_s=LEASE_S)
        assert await leaver.ended(5) == 0
    for job in jobs:
        assert [e["type"] for e in client.of(job)] == ["started", "chunk", "log", "started", "chunk", "succeeded"]
        [handed_over], [first, again] = client.of(job, "log"), client.of(job, "started")
        assert (first["attempt"], again["attempt"], ends[job]["attempt"]) == (1, 1, 1)
        assert again["data"] == {"attempt": 1, "worker": heir.url}
        assert at(again) - at(handed_over) <= 1
        assert ends[job]["data"]["result"] == "second"
        assert (await logged(stack.store, job))[1:] == client.of(job)


async def test_a_leaving_worker_takes_nothing_with_it_however_busy_it_is(processes: Processes) -> None:
    """Workers leave while jobs stream in, so some are told in the middle of a claim. Each job has one attempt only."""
    stack = await start(processes, workers=2, lease_s=LEASE_S)
    jobs: list[str] = []
    async with witness(stack.api) as client:

        async def submit() -> None:
            for _ in range(150):
                jobs.append(await client.submit("process", {"text": "", "delay_s": 0.1}, max_attempts=1))

        submitting = [asyncio.create_task(submit()) for _ in range(10)]
        for _ in range(8):
            leaver = stack.workers.pop(0)
            ready = asyncio.create_task(stack.worker())
            leaver.signal(signal.SIGTERM)
            assert await leaver.ended(5) == 0
            await ready
        await asyncio.gather(*submitting)
        ends = await client.ends(*jobs)
    assert len(set(jobs)) == 1500
    assert {(end["type"], end["attempt"]) for end in ends.values()} == {("succeeded", 1)}


async def test_an_analysis_that_does_not_let_go_keeps_neither_its_job_nor_its_worker(
    processes: Processes, tmp_path: Path
) -> None:
    stack = await start(processes, lease_s=LEASE_S, MILLSTREAM_DRAIN_S="0.5")
    [leaver] = stack.workers
    async with witness(stack.api) as client:
        job = await client.submit("stubborn_once", {"directory": runs(tmp_path)}, max_attempts=1)
        await client.until([job], "chunk")
        await stack.worker()
        leaver.signal(signal.SIGTERM)
        end = (await client.ends(job, within_s=LEASE_S))[job]
        assert (end["attempt"], end["data"]["result"]) == (1, "second")
        await leaver.ended(5)


async def test_a_leaving_worker_may_be_given_time_to_finish(processes: Processes) -> None:
    stack = await start(processes, workers=2, lease_s=LEASE_S, MILLSTREAM_FINISH_S="10")
    async with witness(stack.api) as client:
        jobs = [await client.submit("process", {"text": "", "delay_s": 1}) for _ in range(40)]
        await client.until(jobs, "started")
        leaver, heir = stack.workers
        leaver.signal(signal.SIGTERM)
        after = [await client.submit("process", {"text": ""}) for _ in range(40)]
        await client.ends(*jobs, *after)
        assert await leaver.ended(5) == 0
    assert all(len(client.of(job, "started")) == 1 for job in jobs)
    assert {client.of(job, "started")[0]["data"]["worker"] for job in after} == {heir.url}
