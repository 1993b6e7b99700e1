"""adopt: what stock arq clients enqueued becomes a job of ours; what is meant for stock workers is left for them."""

import asyncio
import json
import pickle
from collections.abc import Callable
from typing import Any

import msgpack
import pytest

from millstream.protocol.jobs import TERMINAL
from millstream.store import keys
from millstream.store.limits import Limits
from millstream.store.store import Store
from tests.integration.conftest import Client
from tests.integration.jobs import (
    LONG_S,
    SHORT_S,
    a_job,
    claim,
    claimed_again,
    events,
    lease_runs_out,
    milliseconds,
    renew,
    snapshot,
    types,
)  # fmt: skip
from tests.processes import until

HEALTH = f"{keys.QUEUE}:health-check"
FUTURE = 1e15


def body(function: str = "a", **k: Any) -> dict[str, Any]:
    return {"t": None, "f": function, "a": [1], "k": k, "et": 1}


def to_json(value: dict[str, Any]) -> bytes:
    return json.dumps(value).encode()


Write = Callable[[dict[str, Any]], bytes]
JSON: Write = to_json
MSGPACK: Write = msgpack.packb
CODECS: dict[str, tuple[Write, Callable[[bytes], dict[str, Any]]]] = {
    "json": (JSON, json.loads),
    "msgpack": (MSGPACK, msgpack.unpackb),
}


async def enqueue(client: Client, id: str, content: bytes | None, *, due: float = 1, queue: str = keys.QUEUE) -> None:
    """As a stock client does, a hundred seconds before the job expires."""
    if content is not None:
        await client.set(f"{keys.BODY}{id}", content, ex=100)
    await client.zadd(queue, {id: due})


async def adopt(store: Store, *, known: dict[str, int | None] | None = None, attempts: int = 5) -> int:
    return await store.adopt("default", [keys.QUEUE], {"a": None} if known is None else known, attempts)


@pytest.mark.parametrize("name", ["a", "odd\nname with space", "ünï\U0001f600", "with/slash"])
@pytest.mark.parametrize("write", [JSON, MSGPACK])
async def test_a_job_that_stock_arq_enqueued_gets_a_record_and_a_log(
    store: Store, client: Client, name: str, write: Any
) -> None:
    await enqueue(client, name, write(body()))
    assert await adopt(store) == 1
    assert await client.llen(keys.bell("default")) == 1, "a worker is woken"
    (job,) = await claim(store)
    assert (job.id, job.analysis, job.body, job.adopted) == (name, "a", write(body()), keys.QUEUE)
    assert (job.attempt, job.max_attempts, job.retry) == (1, 5, False)
    assert [(event.job, event.type) for event in await events(store, name)] == [(name, "queued"), (name, "started")]
    assert (await snapshot(store, name)).owner is None
    for key in (f"{keys.JOB}{name}", f"{keys.LOG}{name}"):
        assert 86_400_000 < await client.pttl(key) <= 90_000_000, "as for any other job"
    assert await adopt(store) == 0


@pytest.mark.parametrize(("own", "expected"), [(None, (5, False)), (1, (1, True)), (7, (7, True))])
async def test_the_attempts_that_an_analysis_names_count_for_adopted_jobs(
    store: Store, client: Client, own: int | None, expected: tuple[int, bool]
) -> None:
    await enqueue(client, "x", JSON(body()))
    await adopt(store, known={"b": 3, "a": own})
    (job,) = await claim(store)
    assert (job.max_attempts, job.retry) == expected


@pytest.mark.parametrize("ends", ["finish", "cancel", "lost", "expire"])
async def test_an_adopted_job_is_out_of_the_reach_of_stock_workers_until_it_ends(
    store: Store, client: Client, ends: str
) -> None:
    """A stock worker takes what is due in its queue. Its client waits for what is there."""

    async def is_out_of_reach() -> None:
        assert await client.zscore(keys.QUEUE, "x") > FUTURE

    await enqueue(client, "x", JSON(body()))
    await adopt(store, attempts=2)
    await is_out_of_reach()
    (job,) = await claim(store)
    await is_out_of_reach()
    await store.retry(job, {"code": "analysis_error", "message": "no"}, 0)
    await is_out_of_reach()
    job = await claimed_again(store, "x", lease_s=SHORT_S if ends == "lost" else LONG_S)
    await renew(store, "w2", SHORT_S if ends == "lost" else LONG_S, job)
    await is_out_of_reach()
    match ends:
        case "finish":
            await store.finish(job, "succeeded", b'{"result":1}', b"{}")
        case "cancel":
            await store.cancel("x", "", None)
        case "expire":
            await client.delete(f"{keys.BODY}x", f"{keys.LEASE}x")
            await store.expire("default")
        case "lost":
            await lease_runs_out(store, "x")

            async def ended() -> bool:
                await claim(store)
                return (await snapshot(store, "x")).terminal

            await until(ended, what="its end")
    assert (await snapshot(store, "x")).status in TERMINAL
    assert await client.zcard(keys.QUEUE) == await client.zcard(keys.lane()) == 0
    assert await client.exists(f"{keys.RESULT}x")


