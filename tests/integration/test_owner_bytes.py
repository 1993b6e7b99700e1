"""How many bytes one owner's jobs may hold in the store, those that have ended included."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from millstream.protocol.errors import Problem
from millstream.store import keys
from millstream.store.limits import Limits
from millstream.store.store import Claimed, LogFull, Store
from tests.integration.conftest import Client, Stack
from tests.integration.jobs import a_job, claim, events, everything, renew, running, snapshot
from tests.integration.rpc import plain
from tests.integration.web import problem, web
from tests.integration.within import within
from tests.processes import until

BIG = b'"%b"' % (b"x" * 10_000)
RESULT = b'{"result":%b}' % BIG


@asynccontextmanager
async def limited(store: Store, **limits: Any) -> AsyncIterator[Store]:
    other = await Store(store.pipeline.url, name="limited", limits=Limits.model_construct(**limits)).open(10)
    yield other
    await other.close()


async def held(client: Client, owner: str = "ann") -> tuple[int, int]:
    """What the jobs hold that have not ended, and those that have."""
    open, ended = await client.hmget(f"{keys.BYTES}{owner}", "open", "ended")
    return int(open or 0), int(ended or 0)


async def refused(store: Store, **job: Any) -> Problem:
    with pytest.raises(Problem) as caught:
        await store.submit(a_job(**{"owner": "ann", **job}))
    assert caught.value.slug == "too_much_kept"
    return caught.value


async def ended_job(store: Store, owner: str = "ann") -> Claimed:
    job = await running(store, owner=owner)
    await store.finish(job, "succeeded", RESULT)
    return job


async def test_bytes_of_bodies_logs_and_results_are_counted_and_move_with_the_end(store: Store, client: Client) -> None:
    job = await running(store, owner="ann", body=BIG)
    assert await held(client) == (len(BIG), 0)
    await store.append(job, 1, [("chunk", BIG), ("log", BIG)])
    assert await held(client) == (3 * len(BIG), 0)
    await store.append(job, 1, [("chunk", BIG), ("log", BIG)])  # again, after a lost reply
    assert await held(client) == (3 * len(BIG), 0)
    for _ in range(2):
        await store.finish(job, "succeeded", RESULT)
        assert await held(client) == (0, 2 * len(BIG) + len(RESULT))


async def test_a_submit_that_is_refused_or_made_again_counts_for_nothing(store: Store, client: Client) -> None:
    job = a_job(owner="ann", body=BIG, key="k", fingerprint="f")
    for _ in range(3):
        await store.submit(job)
    assert await held(client) == (len(BIG), 0)
    async with limited(store, owner_bytes=2 * len(BIG) - 1) as small:
        before = await everything(store)
        await refused(small, body=BIG)
        assert await everything(store) == before


@pytest.mark.parametrize("ends", ["succeeded", "failed", "cancelled", "expired", "full", "lost"])
async def test_whichever_the_end_what_is_kept_counts_and_nothing_else(store: Store, client: Client, ends: str) -> None:
    async with limited(store, log_bytes=15_000) as small:
        job = await running(store, owner="ann", body=BIG)
        await small.append(job, 1, [("chunk", BIG)])
        match ends:
            case "cancelled":
                await store.cancel(job.id, "ann", None)
            case "expired":
                await client.delete(f"{keys.BODY}{job.id}", f"{keys.LEASE}{job.id}")
                await store.expire("default")
            case "lost":
                await client.delete(f"{keys.LEASE}{job.id}")
                await client.zadd(keys.lane(), {job.id: 1})
                await claim(store)
            case "full":
                with pytest.raises(LogFull):
                    await small.append(job, 2, [("chunk", BIG)])
                await store.finish(job, "failed", b'{"error":{}}')
            case _:
                await store.finish(job, ends, RESULT)
    assert (await snapshot(store, job.id)).terminal
    kept = sum(len(event.data) for event in await events(store, job.id) if event.type not in ("queued", "started"))
    assert await held(client) == (0, kept)


async def test_beyond_its_bytes_an_owner_submits_no_more_until_some_are_no_longer_kept(
    store: Store, client: Client
) -> None:
    async with limited(store, owner_bytes=25_000, keep_s=2) as small:
        for _ in range(2):
            await ended_job(small)
        problem = await refused(small, body=BIG)
        assert "25000" in problem.detail
        assert problem.retry_after_s is not None
        assert 1 <= problem.retry_after_s <= 3
        await small.submit(a_job(owner="bob", body=BIG))
        await small.submit(a_job(owner="ann"))

        async def accepted() -> bool:
            with suppress(Problem):
                return bool(await small.submit(a_job(owner="ann", body=BIG)))
            return False

        await until(accepted, what="room")
        assert (await held(client))[1] < 25_000


async def test_clients_are_told_of_it_whichever_way_they_submit(stack: Stack) -> None:
    text = "x" * 400_000
    body = {"analysis": "process", "params": {"text": text}, "delay_s": 600}
    async with within(stack.store, owner_bytes=1024**2) as here, web(here.api) as http, plain(here.api) as socket:
        accepted = []
        while (answer := await http.post("/jobs", json=body)).status_code == 202:
            accepted.append(answer.json()["job"])
        assert len(accepted) <= 2
        assert "the limit is 1048576" in problem(answer, "too_much_kept")["detail"]
        assert int(answer.headers["retry-after"]) >= 1
        await socket.send(text)
        assert str(await socket.recv()).startswith("Error: With this one your jobs hold ")
        for job in accepted:
            await http.delete(f"/jobs/{job}")


async def test_what_has_not_ended_may_not_log_more_either_and_others_may(store: Store) -> None:
    async with limited(store, owner_bytes=35_000) as small:
        greedy, modest, other = [await running(store, owner=owner) for owner in ("ann", "ann", "bob")]
        await small.append(greedy, 1, [("chunk", BIG)] * 3)
        for _ in range(2):
            with pytest.raises(LogFull):
                await small.append(greedy, 4, [("chunk", BIG)])
        await small.append(other, 1, [("chunk", BIG)])
        await small.append(modest, 1, [("chunk", b"1")])
        await small.finish(greedy, "failed", b'{"error":{}}')
        await small.append(modest, 2, [("chunk", BIG)] * 3)
        await small.finish(modest, "succeeded", RESULT)
        assert len(await events(store, greedy.id)) == 1
        assert len(await events(store, modest.id)) == 7


async def test_a_count_that_went_astray_comes_right_by_itself(store: Store, client: Client) -> None:
    async with limited(store, owner_bytes=25_000) as small:
        job = await running(store, owner="ann", body=BIG)
        await client.delete(f"{keys.BYTES}ann")
        await store.finish(job, "succeeded", RESULT)
        assert (await held(client))[0] == 0
        await client.hset(f"{keys.BYTES}ann", "open", 1_000_000)  # of jobs that were lost without an end
        await small.submit(a_job(owner="ann", body=BIG))
        assert (await held(client))[0] == len(BIG)


async def test_the_count_lives_as_long_as_what_it_counts_and_does_not_grow_with_time(
    store: Store, client: Client
) -> None:
    key = f"{keys.BYTES}ann"
    job = await running(store, owner="ann")
    await client.pexpire(key, 60_000)
    await renew(store, "w", 30, job)
    assert await client.pttl(key) > 86_000_000
    async with limited(store, keep_s=1_000_000) as long:
        await long.finish(job, "succeeded", RESULT)
    assert await client.pttl(key) > 1_000_000_000
    await client.hset(key, mapping={str(number): 10 for number in range(1, 200)})  # years ago
    await client.hincrby(key, "ended", 10 * 199)
    await ended_job(store)
    assert await client.hlen(key) == 4
    assert (await held(client))[1] == 2 * len(RESULT)
