"""append, finish, requeue, renew: only the owner of a lease writes, and what is sent twice is written once."""

import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from millstream.protocol.errors import Problem
from millstream.store import keys
from millstream.store.limits import Limits
from millstream.store.store import Claimed, LeaseLost, LogFull, Store
from tests.integration.conftest import Client
from tests.integration.jobs import (
    LONG_S,
    SHORT_S,
    a_job,
    claim,
    claimed_again,
    events,
    everything,
    lease_runs_out,
    next_millisecond,
    renew,
    running,
    snapshot,
    types,
)  # fmt: skip
from tests.processes import Process, until

Write = Callable[[Store, Claimed], Awaitable[None]]


async def append(store: Store, job: Claimed) -> None:
    await store.append(job, 1, [("chunk", b"1")])


async def succeed(store: Store, job: Claimed) -> None:
    await store.finish(job, "succeeded", b'{"result":1}', b"for arq")


async def fail(store: Store, job: Claimed) -> None:
    await store.finish(job, "failed", b'{"error":{"code":"analysis_error","message":"no"}}')


async def retry(store: Store, job: Claimed) -> None:
    await store.retry(job, {"code": "analysis_error", "message": "no"}, 0)


async def hand_back(store: Store, job: Claimed) -> None:
    await store.hand_back(job, "leaving")


EVERY_WRITE = [append, succeed, fail, retry, hand_back]
EVERY_END = [succeed, fail, retry, hand_back]


async def writes_nothing(store: Store, job: Claimed, write: Write) -> None:
    before = await everything(store)
    with pytest.raises(LeaseLost):
        await write(store, job)
    assert await everything(store) == before


@pytest.mark.parametrize("write", EVERY_WRITE)
async def test_a_token_that_is_not_the_leases_writes_nothing(store: Store, write: Write) -> None:
    job = await running(store)
    for token in ("", "0", "1", "x", job.token[:-1], job.token + "0"):
        await writes_nothing(store, replace(job, token=token), write)


@pytest.mark.parametrize("write", EVERY_WRITE)
async def test_an_attempt_whose_lease_ran_out_writes_nothing(store: Store, write: Write) -> None:
    job = await running(store, lease_s=SHORT_S)
    await lease_runs_out(store, job.id)
    await writes_nothing(store, job, write)


@pytest.mark.parametrize("write", EVERY_WRITE)
async def test_an_attempt_that_was_replaced_writes_nothing_and_the_new_one_does(store: Store, write: Write) -> None:
    job = await running(store, lease_s=SHORT_S, max_attempts=2)
    again = await claimed_again(store, job.id)
    await writes_nothing(store, job, write)
    await write(store, again)


@pytest.mark.parametrize("write", EVERY_WRITE)
async def test_an_attempt_whose_job_was_cancelled_writes_nothing(store: Store, write: Write) -> None:
    job = await running(store)
    await store.cancel(job.id, "", None)
    await writes_nothing(store, job, write)


@pytest.mark.parametrize("write", [append, succeed, fail])
async def test_an_attempt_that_was_given_back_writes_nothing_more(store: Store, write: Write) -> None:
    job = await running(store)
    await store.hand_back(job, "leaving")
    before = await everything(store)
    try:
        await write(store, job)
    except LeaseLost:
        pass
    assert await everything(store) == before


@pytest.mark.parametrize("write", EVERY_WRITE)
async def test_an_attempt_of_a_job_that_the_store_lost_writes_nothing(
    store: Store, client: Client, write: Write
) -> None:
    job = await running(store)
    await client.flushdb()
    await writes_nothing(store, job, write)


@pytest.mark.parametrize("end", EVERY_END)
async def test_an_end_told_again_after_a_lost_reply_is_fine_and_does_nothing_more(store: Store, end: Write) -> None:
    job = await running(store, key="k", fingerprint="f", max_attempts=3)
    await end(store, job)
    before = await everything(store)
    await end(store, job)
    assert await everything(store) == before


@pytest.mark.parametrize("end", [retry, hand_back])
async def test_an_end_told_again_after_the_job_was_claimed_anew_does_not_disturb_it(store: Store, end: Write) -> None:
    job = await running(store, max_attempts=3)
    await end(store, job)
    (again,) = await claim(store)
    before = await everything(store)
    await end(store, job)
    assert await everything(store) == before
    await succeed(store, again)


async def test_events_sent_again_after_a_lost_reply_are_written_once(store: Store) -> None:
    job = await running(store)
    await store.append(job, 1, [("chunk", b"1"), ("progress", b'{"done":1}')])
    await store.append(job, 1, [("chunk", b"1"), ("progress", b'{"done":1}')])
    await store.append(job, 2, [("progress", b'{"done":1}'), ("log", b"{}"), ("chunk", b"2")])
    assert await types(store, job.id) == ["queued", "started", "chunk", "progress", "log", "chunk"]
    assert [event.seq for event in await events(store, job.id)] == [1, 2, 3, 4, 5, 6]