async def test_a_stock_worker_that_is_about_to_take_a_job_does_not_when_it_is_adopted(
    store: Store, client: Client
) -> None:
    """arq watches the key of the job in progress, and takes the job in a transaction."""
    await enqueue(client, "x", JSON(body()))
    async with client.pipeline(transaction=True) as stock:
        await stock.watch(f"{keys.LEASE}x")
        await adopt(store)
        stock.multi()
        stock.psetex(f"{keys.LEASE}x", 1000, b"1")
        with pytest.raises(Exception, match="Watched"):
            await stock.execute()
    assert [job.id for job in await claim(store)] == ["x"]


LEFT: dict[str, bytes | None] = {
    "pickled": pickle.dumps(body()),
    "pickled by protocol 2": pickle.dumps(body(), protocol=2),
    "of another function": JSON(body("b")),
    "of another function, packed": MSGPACK(body("b")),
    "without a body": None,
    "no body of arq": b"?",
}


@pytest.mark.parametrize("content", LEFT.values(), ids=LEFT)
async def test_what_is_meant_for_stock_workers_is_left_for_them_where_there_are_any(
    store: Store, client: Client, content: bytes | None
) -> None:
    await client.set(HEALTH, "j_complete=0", ex=60)
    await enqueue(client, "theirs", content)
    await enqueue(client, "ours", JSON(body()), due=2)
    assert await adopt(store) == 1
    assert [job.id for job in await claim(store)] == ["ours"]
    assert await client.zscore(keys.QUEUE, "theirs") == 1
    assert not await client.exists(f"{keys.JOB}theirs", f"{keys.LOG}theirs")
    await client.delete(HEALTH)
    assert await adopt(store) == 1
    assert (await snapshot(store, "theirs")).status == ("failed" if content is None else "queued")


async def test_many_jobs_of_stock_workers_do_not_hide_ours(store: Store, client: Client) -> None:
    await client.set(HEALTH, "j_complete=0", ex=60)
    await client.zadd(keys.QUEUE, {f"theirs {number}": number + 1 for number in range(3000)})
    await enqueue(client, "ours", JSON(body()), due=5000)

    async def adopted() -> bool:
        return await adopt(store) == 1

    await until(adopted, what="our job behind theirs")
    assert await client.zcount(keys.QUEUE, 1, 3000) == 3000


async def test_a_job_that_a_stock_worker_runs_is_left_alone(store: Store, client: Client) -> None:
    await enqueue(client, "x", JSON(body()))
    await client.set(f"{keys.LEASE}x", b"1", ex=100)
    assert await adopt(store) == 0
    assert await client.zscore(keys.QUEUE, "x") == 1
    assert not await client.exists(f"{keys.JOB}x")


async def test_a_deferred_job_is_adopted_at_once_and_claimed_when_it_is_due(store: Store, client: Client) -> None:
    due = await milliseconds(store) + 60_000
    await enqueue(client, "x", JSON(body()), due=due)
    assert await adopt(store) == 1
    wait, jobs = await store.claim("w", 60, 10, "\na\n", "default")
    assert jobs == []
    assert wait is not None
    assert 50 < wait <= 60
    assert await types(store, "x") == ["queued"]


