"""claim: which jobs a worker gets, in which order, and what becomes of those that may not run any more."""

import asyncio
import json

import pytest

from millstream.protocol.jobs import PRIORITIES
from millstream.store import keys
from millstream.store.limits import Limits
from millstream.store.store import LeaseLost, Store
from tests.integration.conftest import Client, database
from tests.integration.jobs import (
    SHORT_S,
    a_job,
    claim,
    claimed_again,
    events,
    everything,
    lease_runs_out,
    milliseconds,
    next_millisecond,
    renew,
    running,
    snapshot,
    types,
)  # fmt: skip
from tests.integration.web import JSONL, web
from tests.processes import Process, Processes, until


async def test_a_claimed_job_runs_under_a_lease(store: Store) -> None:
    job = a_job(max_attempts=4, retry=True, timeout_s=1.5, body=b'{"f":"a"}')
    await store.submit(job)
    (claimed,) = await claim(store, lease_s=600, worker="w7")
    assert (claimed.id, claimed.attempt, claimed.max_attempts, claimed.retry) == (job.id, 1, 4, True)
    assert (claimed.timeout_s, claimed.analysis, claimed.body, claimed.adopted) == (1.5, "a", b'{"f":"a"}', "")
    assert await store.pipeline.call("GET", f"{keys.LEASE}{job.id}") == claimed.token.encode()
    assert 300_000 < await store.pipeline.call("PTTL", f"{keys.LEASE}{job.id}") <= 600_000
    due_ms = int(await store.pipeline.call("ZSCORE", keys.lane(), job.id)) - await milliseconds(store)
    assert 300_000 < due_ms <= 600_001
    started = (await events(store, job.id))[-1]
    assert (started.type, started.attempt, json.loads(started.data)) == ("started", 1, {"attempt": 1, "worker": "w7"})
    found = await snapshot(store, job.id)
    assert (found.status, found.attempt) == ("running", 1)
    assert found.started_at is not None


async def test_a_running_job_is_claimed_by_nobody_else(store: Store) -> None:
    await running(store)
    assert await claim(store, worker="w2") == []


async def test_jobs_are_claimed_in_the_order_of_their_submits(store: Store) -> None:
    jobs = [a_job(f"{number:02}") for number in range(10, 0, -1)]
    for job in jobs:
        await store.submit(job)
        await next_millisecond(store)
    assert [job.id for job in await claim(store, 4)] == [job.id for job in jobs[:4]]
    assert [job.id for job in await claim(store, 100)] == [job.id for job in jobs[4:]]


async def test_urgent_jobs_are_claimed_first(store: Store) -> None:
    jobs = {priority: a_job(priority=priority) for priority in ("low", "default", "high")}
    for job in jobs.values():
        await store.submit(job)
    assert [job.id for job in await claim(store, 2)] == [jobs["high"].id, jobs["default"].id]
    assert [job.id for job in await claim(store, 2)] == [jobs["low"].id]


async def test_a_worker_claims_from_its_own_queue_only(store: Store) -> None:
    await store.submit(a_job("here"))
    await store.submit(a_job("there", queue="other"))
    assert [job.id for job in await claim(store, queue="other")] == ["there"]
    assert [job.id for job in await claim(store)] == ["here"]


async def test_a_delayed_job_is_claimed_when_it_is_due_and_a_worker_knows_when_that_is(store: Store) -> None:
    async def due_ms(job: str) -> float:
        return float(await store.pipeline.call("ZSCORE", keys.lane(), job))

    await store.submit(a_job("later", delay_s=60))
    before = await milliseconds(store)
    wait, jobs = await store.claim("w", 60, 10, "\na\n", "default")
    after = await milliseconds(store) + 1
    assert jobs == []
    assert wait is not None
    assert await due_ms("later") - after <= wait * 1000 <= await due_ms("later") - before + 1
    await store.submit(a_job("soon", delay_s=0.3))
    due = await due_ms("soon")
    await claimed_again(store, "soon")
    assert await milliseconds(store) + 1 > due


async def test_a_worker_knows_when_the_first_job_of_any_lane_is_due(store: Store) -> None:
    for priority, delay_s in (("high", 300), ("default", 100), ("low", 200)):
        await store.submit(a_job(priority=priority, delay_s=delay_s))
    wait, jobs = await store.claim("w", 60, 10, "\na\n", "default")
    assert (jobs, wait is not None and 0 < wait <= 100) == ([], True)