async def test_events_after_some_that_the_store_lost_are_not_written(store: Store) -> None:
    """As when the store came back from a crash without its last second."""
    job = await running(store)
    await store.append(job, 1, [("chunk", b"1")])
    await writes_nothing(store, job, lambda store, job: store.append(job, 3, [("chunk", b"3")]))


async def test_an_end_is_not_told_where_the_store_lost_events_of_the_attempt(store: Store) -> None:
    job = await running(store)
    await store.append(job, 1, [("chunk", b"1"), ("chunk", b"2")])
    result = b'{"result":1}'
    await writes_nothing(store, job, lambda store, job: store.finish(job, "succeeded", result, events=3))
    await store.finish(job, "succeeded", result, events=2)


async def test_each_attempt_numbers_its_events_anew(store: Store) -> None:
    job = await running(store, max_attempts=2)
    await store.append(job, 1, [("chunk", b"1"), ("chunk", b"2")])
    await retry(store, job)
    (again,) = await claim(store)
    await store.append(again, 1, [("chunk", b"3")])
    chunks = [(event.attempt, event.data) for event in await events(store, job.id) if event.type == "chunk"]
    assert chunks == [(1, b"1"), (1, b"2"), (2, b"3")]


async def test_data_goes_through_the_store_byte_for_byte(store: Store) -> None:
    job = await running(store)
    data = ['"ü \U0001f600 \\n \\u0000"'.encode(), b'"' + b"x" * 300_000 + b'"', b"null", b'"%d {} %s"']
    await store.append(job, 1, [("chunk", item) for item in data])
    page = await store.attach(job.id, limit_bytes=10_000_000)
    assert page is not None
    assert [event.data for event in page.events[2:]] == data


async def test_the_last_progress_is_part_of_the_snapshot(store: Store) -> None:
    job = await running(store)
    await store.append(job, 1, [("progress", b'{"done":1}'), ("progress", b'{"done":2,"total":4}'), ("chunk", b"1")])
    assert (await snapshot(store, job.id)).progress == b'{"done":2,"total":4}'


async def limited(store: Store, **limits: Any) -> Store:
    return await Store(store.pipeline.url, name="limited", limits=Limits.model_construct(**limits)).open(10)


async def test_a_log_takes_so_many_events_and_then_nothing_of_a_call(store: Store) -> None:
    small = await limited(store, log_events=4)
    job = await running(store)
    await small.append(job, 1, [("chunk", b"1")])
    with pytest.raises(LogFull):
        await small.append(job, 2, [("chunk", b"2"), ("chunk", b"3")])
    assert await types(store, job.id) == ["queued", "started", "chunk"]
    await small.append(job, 2, [("chunk", b"2")])
    with pytest.raises(LogFull):
        await small.append(job, 3, [("chunk", b"3")])
    await small.finish(job, "failed", b'{"error":{"code":"result_too_large","message":"full"}}')
    assert (await snapshot(store, job.id)).status == "failed"
    await small.close()


@pytest.mark.parametrize("ends", ["failed", "cancelled", "lost", "succeeded"])
async def test_a_log_that_overran_goes_with_the_end_of_its_job(store: Store, client: Client, ends: str) -> None:
    small = await limited(store, log_bytes=100_000)
    job = await running(store, lease_s=SHORT_S if ends == "lost" else LONG_S)
    await small.append(job, 1, [("chunk", b'"%b"' % (b"x" * 90_000))])
    before = (await events(store, job.id))[1].cursor
    with pytest.raises(LogFull):
        await small.append(job, 2, [("chunk", b'"%b"' % (b"x" * 20_000))])
    match ends:
        case "cancelled":
            await store.cancel(job.id, "", None)
        case "lost":
            await lease_runs_out(store, job.id)

            async def ended() -> bool:
                await claim(store)
                return (await snapshot(store, job.id)).terminal

            await until(ended, what="its end")
        case _:
            await store.finish(job, ends, b'{"result":1,"error":{"code":"result_too_large","message":"full"}}')
    seqs = [event.seq for event in await events(store, job.id)]
    assert seqs == ([1, 2, 3, 4] if ends == "succeeded" else [4])
    found = await snapshot(store, job.id)
    assert (found.cursor.startswith("4-"), found.terminal) == (True, True)
    assert found.error != b"null" or ends in ("cancelled", "succeeded")
    page = await store.attach(job.id, before)
    assert page is not None
    assert page.gap is (ends != "succeeded")
    assert 0 < await client.pttl(f"{keys.LOG}{job.id}") <= 3_600_000
    await small.close()