async def test_a_full_lane_takes_over_no_more(store: Store, client: Client) -> None:
    small = await Store(store.pipeline.url, name="small", limits=Limits(queue_depth=3)).open(10)
    await store.submit(a_job())
    for number in range(5):
        await enqueue(client, str(number), JSON(body()))
    assert [await adopt(small), await adopt(small)] == [2, 0]
    await claim(store)
    assert await client.zcount(keys.QUEUE, 0, FUTURE) == 3
    await small.close()


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("when", ["before it is adopted", "while it waits", "while it waits for another attempt"])
async def test_a_job_that_expires_ends_with_a_result_that_says_so(
    store: Store, client: Client, codec: str, when: str
) -> None:
    write, read = CODECS[codec]
    await enqueue(client, "x", None if when == "before it is adopted" else write(body()))
    await adopt(store)
    if when == "while it waits for another attempt":
        (job,) = await claim(store)
        await store.retry(job, {"code": "analysis_error", "message": "no"}, 0)
    await client.delete(f"{keys.BODY}x")
    assert await claim(store) == []
    found = await snapshot(store, "x")
    assert (found.status, json.loads(found.error)["code"]) == ("failed", "expired")
    written = await client.get(f"{keys.RESULT}x")
    result = (json.loads if when == "before it is adopted" else read)(written)
    assert (result["s"], result["id"], result["q"]) == (False, "x", keys.QUEUE)
    assert "longer than a job may live" in result["r"]
    assert {"t", "f", "a", "k", "et", "st", "ft"} <= result.keys()
    assert 0 < await client.ttl(f"{keys.RESULT}x") <= 3600
    assert await client.zcard(keys.QUEUE) == 0


ODD: dict[str, Any] = {
    "bytes": b"\xff\x00",
    "an extension type": msgpack.ExtType(5, b"x"),
    "a time": msgpack.Timestamp(1, 2),
    "integer keys": {1: 2, -1: {3: 4}},
    "a large integer": 2**64 - 1,
}


@pytest.mark.parametrize("value", ODD.values(), ids=ODD)
async def test_whatever_msgpack_holds_the_function_is_found_and_the_end_is_told(
    store: Store, client: Client, value: Any
) -> None:
    await enqueue(client, "x", MSGPACK(body(value=value)))
    await adopt(store)
    (job,) = await claim(store)
    assert job.analysis == "a"
    await store.cancel("x", "", "enough")
    result = msgpack.unpackb(await client.get(f"{keys.RESULT}x"), strict_map_key=False)
    assert (result["f"], result["s"], result["r"]) == ("a", False, "The job was cancelled: enough")


async def test_the_id_of_a_job_that_ended_can_be_used_again(store: Store, client: Client) -> None:
    for number in (1, 2):
        await enqueue(client, "daily", JSON(body(number=number)))
        assert await adopt(store) == 1
        (job,) = await claim(store)
        assert json.loads(job.body)["k"] == {"number": number}
        assert (job.id, job.attempt) == ("daily", 1)
        await store.finish(job, "succeeded", b'{"result":%d}' % number, b"{}")
        assert await types(store, "daily") == ["queued", "started", "succeeded"]
        assert (await snapshot(store, "daily")).result == b"%d" % number
        await client.delete(f"{keys.RESULT}daily")


async def test_adopted_jobs_stand_in_the_list(store: Store, client: Client) -> None:
    await enqueue(client, "x", JSON(body()))
    await adopt(store)
    found, _ = await store.jobs("", status="queued", analysis="a", limit=50, after="", limit_bytes=10_000)
    assert [job.job for job in found] == ["x"]


@pytest.mark.parametrize("moved_to", [1, FUTURE + 1], ids=["by a client that aborts", "by time"])
async def test_an_entry_of_a_job_that_goes_on_is_put_back_and_that_of_one_that_is_gone_goes(
    store: Store, client: Client, moved_to: float
) -> None:
    await enqueue(client, "x", JSON(body()))
    await adopt(store)
    for score in (moved_to, moved_to):
        await client.zadd(keys.QUEUE, {"x": score})
        assert await adopt(store) == 0
        assert await client.zscore(keys.QUEUE, "x") > FUTURE + 1
    assert await client.zcard(keys.lane()) == 1
    await client.delete(f"{keys.JOB}x")
    await client.zadd(keys.QUEUE, {"x": FUTURE + 1})
    await adopt(store)
    assert await client.zcard(keys.QUEUE) == 0


async def test_jobs_of_two_workers_that_adopt_at_once_run_once(store: Store, client: Client) -> None:
    for number in range(250):
        await enqueue(client, str(number), JSON(body()))
    assert sum(await asyncio.gather(*(adopt(store) for _ in range(4)))) == 250
    assert len({job.id for job in await claim(store, 300)}) == 250


async def test_what_a_stock_client_is_told_of_a_cancelled_job_goes_away_by_itself(store: Store, client: Client) -> None:
    await enqueue(client, "x", JSON(body()))
    await adopt(store)
    await store.cancel("x", "", None)
    assert 0 < await client.ttl(f"{keys.RESULT}x") <= 3600