async def test_a_timeout_however_short_is_one(store: Store) -> None:
    assert (await running(store, timeout_s=0.0001)).timeout_s > 0


async def test_a_job_that_this_worker_does_not_know_is_left_to_others_and_not_waited_for(store: Store) -> None:
    await store.submit(a_job("strange", analysis="b"))
    await store.submit(a_job("mine", priority="low"))
    wait, jobs = await store.claim("w", 60, 10, "\na\n", "default")
    assert [job.id for job in jobs] == ["mine"]
    assert wait is None or wait > 0, "the worker would ask again at once, for ever"
    assert [job.id for job in await claim(store, known=["b"])] == ["strange"]


async def test_names_of_analyses_are_compared_as_a_whole(store: Store) -> None:
    await store.submit(a_job(analysis="text"))
    await store.submit(a_job(analysis="a.*"))
    assert await claim(store, known=["text.stats", "context", "ab"]) == []


async def test_more_unknown_jobs_than_are_looked_past_do_not_hide_the_rest_for_ever(store: Store) -> None:
    for number in range(450):
        await store.submit(a_job(f"a{number:03}", analysis="b"))
    await store.submit(a_job("z"))

    async def found() -> bool:
        return [job.id for job in await claim(store)] == ["z"]

    await until(found, what="the job behind the unknown ones")
    ids: set[str] = set()

    async def all_found() -> bool:
        ids.update(job.id for job in await claim(store, 1000, known=["b"]))
        return len(ids) == 450

    await until(all_found, what="the unknown ones, for a worker that knows them")


async def test_a_job_whose_lease_ran_out_is_run_again(store: Store) -> None:
    first = await running(store, lease_s=SHORT_S, max_attempts=2)
    again = await claimed_again(store, first.id)
    assert (again.attempt, again.token != first.token) == (2, True)
    assert await types(store, first.id) == ["queued", "started", "retrying", "started"]
    lost = json.loads((await events(store, first.id))[2].data)
    assert (lost["error"]["code"], lost["attempt"]) == ("worker_lost", 1)


async def test_a_job_keeps_the_time_at_which_it_was_first_started(store: Store) -> None:
    job = await running(store, max_attempts=2)
    first = (await snapshot(store, job.id)).started_at
    await next_millisecond(store)
    await store.retry(job, {"code": "analysis_error", "message": "no"}, 0)
    await claimed_again(store, job.id)
    assert (await snapshot(store, job.id)).started_at == first


async def test_an_attempt_that_the_store_has_forgotten_is_told_from_the_one_that_takes_its_place(
    store: Store, client: Client
) -> None:
    """As when the store came back from a crash without its last second."""
    await store.submit(a_job("j"))
    before = await everything(store)
    (forgotten,) = await claim(store)
    await client.flushdb()
    for key, value in before.items():
        await client.restore(key, 0, value)
    await next_millisecond(store)
    (again,) = await claim(store)
    with pytest.raises(LeaseLost):
        await store.append(forgotten, 1, [("chunk", b"1")])
    assert forgotten.token != again.token


async def test_a_job_whose_last_attempt_is_lost_fails_without_any_worker_asking_for_it(store: Store) -> None:
    job = await running(store, lease_s=SHORT_S, max_attempts=1)
    await lease_runs_out(store, job.id)

    async def ended() -> bool:
        assert await claim(store) == []
        return (await snapshot(store, job.id)).terminal

    await until(ended, what="the end")
    found = await snapshot(store, job.id)
    assert (found.status, json.loads(found.error)["code"]) == ("failed", "attempts_exhausted")
    assert await types(store, job.id) == ["queued", "started", "failed"]


async def test_a_renewed_lease_does_not_run_out(store: Store) -> None:
    job = await running(store, lease_s=60)
    lease = f"{keys.LEASE}{job.id}"
    for _ in range(4):
        await store.pipeline.call("PEXPIRE", lease, "30000")  # as if half of it were over
        await store.pipeline.call("ZINCRBY", keys.lane(), "-30000", job.id)
        assert await renew(store, "w", 60, job) == []
        assert await claim(store, worker="w2") == []
        assert await store.pipeline.call("PTTL", lease) > 30_000
        due_ms = float(await store.pipeline.call("ZSCORE", keys.lane(), job.id))
        assert due_ms - await milliseconds(store) > 30_000
    await store.finish(job, "succeeded", b'{"result":1}')


