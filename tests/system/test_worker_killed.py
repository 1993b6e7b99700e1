"""A worker is killed: what it ran, another runs again, once its leases have run out; nothing is told twice."""

from pathlib import Path

from tests.processes import Processes
from tests.system.stack import runs, start
from tests.system.witness import at, check_whole, logged, witness


async def test_every_job_of_a_killed_worker_ends_once_and_runs_again_within_its_lease(
    processes: Processes, tmp_path: Path
) -> None:
    lease_s = 2.0
    stack = await start(processes, lease_s=lease_s)
    [victim] = stack.workers
    directory = runs(tmp_path)
    async with witness(stack.api) as client:
        jobs = [await client.submit("stuck_once", {"directory": directory}) for _ in range(50)]
        await client.until(jobs, "chunk")
        heir = await stack.worker()
        await victim.kill()
        killed_at, leases = await stack.lease_ends(jobs)
        ends = await client.ends(*jobs)
    for job in jobs:
        types = [event["type"] for event in client.of(job)]
        assert types == ["started", "chunk", "retrying", "started", "chunk", "succeeded"]
        first, again = client.of(job, "started")
        assert (first["attempt"], first["data"]) == (1, {"attempt": 1, "worker": victim.url})
        assert (again["attempt"], again["data"]) == (2, {"attempt": 2, "worker": heir.url})
        assert leases[job] - killed_at <= lease_s, "it holds its jobs for one lease at the most"
        assert leases[job] < at(again) < leases[job] + 10, (
            "and then another has them; 10 s are slack for a busy machine"
        )
        assert client.of(job, "retrying")[0]["data"]["error"]["code"] == "worker_lost"
        assert ends[job]["data"]["result"] == "second"
        assert [event["seq"] for event in await logged(stack.store, job)] == [1, 2, 3, 4, 5, 6, 7]
    delays = sorted(at(client.of(job, "started")[1]) - killed_at for job in jobs)
    print(f"running again after {delays[0]:.3f} to {delays[-1]:.3f} s, lease {lease_s:g} s")


async def test_a_job_whose_only_attempt_was_lost_fails_instead_of_hanging(processes: Processes, tmp_path: Path) -> None:
    stack = await start(processes, workers=1, lease_s=1)
    directory = runs(tmp_path)
    async with witness(stack.api) as client:
        job = await client.submit("stuck_once", {"directory": directory}, max_attempts=1)
        await client.until([job], "chunk")
        await stack.worker()
        await stack.workers[0].kill()
        end = (await client.ends(job))[job]
    assert end["type"] == "failed"
    assert end["data"]["error"]["code"] == "attempts_exhausted"
    assert [event["type"] for event in client.of(job)] == ["started", "chunk", "failed"]


async def test_jobs_wait_for_a_worker_when_the_last_one_was_killed(processes: Processes, tmp_path: Path) -> None:
    stack = await start(processes, workers=1, lease_s=1)
    async with witness(stack.api) as client:
        running = await client.submit("stuck_once", {"directory": runs(tmp_path)})
        await client.until([running], "chunk")
        await stack.workers[0].kill()
        queued = await client.submit("process", {"text": "is nobody here?"})
        await stack.worker()
        ends = await client.ends(running, queued)
    assert ends[queued]["data"]["result"] == "Processed data: is nobody here?"
    assert ends[running]["attempt"] == 2
    check_whole(await logged(stack.store, running))


async def test_a_job_that_kills_each_of_its_workers_uses_its_attempts_up(processes: Processes) -> None:
    stack = await start(processes, workers=1, lease_s=1)
    async with witness(stack.api) as client:
        job = await client.submit("process", {"text": "", "delay_s": 3600}, max_attempts=3)
        for attempt in (1, 2, 3):
            await client.until([job], "started", times=attempt)
            await stack.workers[-1].kill()
            await stack.worker()
        end = (await client.ends(job))[job]
    assert [event["attempt"] for event in client.of(job, "started")] == [1, 2, 3]
    assert end["data"]["error"]["code"] == "attempts_exhausted"
