"""Beside stock arq: its clients' jobs run here, its workers and ours leave each other's running jobs alone."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import msgpack
import pytest
import redis.asyncio as redis
from arq.connections import ArqRedis, RedisSettings, create_pool
from arq.jobs import Job, ResultNotFound, SerializationError
from arq.worker import Worker, func

from millstream.store import keys
from millstream.store.limits import Limits
from millstream.store.store import Store
from millstream_worker.body import Body, arq_result
from tests.integration.conftest import ANALYSES, Stack, database
from tests.integration.jobs import a_job, snapshot, types
from tests.integration.rpc import Refused, Rpc
from tests.integration.web import pointers, problem, web
from tests.processes import Process, Processes, until


def to_json(value: dict[str, Any]) -> bytes:
    return json.dumps(value).encode()


CODECS: dict[str, tuple[Callable[[dict[str, Any]], bytes], Callable[[bytes], dict[str, Any]]]] = {
    "json": (to_json, json.loads),
    "msgpack": (msgpack.packb, msgpack.unpackb),
}


@asynccontextmanager
async def arq(store: Process, codec: str | None, **reading: Any) -> AsyncIterator[ArqRedis]:
    """A stock arq client; without a codec, it pickles."""
    write, read = CODECS[codec] if codec else (None, None)
    if reading and read:
        read = partial(read, **reading)
    pool = await create_pool(RedisSettings.from_dsn(store.url), job_serializer=write, job_deserializer=read)
    try:
        yield pool
    finally:
        await pool.aclose()


async def enqueue(pool: ArqRedis, name: str, *args: Any, **kwargs: Any) -> Job:
    job = await pool.enqueue_job(name, *args, **kwargs)
    assert job is not None
    return job


@pytest.mark.parametrize("codec", CODECS)
async def test_a_job_that_a_stock_client_enqueued_runs_and_its_result_is_what_the_client_awaits(
    stack: Stack, codec: str
) -> None:
    value = {"a": [1, 2.5, None, "ü"], "b": {"c": True}}
    async with arq(stack.store, codec) as pool:
        jobs = [
            await enqueue(pool, "process", "hello"),
            await enqueue(pool, "process", text="hello"),
            await enqueue(pool, "process", "hello", delay_s=0),
            await enqueue(pool, "anything", value=value),
        ]
        results = [await job.result(timeout=10, poll_delay=0.02) for job in jobs]
        assert results == ["Processed data: hello"] * 3 + [value]
        info = await jobs[0].result_info()
        assert info is not None
        assert (info.success, info.function, info.job_try) == (True, "process", 1)
        assert info.start_time <= info.finish_time


FAILURES: dict[str, tuple[str, list[Any]]] = {
    "over a stone": ("stumble", ["over a stone"]),
    "parameters are wrong": ("process", [["no", "text"]]),
    "takes 2 parameters, not 4": ("process", ["a", 0, "too", "many"]),
    "over the limit|the limit is": ("large", [2_000_000]),
    "took longer": ("hasty", []),
}


@pytest.mark.parametrize("codec", CODECS)
async def test_a_failure_reaches_the_stock_client_in_words(stack: Stack, codec: str) -> None:
    async with arq(stack.store, codec) as pool:
        jobs = {text: await enqueue(pool, name, *arguments) for text, (name, arguments) in FAILURES.items()}
        for text, job in jobs.items():
            with pytest.raises(SerializationError, match=text):
                await job.result(timeout=10, poll_delay=0.02)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("how", ["job.abort() of arq", "job.cancel"])
async def test_a_running_job_of_a_stock_client_can_be_ended_and_the_client_is_told(
    stack: Stack, client_rpc: Rpc, codec: str, how: str
) -> None:
    async with arq(stack.store, codec) as pool, redis.Redis.from_url(stack.store.url) as store:
        job = await enqueue(pool, "hold", _job_id=f"held {codec} {how}")
        await until(lambda: stands(client_rpc, job.job_id, "running"), what="the job to run")
        if how == "job.cancel":
            await client_rpc.call("job.cancel", job=job.job_id, reason="enough")
            with pytest.raises(SerializationError, match="The job was cancelled: enough"):
                await job.result(timeout=10, poll_delay=0.02)
        else:
            with pytest.raises(SerializationError, match=r"The job was cancelled: Aborted by an arq client\."):
                await job.abort(timeout=10, poll_delay=0.02)
        assert await stands(client_rpc, job.job_id, "cancelled")
        info = await job.result_info()
        assert info is not None
        assert (info.success, info.function, info.job_try, info.job_id) == (False, "hold", 1, job.job_id)
        assert await store.zcard(keys.ABORT) == 0


async def test_a_job_that_a_stock_client_aborts_before_it_is_due_never_runs(stack: Stack, client_rpc: Rpc) -> None:
    async with arq(stack.store, "json") as pool:
        job = await enqueue(pool, "process", "never", _defer_by=600)
        with pytest.raises(SerializationError, match="Aborted by an arq client"):
            await job.abort(timeout=10, poll_delay=0.02)
        events = await client_rpc.end((await client_rpc.call("job.attach", job=job.job_id))["job"])
    assert [event["type"] for event in events] == ["queued", "cancelled"]


async def test_a_pickled_job_can_be_aborted_though_nobody_can_be_told(stack: Stack, client_rpc: Rpc) -> None:
    async with arq(stack.store, None) as pool:
        job = await enqueue(pool, "process", "never", _defer_by=600)
        assert await job.abort(timeout=10, poll_delay=0.02) is False
        assert await job.result_info() is None
    events = await client_rpc.end((await client_rpc.call("job.attach", job=job.job_id))["job"])
    assert [event["type"] for event in events] == ["queued", "cancelled"]
    assert (await client_rpc.call("job.get", job=job.job_id))["status"] == "cancelled"


async def test_what_has_ended_or_runs_on_a_stock_worker_is_not_aborted(stack: Stack, client_rpc: Rpc) -> None:
    async with arq(stack.store, "json") as pool, redis.Redis.from_url(stack.store.url) as store:
        done = await enqueue(pool, "process", "done")
        assert await done.result(timeout=10, poll_delay=0.02) == "Processed data: done"
        assert await done.abort(timeout=10) is False
        for id in ("theirs", "old"):  # not claimed by a worker of ours
            await store.set(f"{keys.BODY}{id}", "{}", px=60_000)
        long_ago = (time.time() - 90_000) * 1000
        await store.zadd(keys.ABORT, {"theirs": time.time() * 1000, "unheard of": time.time() * 1000, "old": long_ago})

        async def tidy() -> bool:
            return [id.decode() for id in await store.zrange(keys.ABORT, 0, -1)] == ["theirs"]

        await until(tidy, what="what is over to be taken off the list, and nothing else")
        assert await stands(client_rpc, done.job_id, "succeeded")
        await store.delete(keys.ABORT, f"{keys.BODY}theirs", f"{keys.BODY}old")


async def test_a_stock_client_is_told_when_its_jobs_workers_are_lost(store: Store, valkey: Process) -> None:
    async with arq(valkey, "json") as pool:
        job = await enqueue(pool, "a", _job_id="lost")

        async def ended() -> bool:  # at the second claim: the lease of the first is short, and nothing renews it
            await store.adopt("default", [keys.QUEUE], {"a": None}, 1)
            await store.claim("w", 0.05, 10, "\na\n", "default")
            found = await store.snapshot(job.job_id)
            return found is not None and found.terminal

        await until(ended, what="its end")
        with pytest.raises(SerializationError, match=r"The worker of attempt 1 of 1 was lost\."):
            await job.result(timeout=10, poll_delay=0.02)


async def nothing(ctx: Any) -> None: ...


async def known(pool: ArqRedis, job: Job) -> bool:
    return bool(await pool.exists(f"{keys.JOB}{job.job_id}"))


async def stands(client: Rpc, job: str, status: str) -> bool:
    with suppress(Refused):  # not known yet
        return bool((await client.call("job.get", job=job))["status"] == status)
    return False


async def test_a_stock_clients_job_can_be_followed_like_any_other(stack: Stack, client_rpc: Rpc) -> None:
    async with arq(stack.store, "json") as pool:
        job = await enqueue(pool, "report", 3, _job_id="my own\nid, with spaces")
        await job.result(timeout=10, poll_delay=0.02)
    reply = await client_rpc.call("job.attach", job=job.job_id)
    assert (reply["analysis"], reply["status"], reply["result"]) == ("report", "succeeded", 3)
    events = await client_rpc.end(job.job_id)
    assert events[0]["type"] == "queued"
    assert [event["data"]["number"] for event in events if event["type"] == "chunk"] == [0, 1, 2]


async def test_an_analysis_that_asks_for_retries_is_tried_again_for_a_stock_client_too(stack: Stack) -> None:
    async with arq(stack.store, "json") as pool:
        job = await enqueue(pool, "flaky", 3)
        assert await job.result(timeout=10, poll_delay=0.02) == 3


async def test_a_deferred_job_of_a_stock_client_waits_until_it_is_due(stack: Stack) -> None:
    async with arq(stack.store, "json") as pool:
        job = await enqueue(pool, "process", "later", _defer_by=0.4)
        assert await job.result(timeout=10, poll_delay=0.02) == "Processed data: later"
        info = await job.result_info()
    assert info is not None
    assert info.start_time - info.enqueue_time >= timedelta(seconds=0.4)


async def test_wrong_parameters_of_a_stock_client_are_named_where_the_result_is_asked_for(stack: Stack) -> None:
    async with arq(stack.store, "json") as pool:
        job = await enqueue(pool, "process", ["no text"], delay_s={})
        with pytest.raises(SerializationError, match="text: Input should be a valid string"):
            await job.result(timeout=10, poll_delay=0.02)
    async with web(stack.api) as http:
        told = problem(await http.get(f"/jobs/{job.job_id}/result"), "invalid_params")
    assert pointers(told) == {"/text", "/delay_s"}
    assert "text: Input should be a valid string" in told["detail"]


async def test_a_pickled_job_is_never_read_and_fails_with_a_reason(stack: Stack, client_rpc: Rpc) -> None:
    async with arq(stack.store, None) as pool:
        job = await enqueue(pool, "process", "hello")
        with pytest.raises(ResultNotFound):
            await job.result(timeout=10, poll_delay=0.02)
    found = await client_rpc.call("job.get", job=job.job_id)
    assert (found["status"], found["error"]["code"]) == ("failed", "invalid_params")
    assert "pickle" in found["error"]["message"]


async def test_a_job_of_an_analysis_that_nobody_knows_waits_for_a_worker_that_does_and_costs_little(
    stack: Stack, own_processes: Processes, client_rpc: Rpc
) -> None:
    async with arq(stack.store, "json") as pool, redis.Redis.from_url(stack.store.url) as client:
        job = await enqueue(pool, "late", "patience")

        async def calls(command: str) -> int:
            stats = await client.info("commandstats")
            return int(stats[f"cmdstat_{command}"]["calls"])

        async def waited() -> bool:
            return await calls("blpop") >= waits + 4

        scripts, waits = await calls("evalsha"), await calls("blpop")
        await until(waited, what="the workers to wait for a bell some times")
        assert await calls("evalsha") - scripts < 25 * (await calls("blpop") - waits), "they ask for it without pause"
        assert await client.zscore(keys.QUEUE, job.job_id) is not None

        await own_processes.worker(stack.store, MILLSTREAM_ANALYSES="tests.integration.late_analyses")
        assert await job.result(timeout=10, poll_delay=0.02) == "PATIENCE"
        assert (await client_rpc.run("late", {"text": "now known"}))["data"]["result"] == "NOW KNOWN"


VALUES: dict[str, tuple[Any, Any]] = {
    "bytes": (b"text", "text"),
    "integer keys": ({1: "a"}, {"1": "a"}),
    "a large integer": (2**64 - 1, 2**64 - 1),
    "an extension type": (msgpack.ExtType(5, b"x"), [5, "x"]),
}


@pytest.mark.parametrize(("sent", "received"), VALUES.values(), ids=VALUES)
async def test_what_only_msgpack_can_say_reaches_an_analysis(stack: Stack, sent: Any, received: Any) -> None:
    async with arq(stack.store, "msgpack", strict_map_key=False) as pool:
        job = await enqueue(pool, "anything", value=sent)
        assert await job.result(timeout=10, poll_delay=0.02) == received
        info = await job.result_info()
        assert info is not None
        assert info.kwargs == {"value": sent}


@pytest.mark.parametrize(("codec", "ends"), [("json", "succeeded"), ("msgpack", "failed")])
async def test_a_result_that_the_clients_codec_cannot_hold_fails_its_job_once(
    stack: Stack, client_rpc: Rpc, codec: str, ends: str
) -> None:
    async with arq(stack.store, codec) as pool:
        job = await enqueue(pool, "enormous")
        if ends == "succeeded":
            assert await job.result(timeout=10, poll_delay=0.02) == 2**70
        else:
            with pytest.raises(SerializationError, match="The result cannot be written as msgpack"):
                await job.result(timeout=10, poll_delay=0.02)
    events = await client_rpc.end((await client_rpc.call("job.attach", job=job.job_id))["job"])
    assert [event["type"] for event in events] == ["queued", "started", ends]


async def test_parameters_that_cannot_be_written_again_are_left_out_of_the_result() -> None:
    body = Body("f", [2**70], {"k": 2**70}, 1, packed=True)
    written = arq_result(body, id="j", queue="q", attempt=1, success=False, value="why", started_ms=1, ended_ms=2)
    result = msgpack.unpackb(written)
    assert (result["f"], result["r"], result["a"], result["k"]) == ("f", "why", [], {})


@pytest.mark.parametrize("codec", CODECS)
async def test_a_job_that_expires_before_it_runs_ends_and_its_client_is_told(stack: Stack, codec: str) -> None:
    async with arq(stack.store, codec) as pool, redis.Redis.from_url(stack.store.url) as store:
        job = await enqueue(pool, "process", "late", _expires=60, _defer_by=1)

        await until(lambda: known(pool, job), what="the job to be taken over")
        await store.delete(f"{keys.BODY}{job.job_id}")  # as when 60 s went by
        with pytest.raises(SerializationError, match="longer than a job may live"):
            await job.result(timeout=10, poll_delay=0.02)


async def test_an_id_with_slashes_works_over_http(stack: Stack) -> None:
    async with arq(stack.store, "json") as pool, web(stack.api) as http:
        job = await enqueue(pool, "process", "hello", _job_id="reports/2026/x y")
        await job.result(timeout=10, poll_delay=0.02)
        for id in ("reports/2026/x%20y", "reports%2F2026%2Fx%20y"):
            assert (await http.get(f"/jobs/{id}")).json()["job"] == job.job_id
            assert (await http.get(f"/jobs/{id}/result")).json() == "Processed data: hello"
            assert "Processed data: hello" in (await http.get(f"/jobs/{id}/events")).text
            assert (await http.delete(f"/jobs/{id}")).json()["status"] == "succeeded"
        assert job.job_id in [found["job"] for found in (await http.get("/jobs")).json()]
        for path in ("/jobs/reports/2026", "/jobs/reports/2026/x/nothing"):
            problem(await http.get(path), "job_not_found")


async def test_an_id_is_used_again_when_its_result_is_gone(stack: Stack) -> None:
    async with arq(stack.store, "json") as pool, redis.Redis.from_url(stack.store.url) as store:
        for text in ("one", "two"):
            job = await enqueue(pool, "process", text, _job_id="daily report")
            assert await job.result(timeout=10, poll_delay=0.02) == f"Processed data: {text}"
            assert await pool.enqueue_job("process", text, _job_id="daily report") is None, "as with a stock worker"
            await store.delete(f"{keys.RESULT}{job.job_id}")


async def test_a_worker_serves_the_queues_of_stock_clients_that_it_is_told_to(
    valkey: Process, own_processes: Processes
) -> None:
    store = database(valkey, 15)
    await own_processes.worker(store, MILLSTREAM_ARQ_QUEUES="reports, any:name/at all")
    async with arq(store, "json") as pool:
        for queue in ("reports", "any:name/at all"):
            job = await enqueue(pool, "process", "hello", _queue_name=queue)
            assert await job.result(timeout=10, poll_delay=0.02) == "Processed data: hello"
            info = await job.result_info()
            assert info is not None
            assert info.queue_name == queue
        job = await enqueue(pool, "process", "not served")
        await job.status()
        assert await pool.zscore(keys.QUEUE, job.job_id) is not None
        assert await pool.exists(f"{keys.JOB}{job.job_id}") == 0


async def test_our_jobs_are_not_where_a_stock_worker_looks(valkey: Process, own_processes: Processes) -> None:
    """It deletes the entry and the body of what it does not know."""
    beside = database(valkey, 15)
    store = await Store(beside.url, name="tests", limits=Limits()).open(10)
    jobs = [a_job(analysis="process", body=to_json({"t": None, "f": "process", "a": ["x"], "k": {}, "et": 1}))]
    jobs += [replace(jobs[0], id=f"{name} one", priority=name) for name in ("high", "low")]
    for job in jobs:
        await store.submit(job)

    async def theirs(ctx: Any, text: str) -> str:
        return text

    async with stock_worker(beside, func(theirs, name="theirs")), arq(beside, "json") as pool:
        for number in range(3):  # each comes later than ours
            other = await enqueue(pool, "theirs", str(number))
            assert await other.result(timeout=10, poll_delay=0.02) == str(number)
        await own_processes.worker(beside)
        for ours in jobs:

            async def ended(id: str = ours.id) -> bool:
                return (await snapshot(store, id)).terminal

            await until(ended, what="the end of our job")
            assert (await snapshot(store, ours.id)).result == b'"Processed data: x"'
    await store.close()


async def test_a_job_for_us_that_waits_for_another_attempt_is_not_where_a_stock_worker_looks(
    valkey: Process, own_processes: Processes
) -> None:
    beside = database(valkey, 15)
    await own_processes.worker(beside, MILLSTREAM_ANALYSES=ANALYSES)
    async with arq(beside, "json") as pool:
        job = await enqueue(pool, "ask_again", 2, 0.05)
        await until(lambda: known(pool, job), what="the job to be taken over")
        async with stock_worker(beside):
            assert await job.result(timeout=10, poll_delay=0.02) == 3


async def test_pickled_jobs_are_left_for_the_stock_workers_that_are_there(
    valkey: Process, own_processes: Processes
) -> None:
    beside = database(valkey, 15)
    entered = asyncio.Event()

    async def theirs(ctx: Any, text: str) -> str:
        await entered.wait()
        return text

    async with (
        stock_worker(beside, func(theirs, name="theirs"), codec=None),
        arq(beside, None) as pool,
        redis.Redis.from_url(beside.url) as client,
    ):

        async def seen() -> bool:
            return bool(await client.exists(f"{keys.QUEUE}:health-check"))

        await until(seen, what="the stock worker")
        await own_processes.worker(beside, MILLSTREAM_ARQ_QUEUES=f"{keys.QUEUE},ours")
        jobs = [await enqueue(pool, "theirs", str(number), _defer_by=0.2 * number) for number in range(5)]
        async with arq(beside, "json") as other:  # a worker of ours takes it when it has looked at both queues
            ours = await enqueue(other, "process", "ours", _queue_name="ours")
            assert await ours.result(timeout=10, poll_delay=0.02) == "Processed data: ours"
        entered.set()
        assert [await job.result(timeout=10, poll_delay=0.02) for job in jobs] == list("01234")


@asynccontextmanager
async def stock_worker(store: Process, *functions: Any, codec: str | None = "json") -> AsyncIterator[Worker]:
    write, read = CODECS[codec] if codec else (None, None)
    functions = functions or (func(nothing, name="nothing"),)
    async with arq(store, codec) as pool:
        worker = Worker(
            functions=functions, redis_pool=pool, poll_delay=0.02, handle_signals=False, keep_result=60,
            job_serializer=write, job_deserializer=read,
        )  # fmt: skip
        running = asyncio.create_task(worker.main())
        try:
            yield worker
        finally:
            running.cancel()
            await asyncio.wait({running})
            await asyncio.gather(*worker.tasks.values(), return_exceptions=True)


async def test_a_stock_worker_and_ours_leave_each_others_running_jobs_alone(
    valkey: Process, own_processes: Processes, tmp_path: Path
) -> None:
    database_ = database(valkey, 5)
    gate, opened = tmp_path / "gate", asyncio.Event()
    runs: list[str] = []

    async def stock_only(ctx: Any, text: str) -> str:
        runs.append(text)
        await opened.wait()
        return text

    async def hold(ctx: Any, **_: Any) -> str:
        runs.append("ours")
        return "stolen"

    await own_processes.worker(database_, MILLSTREAM_ANALYSES=ANALYSES, MILLSTREAM_LEASE_S="1.5")
    store = await Store(database_.url, name="tests", limits=Limits()).open(10)
    body = to_json({"t": None, "f": "hold", "a": [], "k": {"gate": str(gate), "text": "ours"}, "et": 1})
    job = a_job(analysis="hold", body=body)
    await store.submit(job)

    async def held() -> bool:
        return await types(store, job.id) == ["queued", "started", "log"]

    await until(held, what="our job to run")
    async with stock_worker(database_, func(stock_only, name="stock_only"), func(hold, name="hold")) as worker:
        async with arq(database_, "json") as pool:
            stock = [await enqueue(pool, "stock_only", f"job {number}") for number in range(3)]

            async def all_run() -> bool:
                return len(runs) == 3

            await until(all_run, what="the stock worker's jobs")
            leases: set[bytes] = set()

            async def renewed_often() -> bool:
                leases.add(await store.pipeline.call("ZSCORE", keys.lane(), job.id))
                return len(leases) > 4

            await until(renewed_often, what="the lease to be renewed for longer than it would last by itself")
            gate.touch()
            opened.set()
            assert [await item.result(timeout=10, poll_delay=0.02) for item in stock] == ["job 0", "job 1", "job 2"]

        async def ended() -> bool:
            return (await snapshot(store, job.id)).terminal

        await until(ended, what="the end of our job")
        assert worker.jobs_failed == 0
    assert sorted(runs) == ["job 0", "job 1", "job 2"]
    assert await types(store, job.id) == ["queued", "started", "log", "succeeded"]
    assert (await snapshot(store, job.id)).result == b'"ours"'
    await store.close()
