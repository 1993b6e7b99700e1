"""What an analysis does to its process is the fault of its own job, and of no other; its worker goes on."""

import signal

import pytest
import pytest_asyncio
from pydantic_core import from_json

from millstream.store import keys
from tests.integration.conftest import Client, database
from tests.integration.misbehaving_analyses import DEEDS, Deed, nested
from tests.integration.rpc import Rpc, rpc
from tests.integration.web import JSONL, web
from tests.processes import Process, Processes

ANALYSES = "tests.integration.misbehaving_analyses,tests.integration.analyses_for_tests"


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def pair(valkey: Process, processes: Processes) -> tuple[Process, Process]:
    """An API, and the one worker that all the tests of this module do harm to."""
    store = database(valkey, 15)
    worker = await processes.worker(store, MILLSTREAM_ANALYSES=ANALYSES, MILLSTREAM_LEASE_S="60")
    return await processes.api(store), worker


async def ends_as(client: Rpc, job: str, expected: tuple[str, object]) -> str:
    """Wait for a job's end. Returns the worker that ran it."""
    end = (await client.end(job))[-1]
    found = end["data"]["result"] if end["type"] == "succeeded" else end["data"]["error"].get("type")
    assert (end["type"], end["attempt"], found) == (expected[0], 1, expected[1])
    worker: str = (await client.until(job, "started"))["data"]["worker"]
    return worker


@pytest.mark.parametrize("deed", DEEDS, ids=lambda deed: deed.__name__)
async def test_the_job_ends_as_it_should_and_the_jobs_beside_it_do_not_notice(
    pair: tuple[Process, Process], deed: Deed
) -> None:
    api, worker = pair
    async with rpc(api) as client:
        beside = [await client.submit("hold") for _ in range(3)]
        for job in beside:
            await client.until(job, "log")
        job = await client.submit("misbehaves", {"how": deed.__name__})
        assert await ends_as(client, job, DEEDS[deed]) == worker.url
        after = await client.submit("process", {"text": "x"})
        assert await ends_as(client, after, ("succeeded", "Processed data: x")) == worker.url
        for job in beside:
            await client.call("job.cancel", job=job)
            events = await client.end(job)
            assert [event["type"] for event in events][-3:] == ["started", "log", "cancelled"]
    assert worker.running is not None
    assert worker.running.returncode is None
    assert "draining" not in worker.log.read_text()


async def test_what_can_just_be_written_can_be_read_by_all(pair: tuple[Process, Process]) -> None:
    api, _ = pair
    values = [nested(188), 10**4299]
    async with rpc(api) as client, web(api) as http:
        job = await client.submit("goes_to_the_limits")
        end = (await client.end(job))[-1]
        assert end["data"]["result"] == values
        assert (await client.until(job, "chunk"))["data"] == values
        assert (await client.call("job.get", job=job))["result"] == values
        assert (await client.call("job.cancel", job=job))["result"] == values
        for path in (f"/jobs/{job}", f"/jobs/{job}/result", f"/jobs/{job}/events", "/jobs"):
            answer = await http.get(path, headers={"Accept": JSONL} if path.endswith("events") else {})
            assert answer.status_code == 200
            assert all(from_json(line) for line in answer.text.splitlines())


async def test_what_an_analysis_leaves_running_keeps_neither_its_drained_worker_nor_its_heartbeat(
    valkey: Process, client: Client, own_processes: Processes
) -> None:
    settings = {"MILLSTREAM_ANALYSES": ANALYSES, "MILLSTREAM_LEASE_S": "60", "MILLSTREAM_DRAIN_S": "3"}
    api, worker = await own_processes.api(valkey), await own_processes.worker(valkey, **settings)
    async with rpc(api) as caller:
        job = await caller.submit("leaves_threads_behind")
        await caller.until(job, "log")
        worker.signal(signal.SIGTERM)
        assert await worker.ended() == 0
    assert not await client.exists(keys.WORKER + worker.url)
    assert worker.url.encode() not in await client.zrange(keys.WORKERS, 0, -1)
    assert "worker stopped" in worker.log.read_text()
