"""A worker is stopped for longer than its leases last, and wakes up: what it lost, it can no longer touch."""

import signal
from pathlib import Path

from tests.processes import Processes, until
from tests.system.stack import runs, start
from tests.system.witness import check_one_worker_wrote_it, check_whole, logged, witness


async def test_a_worker_that_wakes_up_writes_nothing_to_jobs_that_another_runs_now(
    processes: Processes, tmp_path: Path
) -> None:
    stack = await start(processes, lease_s=1)
    [sleeper] = stack.workers
    directory = runs(tmp_path)
    async with witness(stack.api) as client:
        jobs = [await client.submit("talks", {"directory": directory}) for _ in range(10)]
        await client.until(jobs, "chunk", times=3)
        heir = await stack.worker()
        sleeper.signal(signal.SIGSTOP)
        await client.until(jobs, "started", times=2)
        heard = {job: len(client.of(job)) for job in jobs}
        sleeper.signal(signal.SIGCONT)

        async def let_go() -> bool:
            return await stack.running_on(sleeper) == 0

        await until(let_go, what="the sleeper to give its jobs up")
        await client.until(jobs, "chunk", times=max(heard.values()) + 20)
        (Path(directory) / "enough").touch()
        ends = await client.ends(*jobs)
        # and it is of use again
        await heir.kill()
        fresh = [await client.submit("process", {"text": str(n)}) for n in range(20)]
        fresh_ends = await client.ends(*fresh)
    for job in jobs:
        first, again = client.of(job, "started")
        assert (first["data"]["worker"], again["data"]["worker"]) == (sleeper.url, heir.url)
        assert ends[job]["data"]["result"] == 2
        assert {event["data"] for event in client.of(job, "chunk") if event["seq"] < again["seq"]} == {1}
        assert {(e["attempt"], e["data"]) for e in client.of(job, "chunk") if e["seq"] > again["seq"]} == {(2, 2)}
        assert (await logged(stack.store, job))[1:] == client.of(job)
    for n, job in enumerate(fresh):
        assert fresh_ends[job]["data"]["result"] == f"Processed data: {n}"
        assert client.of(job, "started")[0]["data"]["worker"] == sleeper.url


async def test_a_worker_that_wakes_up_cannot_begin_in_another_ones_place(processes: Processes, tmp_path: Path) -> None:
    """Neither attempt has written anything yet: what the sleeper wants to write would be the first of either."""
    stack = await start(processes, lease_s=1)
    [sleeper] = stack.workers
    directory = Path(runs(tmp_path))
    async with witness(stack.api) as client:
        jobs = [await client.submit("speaks_when_told", {"directory": str(directory)}) for _ in range(20)]
        await client.until(jobs, "started")
        await stack.worker()
        sleeper.signal(signal.SIGSTOP)
        await client.until(jobs, "started", times=2)
        (directory / "speak-1").touch()
        sleeper.signal(signal.SIGCONT)

        async def let_go() -> bool:
            return await stack.running_on(sleeper) == 0

        await until(let_go, what="the sleeper to give its jobs up")
        (directory / "speak-2").touch()
        await client.ends(*jobs)
    for job in jobs:
        check_one_worker_wrote_it(await logged(stack.store, job))


async def test_a_worker_that_wakes_up_writes_nothing_to_jobs_that_have_ended(
    processes: Processes, tmp_path: Path
) -> None:
    stack = await start(processes, lease_s=1)
    [sleeper] = stack.workers
    directory = runs(tmp_path)
    async with witness(stack.api) as client:
        # The delays end while the worker sleeps: it wakes up with results in its hands.
        jobs = [await client.submit("process", {"text": str(n), "delay_s": 1}) for n in range(10)]
        jobs += [await client.submit("stuck_once", {"directory": directory}) for _ in range(10)]
        await client.until(jobs, "started")
        await client.until(jobs[10:], "chunk")
        sleeper.signal(signal.SIGSTOP)
        await stack.worker()
        await client.ends(*jobs)
        before = {job: await logged(stack.store, job) for job in jobs}
        sleeper.signal(signal.SIGCONT)

        async def let_go() -> bool:
            return await stack.running_on(sleeper) == 0

        await until(let_go, what="the sleeper to give its jobs up")
    for job in jobs:
        assert check_whole(before[job])["type"] == "succeeded"
        assert await logged(stack.store, job) == before[job]
    assert sleeper.running is not None
    assert sleeper.running.returncode is None


async def test_a_worker_that_is_alone_runs_its_jobs_again_after_it_wakes_up(
    processes: Processes, tmp_path: Path
) -> None:
    stack = await start(processes, lease_s=1)
    [sleeper] = stack.workers
    directory = runs(tmp_path)
    async with witness(stack.api) as client:
        jobs = [await client.submit("talks", {"directory": directory}) for _ in range(10)]
        await client.until(jobs, "chunk", times=3)
        sleeper.signal(signal.SIGSTOP)

        async def run_out() -> bool:
            return not any([await stack.leased(job) for job in jobs])

        await until(run_out, what="the leases to run out")
        sleeper.signal(signal.SIGCONT)
        await client.until(jobs, "started", times=2)
        heard = {job: len(client.of(job)) for job in jobs}
        await client.until(jobs, "chunk", times=max(heard.values()) + 20)
        (Path(directory) / "enough").touch()
        ends = await client.ends(*jobs)
        for job in jobs:
            again = client.of(job, "started")[1]
            assert again["data"] == {"attempt": 2, "worker": sleeper.url}
            assert ends[job]["data"]["result"] == 2
            assert {(e["attempt"], e["data"]) for e in client.of(job, "chunk") if e["seq"] > again["seq"]} == {(2, 2)}
        # All its slots are free again: as many jobs as it has run side by side.
        slots = [await client.submit("process", {"text": "", "delay_s": 1}) for _ in range(100)]
        await client.until(slots, "started")
        await client.ends(*slots)
