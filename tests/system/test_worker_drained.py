"""A worker is told to leave (SIGTERM): its jobs go on elsewhere at once, and that costs them nothing."""

import asyncio
import signal
from pathlib import Path

from tests.processes import Processes, until
from tests.system.stack import runs, start
from tests.system.witness import JOB_FAILURES, at, logged, witness

LEASE_S = 60  # longer than any test waits: a job that had to wait for a lease to run out would be noticed


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
        ends = await client.ends(*jobs)
        assert await leaver.ended() == 0
    for job in jobs:
        assert [e["type"] for e in client.of(job)] == ["started", "chunk", "log", "started", "chunk", "succeeded"]
        [handed_over], [first, again] = client.of(job, "log"), client.of(job, "started")
        assert (first["attempt"], again["attempt"], ends[job]["attempt"]) == (1, 1, 1)
        assert again["data"] == {"attempt": 1, "worker": heir.url}
        assert at(again) - at(handed_over) < LEASE_S, "no lease had to run out before it"
        assert ends[job]["data"]["result"] == "second"
        assert (await logged(stack.store, job))[1:] == client.of(job)


async def test_a_leaving_worker_takes_nothing_with_it_however_busy_it_is(processes: Processes) -> None:
    """Workers leave while they claim without a pause. Each job has one attempt only, so none may be lost on the way."""
    stack = await start(processes, workers=2, lease_s=LEASE_S)
    jobs: list[str] = []
    leaving = True
    async with witness(stack.api) as client:

        async def submit() -> None:
            while leaving:
                jobs.append(job := await client.submit("process", {"text": "", "delay_s": 0.03}, max_attempts=1))
                await client.until([job], *JOB_FAILURES)

        submitting = [asyncio.create_task(submit()) for _ in range(60)]
        for _ in range(10):
            leaver = stack.workers.pop(0)
            leaver.signal(signal.SIGTERM)
            assert await leaver.ended() == 0
            await stack.worker()
        leaving = False
        await asyncio.gather(*submitting)
        ends = await client.ends(*jobs)
    assert {(end["type"], end["attempt"]) for end in ends.values()} == {("succeeded", 1)}


async def test_what_a_worker_was_just_claiming_when_it_was_told_to_leave_is_handed_over_too(
    processes: Processes,
) -> None:
    """The store is held up in the middle of a worker's claims, so that the reply to one comes when it is leaving."""
    stack = await start(processes, lease_s=LEASE_S, MILLSTREAM_MAX_JOBS="1000")
    [leaver] = stack.workers
    async with witness(stack.api) as client:
        submit = (client.submit("process", {"text": "", "delay_s": 3}, max_attempts=1) for _ in range(500))
        submitting = asyncio.gather(*submit)
        await client.until_any("started")
        stack.store.signal(signal.SIGSTOP)
        leaver.signal(signal.SIGTERM)

        async def leaving() -> bool:
            return "draining" in leaver.log.read_text()

        await until(leaving, what="the worker to hear that it is to leave")
        stack.store.signal(signal.SIGCONT)
        await stack.worker()
        ends = await client.ends(*await submitting)
        assert await leaver.ended() == 0
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
        end = (await client.ends(job))[job]
        assert (end["attempt"], end["data"]["result"]) == (1, "second")
        await leaver.ended()


async def test_a_leaving_worker_may_be_given_time_to_finish(processes: Processes, tmp_path: Path) -> None:
    stack = await start(processes, workers=2, lease_s=LEASE_S, MILLSTREAM_FINISH_S="3600")
    directory = Path(runs(tmp_path))
    async with witness(stack.api) as client:
        jobs = [await client.submit("holds", {"directory": str(directory)}) for _ in range(40)]
        await client.until(jobs, "chunk")  # `started` alone may be of a claim whose reply is still on its way
        leaver, heir = stack.workers
        leaver.signal(signal.SIGTERM)

        async def leaving() -> bool:
            return "draining" in leaver.log.read_text()

        await until(leaving, what="the worker to hear that it is to leave")
        after = [await client.submit("process", {"text": ""}) for _ in range(40)]
        await client.ends(*after)
        (directory / "enough").touch()
        await client.ends(*jobs)
        assert await leaver.ended() == 0
    for job in jobs:
        assert [event["type"] for event in client.of(job)] == ["started", "chunk", "succeeded"]
    assert {client.of(job, "started")[0]["data"]["worker"] for job in jobs} == {leaver.url, heir.url}
    assert {client.of(job, "started")[0]["data"]["worker"] for job in after} == {heir.url}
