"""submit: what is accepted, once, and what is refused."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from millstream.protocol.errors import Problem
from millstream.store import keys
from millstream.store.limits import Limits
from millstream.store.store import Store, UnexpectedReply
from tests.integration.conftest import Client
from tests.integration.jobs import a_job, claim, events, everything, next_millisecond, renew, running, snapshot
from tests.processes import until


@asynccontextmanager
async def limited(store: Store, **limits: Any) -> AsyncIterator[Store]:
    """The same store under other limits."""
    other = await Store(store.pipeline.url, name="limited", limits=Limits.model_construct(**limits)).open(10)
    yield other
    await other.close()


async def test_an_accepted_job_is_queued_with_its_first_event(store: Store) -> None:
    job = a_job(analysis='odd "name"', queue="q")
    submitted = await store.submit(job)
    assert (submitted.job, submitted.status, submitted.duplicate) == (job.id, "queued", False)
    (first,) = await events(store, job.id)
    assert (first.seq, first.type, first.attempt) == (1, "queued", 0)
    assert json.loads(first.data) == {"analysis": 'odd "name"', "queue": "q"}
    assert first.cursor == submitted.cursor
    found = await snapshot(store, job.id)
    assert (found.status, found.cursor, found.attempt) == ("queued", str(submitted.cursor), 0)
    assert found.started_at is None


async def test_the_same_call_again_is_accepted_and_changes_nothing(store: Store) -> None:
    job = a_job()
    first = await store.submit(job)
    before = await everything(store)
    again = await store.submit(job)
    assert (again.job, again.status, again.cursor, again.duplicate) == (job.id, "queued", first.cursor, False)
    assert await everything(store) == before


async def test_a_key_used_again_for_the_same_request_is_the_same_job(store: Store) -> None:
    first = await store.submit(a_job(key="k", fingerprint="f"))
    before = await everything(store)
    again = await store.submit(a_job(key="k", fingerprint="f"))
    assert (again.job, again.status, again.cursor, again.duplicate) == (first.job, "queued", first.cursor, True)
    assert await everything(store) == before


async def test_a_key_of_a_job_that_ended_still_names_it(store: Store) -> None:
    job = await running(store, key="k", fingerprint="f")
    await store.finish(job, "succeeded", b'{"result":1}')
    again = await store.submit(a_job(key="k", fingerprint="f"))
    assert (again.job, again.status, again.duplicate) == (job.id, "succeeded", True)


async def test_a_key_used_for_another_request_is_a_conflict(store: Store) -> None:
    await store.submit(a_job(key="k", fingerprint="f"))
    before = await everything(store)
    with pytest.raises(Problem) as caught:
        await store.submit(a_job(key="k", fingerprint="g"))
    assert caught.value.slug == "idempotency_conflict"
    assert await everything(store) == before


async def test_owners_do_not_share_their_keys(store: Store) -> None:
    first = await store.submit(a_job(key="k", fingerprint="f", owner="ann"))
    second = await store.submit(a_job(key="k", fingerprint="f", owner="bob"))
    assert first.job != second.job
    assert not second.duplicate


async def test_many_submits_at_once_with_one_key_are_one_job(store: Store) -> None:
    submitted = await asyncio.gather(*(store.submit(a_job(key="k", fingerprint="f")) for _ in range(20)))
    assert len({item.job for item in submitted}) == 1
    assert sum(not item.duplicate for item in submitted) == 1
    assert len(await claim(store)) == 1


async def test_a_queue_that_is_full_takes_no_job_and_other_lanes_still_do(store: Store) -> None:
    async with limited(store, queue_depth=2) as small:
        await small.submit(a_job())
        await small.submit(a_job())
        before = await everything(store)
        with pytest.raises(Problem) as caught:
            await small.submit(a_job())
        assert (caught.value.slug, caught.value.retry_after_s) == ("queue_full", 1)
        assert await everything(store) == before
        await small.submit(a_job(priority="high"))
        await small.submit(a_job(queue="other"))


async def test_jobs_that_wait_for_others_of_their_owner_count_in_the_depth_of_a_queue(store: Store) -> None:
    async with limited(store, queue_depth=3, fair_window=1) as small:
        for _ in range(3):
            await small.submit(a_job(owner="ann"))
        with pytest.raises(Problem) as caught:
            await small.submit(a_job(owner="bob"))
        assert caught.value.slug == "queue_full"


async def test_a_job_that_ends_makes_room_in_a_full_queue(store: Store) -> None:
    async with limited(store, queue_depth=1) as small:
        job = await running(store)
        with pytest.raises(Problem):
            await small.submit(a_job())
        await store.finish(job, "succeeded", b'{"result":1}')
        await small.submit(a_job())


async def test_an_owner_may_have_so_many_jobs_in_flight_and_others_are_not_in_the_way(store: Store) -> None:
    async with limited(store, owner_in_flight=2) as small:
        first = await small.submit(a_job(owner="ann"))
        await small.submit(a_job(owner="ann"))
        with pytest.raises(Problem) as caught:
            await small.submit(a_job(owner="ann"))
        assert caught.value.slug == "too_many_in_flight"
        await small.submit(a_job(owner="bob"))
        await store.cancel(first.job, "ann", None)
        await small.submit(a_job(owner="ann"))


async def test_a_job_that_ran_out_of_life_is_not_in_flight_any_more(store: Store) -> None:
    await store.submit(a_job(owner="ann"))
    async with limited(store, owner_in_flight=2, life_s=1) as small:
        await small.submit(a_job(owner="ann"))
        with pytest.raises(Problem):
            await small.submit(a_job(owner="ann"))

        async def accepted() -> bool:
            with suppress(Problem):
                return bool(await small.submit(a_job(owner="ann")))
            return False

        await until(accepted, what="room in flight")


async def test_a_refused_submit_leaves_its_key_free(store: Store) -> None:
    async with limited(store, queue_depth=1) as small:
        await small.submit(a_job())
        with pytest.raises(Problem):
            await small.submit(a_job(key="k", fingerprint="f"))
    assert not (await store.submit(a_job(key="k", fingerprint="f"))).duplicate


async def test_every_key_of_a_new_job_has_a_time_to_live_but_its_lane_and_the_bell(store: Store) -> None:
    await store.submit(a_job(key="k", fingerprint="f", owner="ann"))
    lasting = [key for key in await everything(store) if await store.pipeline.call("PTTL", key) == -1]
    assert sorted(lasting) == [keys.bell("default").encode(), keys.lane().encode()]


async def test_an_answer_that_is_not_known_is_taken_for_no_other(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    async def odd(*_: object, **__: object) -> list[object]:
        return [b"paused", 3, -1]  # what a later version may say

    monkeypatch.setattr(store, "run", odd)
    with pytest.raises(UnexpectedReply, match="paused"):
        await store.submit(a_job())


async def test_a_delayed_job_lives_for_its_delay_and_a_life(store: Store, client: Client) -> None:
    async with limited(store, life_s=2) as short:
        await short.submit(a_job("j", delay_s=60))
        for key in (f"{keys.BODY}j", f"{keys.JOB}j", f"{keys.LOG}j"):
            assert await client.pttl(key) > 60_000, key


@pytest.mark.parametrize("in_flight", [0, 1])
async def test_the_list_of_an_owners_jobs_never_exceeds_its_bound_and_keeps_the_newest(
    store: Store, client: Client, in_flight: int
) -> None:
    async with limited(store, owner_listed=5) as small:
        jobs = [(await small.submit(a_job(owner="ann", delay_s=600))).job for _ in range(in_flight)]
        for _ in range(8):
            await next_millisecond(store)
            jobs.append((await small.submit(a_job(owner="ann"))).job)
            await store.cancel(jobs[-1], "ann", None)
            listed = await client.zrange(f"{keys.JOBS}ann", 0, -1)
            assert listed == [job.encode() for job in jobs[-5:]]


async def test_the_list_of_an_owners_jobs_forgets_those_of_which_nothing_is_left(store: Store, client: Client) -> None:
    await client.zadd(f"{keys.JOBS}ann", {"long ago": 1, "longer ago": 0})
    jobs = [(await store.submit(a_job(owner="ann"))).job.encode() for _ in range(2)]
    assert set(await client.zrange(f"{keys.JOBS}ann", 0, -1)) == {*jobs}


async def test_the_list_of_an_owners_jobs_keeps_what_waits_for_long(store: Store, client: Client) -> None:
    job = await store.submit(a_job(owner="ann", delay_s=600))
    await client.zadd(f"{keys.JOBS}ann", {job.job: 1})  # years ago
    await store.submit(a_job(owner="ann"))
    assert await client.zscore(f"{keys.JOBS}ann", job.job) == 1


LISTS = [f"{kind}ann" for kind in (keys.JOBS, keys.INFLIGHT)]
FRONT = f"{keys.FRONT}{keys.lane('default', 'default')}:ann"


@pytest.mark.parametrize("number", [1, 3, 63, 64, 65])
async def test_lists_and_counters_live_as_long_as_what_they_hold(store: Store, client: Client, number: int) -> None:
    """Whatever the number of jobs: days went by, and one comes."""
    for _ in range(number - 1):
        await store.submit(a_job(owner="ann"))
        for key in (*LISTS, FRONT):
            await client.pexpire(key, 60_000)
    await store.submit(a_job(owner="ann"))
    for key in (*LISTS, *([FRONT] if number <= store.limits.fair_window else [])):
        assert await client.pttl(key) > 86_000_000, key
    assert await client.zcard(f"{keys.INFLIGHT}ann") == number


async def test_a_job_of_a_short_life_shortens_no_list_of_others(store: Store, client: Client) -> None:
    await store.submit(a_job(owner="ann"))
    async with limited(store, life_s=1) as short:
        await short.submit(a_job(owner="ann"))
    for key in (*LISTS, FRONT):
        assert await client.pttl(key) > 86_000_000, key


async def test_what_runs_for_days_and_what_is_kept_for_days_stays_on_the_list(store: Store, client: Client) -> None:
    job = await running(store, owner="ann")
    for was, expected in ((60_000, 86_000_000), (200_000_000, 199_000_000)):
        for key in LISTS:
            await client.pexpire(key, was)
        await renew(store, "w", 30, job)
        for key in LISTS:
            assert await client.pttl(key) > expected, key
    async with limited(store, keep_s=1_000_000) as long:
        await long.finish(job, "succeeded", b'{"result":1}')
    assert await client.pttl(f"{keys.JOBS}ann") > 900_000_000
