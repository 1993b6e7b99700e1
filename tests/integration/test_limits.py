"""Each limit, with an API and a worker whose limits are small; and priorities, where there is one slot."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
import redis.asyncio as redis
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from millstream.store import keys
from millstream_api.jobs import commands
from millstream_api.settings import ApiSettings
from millstream_worker.settings import WorkerSettings
from tests.integration.conftest import ANALYSES, Client, Stack, database
from tests.integration.rpc import Refused, Rpc, plain, rpc
from tests.integration.web import problem, web
from tests.integration.within import within
from tests.processes import Process, Processes, until


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def small(
    valkey: Process, processes: Processes, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Stack]:
    store, data = database(valkey, 2), tmp_path_factory.mktemp("small")
    api, worker = await asyncio.gather(
        processes.api(
            store, MILLSTREAM_DATA_DIR=str(data), MILLSTREAM_MAX_BODY_BYTES="4096", MILLSTREAM_CONNECTIONS="3",
            MILLSTREAM_CONNECTION_IN_FLIGHT="3", MILLSTREAM_QUEUE_DEPTH="4", MILLSTREAM_READER_EVENTS="4",
        ),
        processes.worker(
            store, MILLSTREAM_ANALYSES=ANALYSES, MILLSTREAM_MAX_JOBS="1", MILLSTREAM_EVENT_BYTES="2000",
            MILLSTREAM_LOG_EVENTS="20", MILLSTREAM_RETRY_BASE_S="0",
        ),
    )  # fmt: skip
    yield Stack(store, api, [worker], data)
    await asyncio.gather(api.kill(), worker.kill())


@pytest.fixture
async def client(small: Stack) -> AsyncIterator[Rpc]:
    async with rpc(small.api) as client:
        yield client


async def refusal(client: Rpc, analysis: str = "process", **options: object) -> int:
    with pytest.raises(Refused) as caught:
        await client.submit(analysis, {"text": "x"}, **options)
    assert await client.call("ping") == {}
    return caught.value.code


async def test_a_frame_of_the_limit_passes_and_one_over_it_closes_with_1009(small: Stack) -> None:
    async with plain(small.api) as socket:
        await socket.send("x" * 1900)
        assert await socket.recv() == "Processed data: " + "x" * 1900
        await socket.send("x" * 4097)
        with pytest.raises(ConnectionClosed):
            await socket.recv()
        assert socket.close_code == 1009


async def test_a_socket_over_the_limit_is_told_to_come_back_later(small: Stack, client: Rpc) -> None:
    async with rpc(small.api) as second, rpc(small.api) as third:
        for one in (client, second, third):
            assert await one.call("ping") == {}
        async with connect(small.api.ws) as fourth:
            with pytest.raises(ConnectionClosed):
                await fourth.recv()
            assert fourth.close_code == 1013
    assert await client.call("ping") == {}


async def test_jobs_in_flight_of_a_socket_are_limited(client: Rpc) -> None:
    jobs = [await client.submit("hold") for _ in range(3)]
    assert await refusal(client) == -32031
    await client.call("job.cancel", job=jobs[0])
    await client.end(jobs[0])
    jobs.append(await client.submit("hold"))
    for job in jobs[1:]:
        await client.call("job.cancel", job=job)
        await client.end(job)


async def test_a_full_queue_takes_no_job(small: Stack, client: Rpc) -> None:
    async with rpc(small.api) as second:
        jobs = [(client, await client.submit("hold")) for _ in range(3)] + [(second, await second.submit("hold"))]
        assert await refusal(second) == -32030
        for owner, job in jobs:
            await owner.call("job.cancel", job=job)
        for owner, job in jobs:
            await owner.end(job)
        assert (await second.run("process", {"text": "x"}))["type"] == "succeeded"


async def test_past_the_limit_in_flight_a_plain_socket_is_not_read_and_nothing_is_dropped(
    small: Stack, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    async with redis.Redis.from_url(small.store.url) as store, plain(small.api, "?analysis=wait_for") as socket:
        before = await store.keys(f"{keys.JOB}*")
        for _ in range(12):
            await socket.send(str(gate))

        async def three() -> bool:
            return len(await store.keys(f"{keys.JOB}*")) == len(before) + 3

        await until(three, what="three jobs")
        gate.touch()
        assert [await socket.recv() for _ in range(12)] == [str(gate)] * 12
        new = [key for key in await store.keys(f"{keys.JOB}*") if key not in before]
        times = [await store.hmget(key, "created", "finished") for key in new]
    created, finished = (sorted(map(int, those)) for those in zip(*times, strict=True))
    assert len(created) == 12
    for earlier, later in zip(finished[:-3], created[3:], strict=True):
        assert earlier <= later, "each job after the third was submitted when another had ended"


async def test_a_plain_client_waits_where_the_queue_is_full_and_is_answered_in_the_end(
    small: Stack, client: Rpc, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    held = [await client.submit("hold", {"gate": str(gate)}) for _ in range(3)]

    async def full() -> bool:
        return bool(await store.zcard(keys.lane()) == 4)

    async with redis.Redis.from_url(small.store.url) as store, plain(small.api) as socket:
        for number in range(3):
            await socket.send(str(number))
        await until(full, what="the queue to be full")
        gate.touch()
        assert [await socket.recv() for _ in range(3)] == [f"Processed data: {number}" for number in range(3)]
    for job in held:
        await client.end(job)


async def test_urgent_jobs_run_first_where_there_is_one_slot(client: Rpc, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    blocker = await client.submit("hold", {"gate": str(gate)}, events="all")
    await client.until(blocker, "log")
    await client.call("job.detach", job=blocker)
    jobs = {}
    for priority in ("low", "default", "high"):
        jobs[priority] = await client.submit("process", {"text": priority}, priority=priority)
    gate.touch()
    for job in jobs.values():
        await client.end(job)
    events = [frame["params"] for frame in client.frames if frame.get("method") == "job.event"]
    order = [event["job"] for event in events if event["type"] == "started"]
    assert order[1:] == [jobs["high"], jobs["default"], jobs["low"]]


async def test_a_result_over_the_limit_is_a_failure_that_names_it(client: Rpc) -> None:
    assert (await client.run("large", {"size": 1998}))["data"]["result"] == "x" * 1998
    last = await client.run("large", {"size": 1999})
    assert (last["type"], last["data"]["error"]["code"]) == ("failed", "result_too_large")
    assert "2000" in last["data"]["error"]["message"]


async def test_a_chunk_over_the_limit_is_a_failure_that_names_it(client: Rpc) -> None:
    fits = await client.end(await client.submit("large", {"size": 1998, "as_chunk": True}))
    assert [event["type"] for event in fits] == ["started", "chunk", "succeeded"]
    events = await client.end(await client.submit("large", {"size": 1999, "as_chunk": True}))
    assert [event["type"] for event in events] == ["started", "failed"]
    assert events[-1]["data"]["error"]["code"] == "result_too_large"
    assert "2000" in events[-1]["data"]["error"]["message"]


async def test_a_log_over_the_limit_is_a_failure_after_what_it_could_hold(client: Rpc) -> None:
    assert (await client.run("count_up", {"to": 18}))["type"] == "succeeded"
    events = await client.end(await client.submit("count_up", {"to": 500}))
    assert events[-1]["data"]["error"]["code"] == "result_too_large"
    assert "log" in events[-1]["data"]["error"]["message"]
    chunks = [event["data"] for event in events if event["type"] == "chunk"]
    assert chunks == list(range(len(chunks)))
    assert len(chunks) <= 18


async def test_a_reader_that_is_given_few_events_at_a_time_gets_them_all(client: Rpc) -> None:
    jobs = [await client.submit("count_up", {"to": 17}) for _ in range(3)]
    for job in jobs:
        events = await client.end(job)
        assert [event["data"] for event in events if event["type"] == "chunk"] == list(range(17))


async def test_where_no_worker_has_ever_been_a_submit_says_so(valkey: Process, own_processes: Processes) -> None:
    api = await own_processes.api(database(valkey, 3))
    async with rpc(api) as client:
        assert await refusal(client) == -32034
        assert await client.call("analysis.list") == []
    async with plain(api) as socket:
        await socket.send("hello")
        assert str(await socket.recv()).startswith("Error: No worker")


async def test_names_that_are_not_known_do_not_cost_the_store_a_look_each(
    valkey: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "REFRESH_S", 3600)

    async def looks() -> int:
        return int((await store.info("commandstats")).get("cmdstat_hvals", {"calls": 0})["calls"])

    store: Client
    async with redis.Redis.from_url(valkey.url) as store, within(valkey) as here, rpc(here.api) as socket:
        before = await looks()
        await socket.call("analysis.list")
        assert await looks() > before, "looks are counted"
        before = await looks()
        for number in range(20):
            await refusal(socket, f"nothing {number}")
        assert await looks() - before < 20


async def test_a_job_of_a_known_analysis_waits_for_a_worker(valkey: Process, own_processes: Processes) -> None:
    store = database(valkey, 4)
    worker = await own_processes.worker(store)
    await worker.kill()
    api = await own_processes.api(store)
    async with rpc(api) as client:
        job = await client.submit("process", {"text": "patience"})
        assert (await client.call("job.get", job=job))["status"] == "queued"
        await own_processes.worker(store)
        assert (await client.end(job))[-1]["data"]["result"] == "Processed data: patience"


def test_the_limits_of_the_contract_are_the_defaults() -> None:
    api, worker = ApiSettings(_env_file=None), WorkerSettings(_env_file=None)
    assert (api.max_body_bytes, worker.event_bytes) == (1024 * 1024, 1024 * 1024)
    assert (api.connection_in_flight, api.keep_s, api.life_s) == (1000, 3600, 86_400)
    assert (worker.lease_s, worker.max_jobs) == (10, 100)


async def test_members_of_a_batch_and_values_of_a_message_are_limited(small: Stack) -> None:
    submit = {"analysis": "process", "params": {"text": "x", "more": [1] * 100}}
    async with within(small.store, batch=2, json_values=100) as here, rpc(here.api) as client, web(here.api) as http:
        pings = [{"jsonrpc": "2.0", "method": "ping", "id": id} for id in range(3)]
        await client.send(pings)
        error = (await client.reply(None))["error"]
        assert (error["data"]["type"], error["data"]["detail"][:32]) == (
            "/problems/invalid_request", "A batch holds at most 2 requests",
        )  # fmt: skip
        client.frames.clear()
        await client.send({"jsonrpc": "2.0", "method": "job.submit", "params": submit, "id": 1})
        assert (await client.reply(None))["error"]["data"]["type"] == "/problems/payload_too_large"
        problem(await http.post("/jobs", json=submit), "payload_too_large")
        assert await client.call("ping") == {}