async def test_a_log_takes_so_many_bytes(store: Store) -> None:
    small = await limited(store, log_bytes=1000)
    job = await running(store)
    await small.append(job, 1, [("chunk", b"1" * 900)])
    with pytest.raises(LogFull):
        await small.append(job, 2, [("chunk", b"1" * 200)])
    await small.append(job, 2, [("chunk", b"1" * 100)])
    await small.close()


async def test_events_sent_again_do_not_count_towards_the_limits_of_the_log(store: Store) -> None:
    small = await limited(store, log_events=4, log_bytes=1000)
    job = await running(store)
    both = [("chunk", b"1" * 400), ("chunk", b"2" * 400)]
    await small.append(job, 1, both)
    await small.append(job, 1, both)
    assert await types(store, job.id) == ["queued", "started", "chunk", "chunk"]
    await small.close()


@pytest.mark.parametrize("end", [succeed, fail])
async def test_the_end_leaves_the_queue_and_gives_what_is_kept_a_time_to_live(
    store: Store, client: Client, end: Write
) -> None:
    kept = await limited(store, keep_s=50)
    job = await running(store, owner="ann", key="k", fingerprint="f")
    await client.set(f"{keys.RETRY}{job.id}", 1)  # by a stock worker that had it before
    await end(kept, job)
    assert await client.zcard(keys.lane()) == 0
    for key in (f"{keys.BODY}{job.id}", f"{keys.LEASE}{job.id}", f"{keys.RETRY}{job.id}", f"{keys.INFLIGHT}ann"):
        assert not await client.exists(key), key
    for key in (f"{keys.JOB}{job.id}", f"{keys.LOG}{job.id}", f"{keys.KEY}ann:k"):
        assert 0 < await client.ttl(key) <= 50
    assert (await snapshot(store, job.id)).finished_at is not None
    await kept.close()


async def test_a_result_for_stock_arq_is_kept_only_where_it_is_given(store: Store, client: Client) -> None:
    with_result, without = await running(store), await running(store)
    await store.finish(with_result, "succeeded", b'{"result":1}', b"for arq")
    await store.finish(without, "succeeded", b'{"result":1}')
    assert await client.get(f"{keys.RESULT}{with_result.id}") == b"for arq"
    assert await client.ttl(f"{keys.RESULT}{with_result.id}") > 0
    assert not await client.exists(f"{keys.RESULT}{without.id}")


async def test_a_retry_waits_for_its_delay_and_uses_up_an_attempt(store: Store) -> None:
    job = await running(store, max_attempts=2)
    await store.retry(job, {"code": "analysis_error", "message": "no"}, 1)
    found = await snapshot(store, job.id)
    assert (found.status, found.attempt) == ("queued", 1)
    wait, jobs = await store.claim("w", 60, 10, "\na\n", "default")
    assert jobs == []
    assert wait is not None
    assert 0.05 < wait <= 1
    assert (await claimed_again(store, job.id)).attempt == 2
    retrying = (await events(store, job.id))[2]
    error = {"code": "analysis_error", "message": "no"}
    assert json.loads(retrying.data) == {"error": error, "delay_s": 1, "attempt": 1}


async def test_a_job_that_is_handed_back_keeps_its_attempt_and_its_place(store: Store) -> None:
    first = await running(store)
    await next_millisecond(store)
    await store.submit(a_job("later"))
    await next_millisecond(store)
    await store.hand_back(first, "leaving")
    assert (await snapshot(store, first.id)).attempt == 0
    jobs = await claim(store)
    assert [(job.id, job.attempt) for job in jobs] == [(first.id, 1), ("later", 1)]
    assert await types(store, first.id) == ["queued", "started", "log", "started"]


@pytest.mark.parametrize("adopted", [False, True], ids=["ours", "of stock arq"])
async def test_a_job_that_is_handed_back_more_often_than_it_may_uses_up_its_attempts(
    store: Store, client: Client, valkey: Process, adopted: bool
) -> None:
    few = await Store(valkey.url, name="few", limits=Limits(hand_backs=2)).open(10)
    try:
        if adopted:
            await client.set(keys.BODY + "j", b'{"f":"a","a":[],"k":{},"t":null,"et":1}')
            await client.zadd(keys.QUEUE, {"j": 1})
            await few.adopt("default", [keys.QUEUE], {"a": None}, 2)
        else:
            await store.submit(a_job("j", max_attempts=2))
        attempts = []
        while claimed := await claim(few):
            attempts.append(claimed[0].attempt)
            await few.hand_back(claimed[0], "leaving")
            await few.hand_back(claimed[0], "leaving")  # again, after a lost reply
        assert attempts == [1, 1, 1, 2]
        last = (await events(store, "j"))[-1]
        message = "The job was handed back 4 times by workers that stopped while it ran."
        assert (last.type, last.attempt) == ("failed", 2)
        assert json.loads(last.data)["error"] == {"code": "attempts_exhausted", "message": message}
        result = await client.get(keys.RESULT + "j")
        assert json.loads(result)["r"] == message if adopted else result is None
        assert await client.zcard(keys.QUEUE) == await client.zcard(keys.lane()) == 0
    finally:
        await few.close()


