"""A worker is killed: what it ran, another runs again, after its leases have run out; nothing is told twice."""

import asyncio
import signal
import time
from pathlib import Path

from tests.processes import Processes
from tests.system.witness import ANALYSES, at, check_whole, logged, witness

LEASE_S = 2.0


async def test_every_job_of_a_killed_worker_ends_once_and_runs_again_within_its_lease(
    processes: Processes, tmp_path: Path
) -> None:
    store = await processes.store()
    api, victim = await asyncio.gather(
        processes.api(store), processes.worker(store, MILLSTREAM_ANALYSES=ANALYSES, MILLSTREAM_LEASE_S=str(LEASE_S))
    )
    (runs := tmp_path / "runs").mkdir()
    async with witness(api) as client:
        jobs = [await client.submit("stuck_once", {"directory": str(runs)}) for _ in range(50)]
        await client.until(jobs, "chunk")
        heir = await processes.worker(store, MILLSTREAM_ANALYSES=ANALYSES, MILLSTREAM_LEASE_S=str(LEASE_S))
        killed_at = time.time()
        await victim.kill()
        ends = await client.ends(*jobs)
    for job in jobs:
        types = [event["type"] for event in client.of(job)]
        assert types == ["started", "chunk", "retrying", "started", "chunk", "succeeded"]
        first, again = client.of(job, "started")
        assert (first["attempt"], first["data"]) == (1, {"attempt": 1, "worker": victim.url})
        assert (again["attempt"], again["data"]) == (2, {"attempt": 2, "worker": heir.url})
        assert at(again) - killed_at <= LEASE_S + 1
        assert client.of(job, "retrying")[0]["data"]["error"]["code"] == "worker_lost"
        assert ends[job]["data"]["result"] == "second"
        assert [event["seq"] for event in await logged(store, job)] == [1, 2, 3, 4, 5, 6, 7]
    print("rerun after", sorted(round(at(client.of(job, "started")[1]) - killed_at, 3) for job in jobs)[:: len(jobs) // 5])


async def test_a_job_whose_only_attempt_was_lost_fails_instead_of_hanging(
    processes: Processes, tmp_path: Path
) -> None:
    store = await processes.store()
    api, victim = await asyncio.gather(
        processes.api(store), processes.worker(store, MILLSTREAM_ANALYSES=ANALYSES, MILLSTREAM_LEASE_S="1")
    )
    await processes.worker(store, MILLSTREAM_ANALYSES=ANALYSES, MILLSTREAM_LEASE_S="1")
    (runs := tmp_path / "runs").mkdir()
    async with witness(api) as client:
        job = ""
        while not job or client.of(job, "started")[0]["data"]["worker"] != victim.url:
            job = await client.submit("stuck_once", {"directory": str(runs)}, max_attempts=1)
            await client.until([job], "chunk")
        await victim.kill()
        end = (await client.ends(job))[job]
    assert end["type"] == "failed"
    assert end["data"]["error"]["code"] == "attempts_exhausted"
    assert [event["type"] for event in client.of(job)] == ["started", "chunk", "failed"]


async def test_jobs_wait_for_a_worker_when_the_last_one_was_killed(processes: Processes, tmp_path: Path) -> None:
    store = await processes.store()
    api, victim = await asyncio.gather(
        processes.api(store), processes.worker(store, MILLSTREAM_ANALYSES=ANALYSES, MILLSTREAM_LEASE_S="1")
    )
    (runs := tmp_path / "runs").mkdir()
    async with witness(api) as client:
        running = await client.submit("stuck_once", {"directory": str(runs)})
        await client.until([running], "chunk")
        await victim.kill()
        queued = await client.submit("process", {"text": "nobody is here"})
        await processes.worker(store, MILLSTREAM_ANALYSES=ANALYSES, MILLSTREAM_LEASE_S="1")
        ends = await client.ends(running, queued)
    assert ends[queued]["data"]["result"] == "Processed data: nobody is here"
    assert ends[running]["attempt"] == 2
    check_whole(await logged(store, running))


async def test_a_worker_killed_again_and_again_uses_the_attempts_up(processes: Processes, tmp_path: Path) -> None:
    store = await processes.store()
    api = await processes.api(store)
    async with witness(api) as client:
        settings = {"MILLSTREAM_ANALYSES": ANALYSES, "MILLSTREAM_LEASE_S": "0.5"}
        victim = await processes.worker(store, **settings)
        job = await client.submit("process", {"text": "", "delay_s": 3600}, max_attempts=3)
        for attempt in (1, 2, 3):
            await client.until([job], "started", times=attempt)
            victim.signal(signal.SIGKILL)
            victim = await processes.worker(store, **settings)
        end = (await client.ends(job))[job]
    assert [event["attempt"] for event in client.of(job, "started")] == [1, 2, 3]
    assert end["data"]["error"]["code"] == "attempts_exhausted"
