"""A worker whose event loop does nothing: for a while that costs its jobs nothing, for long it costs it its jobs."""

from pathlib import Path

from tests.processes import Processes, until
from tests.system.stack import runs, start
from tests.system.witness import check_whole, logged, witness


async def test_a_worker_that_computes_for_longer_than_a_lease_keeps_its_jobs(
    processes: Processes, tmp_path: Path
) -> None:
    stack = await start(processes, lease_s=3)
    directory = Path(runs(tmp_path))
    async with witness(stack.api) as client:
        job = await client.submit("blocks_once", {"directory": str(directory)})
        await client.until([job], "started")
        _, begun = await stack.lease_ends([job])

        async def twice_renewed() -> bool:
            now, ends = await stack.lease_ends([job])
            return now > begun[job] + 3 and ends[job] > now

        await until(twice_renewed, what="two leases to pass")
        (directory / "enough").touch()
        end = (await client.ends(job))[job]
    assert (end["type"], end["attempt"], end["data"]["result"]) == ("succeeded", 1, "first")


async def test_the_jobs_of_a_worker_that_hangs_run_elsewhere_and_it_writes_nothing_more(
    processes: Processes, tmp_path: Path
) -> None:
    stack = await start(processes, lease_s=1, MILLSTREAM_STALL_S="2")
    [hanging] = stack.workers
    directory = Path(runs(tmp_path))
    async with witness(stack.api) as client:
        job = await client.submit("blocks_once", {"directory": str(directory)})
        await client.until([job], "started")
        heir = await stack.worker()
        end = (await client.ends(job))[job]
        assert (end["attempt"], end["data"]["result"]) == (2, "second")
        assert [event["data"]["worker"] for event in client.of(job, "started")] == [hanging.url, heir.url]
        log = await logged(stack.store, job)
        await heir.kill()
        (directory / "enough").touch()
        fresh = await client.submit("process", {"text": "x"})
        ends = await client.ends(fresh)
        assert ends[fresh]["type"] == "succeeded", "it is of use again"
        assert client.of(fresh, "started")[0]["data"]["worker"] == hanging.url
    assert await logged(stack.store, job) == log
    check_whole(log)