@pytest.mark.parametrize("end", [retry, hand_back])
async def test_a_job_that_is_given_back_waits_in_its_own_lane_and_a_worker_is_woken_for_it(
    store: Store, client: Client, end: Write
) -> None:
    await store.submit(a_job("j", queue="q", priority="high", max_attempts=2))
    (job,) = await claim(store, queue="q")
    await store.submit(a_job("other", queue="q"))
    await client.delete(keys.bell("q"))  # it was heard
    await end(store, job)
    assert await client.llen(keys.bell("q")) == 1
    assert [again.id for again in await claim(store, 1, queue="q")] == ["j"]


async def test_a_heartbeat_says_what_was_lost_and_renews_only_what_is_owned(store: Store) -> None:
    good, cancelled = await running(store), await running(store)
    replaced = await running(store, lease_s=SHORT_S, max_attempts=2)
    await store.cancel(cancelled.id, "", None)
    again = await claimed_again(store, replaced.id, lease_s=6000)
    lost = await renew(store, "w", 600, good, cancelled, replaced)
    assert sorted(lost) == sorted((job.id, job.token) for job in (cancelled, replaced))
    assert 300_000 < await store.pipeline.call("PTTL", f"{keys.LEASE}{good.id}") <= 600_000
    assert await store.pipeline.call("PTTL", f"{keys.LEASE}{again.id}") > 3_000_000
    assert not await store.pipeline.call("EXISTS", f"{keys.LEASE}{cancelled.id}")


async def test_a_heartbeat_lists_the_worker_for_a_lease_and_a_second_whatever_the_lease_of_others(
    store: Store, client: Client
) -> None:
    await renew(store, "w1", 600)
    await renew(store, "w2", 6000)
    assert await client.zrange(keys.WORKERS, 0, -1) == [b"w1", b"w2"]
    assert 300_000 < await client.pttl(f"{keys.WORKER}w1") <= 601_000
    assert 3_000_000 < await client.pttl(f"{keys.WORKER}w2") <= 6_001_000
    await client.zadd(keys.WORKERS, {"w1": 1})  # as if its lease and a second were over
    await renew(store, "w3", 600)
    assert await client.zrange(keys.WORKERS, 0, -1) == [b"w3", b"w2"]


async def test_what_runs_for_long_outlives_its_time_to_live(store: Store, client: Client) -> None:
    short = await Store(store.pipeline.url, name="short", limits=Limits(life_s=100)).open(10)
    await short.submit(a_job("j", owner="ann"))
    (job,) = await claim(short)
    for key in (f"{keys.BODY}j", f"{keys.JOB}j", f"{keys.LOG}j", f"{keys.INFLIGHT}ann"):
        await client.pexpire(key, 5000)
    assert await renew(short, "w", 30, job) == []
    for key in (f"{keys.BODY}j", f"{keys.JOB}j", f"{keys.LOG}j", f"{keys.INFLIGHT}ann"):
        assert await client.ttl(key) > 90, key
    await short.close()


async def test_a_key_names_its_job_for_as_long_as_that_runs(store: Store, client: Client) -> None:
    job = await running(store, owner="ann", key="k", fingerprint="f")
    await client.pexpire(f"{keys.KEY}ann:k", 60_000)  # it has run for nearly a life
    assert await renew(store, "w", 30, job) == []
    assert await client.pttl(f"{keys.KEY}ann:k") >= await client.pttl(f"{keys.JOB}{job.id}"), "as the record"


async def test_what_runs_for_long_is_in_flight_all_the_while(store: Store, client: Client) -> None:
    job = await running(store, owner="ann")
    await client.zadd(f"{keys.INFLIGHT}ann", {job.id: 1})  # its life would have ended long ago
    assert await renew(store, "w", 30, job) == []
    await in_flight(store, "ann", 1)


async def in_flight(store: Store, owner: str, count: int) -> None:
    """So many jobs of the owner's count, and one more is one too many."""
    small = await limited(store, owner_in_flight=count)
    with pytest.raises(Problem) as caught:
        await small.submit(a_job(owner=owner))
    assert caught.value.slug == "too_many_in_flight"
    await small.close()