async def test_what_nobody_claims_ends_as_expired_too(valkey: Process, own_processes: Processes) -> None:
    store = database(valkey, 13)
    worker = await own_processes.worker(store)
    api = await own_processes.api(store, MILLSTREAM_LIFE_S="1", MILLSTREAM_CHECK_S="0.2")
    await worker.kill()
    async with web(api) as http:
        body = {"analysis": "process", "params": {"text": "x"}}
        waiting = [http.post("/jobs", json={**body, "priority": p}, headers={"Accept": JSONL}) for p in PRIORITIES]
        for answer in await asyncio.gather(*waiting):
            queued, failed = (json.loads(line) for line in answer.text.splitlines())
            assert (queued["type"], failed["type"]) == ("queued", "failed")
            assert failed["data"]["error"]["code"] == "expired"
        (queue,) = (await http.get("/queues")).json()
        assert (queue["depth"], queue["delayed"], queue["running"]) == (0, 0, 0)


async def test_only_what_waited_too_long_is_ended_of_a_long_lane(store: Store, client: Client) -> None:
    short = await Store(store.pipeline.url, name="short", limits=Limits(life_s=1)).open(10)
    held = await running(short)
    jobs = [a_job() for _ in range(1300)]
    dead = jobs[3:1100:7]
    await asyncio.gather(*((short if job in dead else store).submit(job) for job in jobs))

    async def gone() -> bool:
        return not await client.exists(*(f"{keys.BODY}{job.id}" for job in dead))

    await until(gone, what="the end of their lives")
    await store.expire("default")
    statuses = [(await snapshot(store, job.id)).status for job in jobs]
    assert statuses == ["failed" if job in dead else "queued" for job in jobs]
    assert await client.zcard(keys.lane()) == len(jobs) - len(dead) + 1
    await short.finish(held, "succeeded", b'{"result":1}')
    await short.close()


async def test_a_job_that_waited_longer_than_it_may_live_ends_as_expired(store: Store, client: Client) -> None:
    short = await Store(store.pipeline.url, name="short", limits=Limits.model_construct(life_s=0.1)).open(10)
    job = a_job()
    await short.submit(job)

    async def gone() -> bool:
        return not await client.exists(f"{keys.BODY}{job.id}")

    await until(gone, what="the end of its life")
    assert await claim(store) == []
    found = await snapshot(store, job.id)
    assert (found.status, json.loads(found.error)["code"]) == ("failed", "expired")
    assert await client.zcard(keys.lane()) == 0
    await short.close()


async def test_a_queue_entry_without_a_job_is_cleared_away(store: Store, client: Client) -> None:
    await client.zadd(keys.lane(), {"nothing": 1})
    assert await claim(store) == []
    assert await client.zcard(keys.lane()) == 0


async def test_a_job_of_ours_that_a_stock_worker_runs_is_left_alone(store: Store, client: Client) -> None:
    job = a_job()
    await store.submit(job)
    await client.set(f"{keys.LEASE}{job.id}", b"1", ex=100)
    assert await claim(store) == []
    assert await client.get(f"{keys.LEASE}{job.id}") == b"1"
    assert await types(store, job.id) == ["queued"]


async def test_a_claim_that_finds_less_than_it_could_take_silences_the_bell(store: Store, client: Client) -> None:
    for _ in range(100):
        await store.submit(a_job())
    assert await client.llen(keys.bell("default")) == 1
    await claim(store, 100)
    assert await client.llen(keys.bell("default")) == 1
    await claim(store, 1)
    assert await client.llen(keys.bell("default")) == 0


@pytest.mark.parametrize("priority", ["high", "default", "low"])
async def test_a_worker_that_cannot_take_all_that_is_due_wakes_another(
    store: Store, client: Client, priority: str
) -> None:
    for _ in range(3):
        await store.submit(a_job(priority=priority))
    await store.submit(a_job(delay_s=60))
    for left in (2, 1, 0):
        await client.delete(keys.bell("default"))  # it was heard
        assert len(await claim(store, 1)) == 1
        assert await client.llen(keys.bell("default")) == (1 if left else 0)


async def test_jobs_that_no_worker_here_knows_do_not_hold_up_their_owner(store: Store) -> None:
    window = store.limits.fair_window
    for _ in range(window + 5):
        await store.submit(a_job(analysis="elsewhere", owner="ann"))
    mine = a_job(owner="ann")
    await store.submit(mine)
    assert [job.id for job in await claim(store, 1)] == [mine.id]
    assert len(await claim(store, window + 5, known=["elsewhere"])) == window + 5
