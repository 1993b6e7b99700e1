"""A store that says "not now", before or after it has done what was asked: nothing is lost, nothing happens twice."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

import pytest
import redis.asyncio as redis
from pydantic_core import from_json
from structlog.testing import capture_logs

from millstream import Context, Retry
from millstream.background import Health
from millstream.store import keys
from millstream.store import store as store_module
from millstream.store.limits import Limits
from millstream.store.not_now import NOT_NOW, StoreRefuses
from millstream.store.scripts import load_scripts
from millstream.store.store import Claimed, Store
from millstream_worker import leases
from millstream_worker.attempt import Stop
from millstream_worker.leases import Leases
from millstream_worker.loading import load_analyses
from tests.integration.conftest import Client
from tests.integration.fault_proxy import ANY, Fault, FaultProxy, fault_proxy
from tests.integration.jobs import LONG_S, SHORT_S, a_job, claim, claimed_again, renew, running, snapshot, types
from tests.integration.rpc import Refused, rpc
from tests.integration.test_attempt import begin, forever, outcome
from tests.integration.web import problem, submit, web
from tests.integration.within import within
from tests.processes import Process, Processes, until

PHASES = pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
REPLIES = pytest.mark.parametrize("reply", NOT_NOW)
CHUNKS = 400


@pytest.fixture
async def proxy(valkey: Process, client: Client) -> AsyncIterator[FaultProxy]:
    async with fault_proxy(valkey) as proxy:
        yield proxy


@asynccontextmanager
async def opened(proxy: FaultProxy, patience_s: float = 30) -> AsyncIterator[Store]:
    """A store behind the proxy."""
    store = await Store(proxy.url, name="faulty", limits=Limits(), patience_s=patience_s).open(10)
    try:
        yield store
    finally:
        await store.close()


@pytest.fixture
async def faulty(proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Store]:
    monkeypatch.setattr(store_module, "FIRST_PAUSE_S", 0.001)
    async with opened(proxy) as store:
        yield store


# Each script is called through `faulty`, which is refused once; what came of it is looked at through `store`.


async def refused_once(call: Callable[[], Awaitable[Any]]) -> Any:
    """What is not made again by itself says so, and may be called again."""
    with pytest.raises(StoreRefuses):
        await call()
    return await call()


async def of_submit(store: Store, faulty: Store) -> None:
    job = a_job()
    assert (await faulty.submit(job)).job == job.id
    assert await types(store, job.id) == ["queued"]
    assert job.id in [found.id for found in await claim(store, 100)]


async def of_claim(store: Store, faulty: Store) -> None:
    """After a claim whose reply is lost, the lease runs out as it does for a worker that died."""
    job = a_job(max_attempts=2)
    await store.submit(job)
    found = await refused_once(lambda: claim(faulty, lease_s=SHORT_S))
    again = found[0] if found else await claimed_again(store, job.id)
    assert again.id == job.id
    await store.cancel(job.id, "", None)


async def of_append(store: Store, faulty: Store) -> None:
    job = await running(store)
    await faulty.append(job, 1, [("chunk", b"1"), ("chunk", b"2")])
    await faulty.append(job, 3, [("chunk", b"3")])
    assert await types(store, job.id) == ["queued", "started", "chunk", "chunk", "chunk"]


async def of_renew(store: Store, faulty: Store) -> None:
    job = await running(store, lease_s=LONG_S)
    assert await renew(faulty, "w", 2 * LONG_S, job) == []
    assert await store.pipeline.call("PTTL", keys.LEASE + job.id) > LONG_S * 1000


async def of_finish(store: Store, faulty: Store) -> None:
    job = await running(store)
    await faulty.finish(job, "succeeded", b"{}", events=0)
    assert await types(store, job.id) == ["queued", "started", "succeeded"]


async def of_requeue(store: Store, faulty: Store) -> None:
    job = await running(store, max_attempts=3)
    await faulty.retry(job, {"code": "analysis_error", "message": ""}, 0)
    assert await types(store, job.id) == ["queued", "started", "retrying"]
    again = await claimed_again(store, job.id)
    assert again.attempt == 2
    await faulty.hand_back(again, "")
    assert (await claimed_again(store, job.id)).attempt == 2


async def of_cancel(store: Store, faulty: Store) -> None:
    job = await running(store)
    found = await faulty.cancel(job.id, "", None)
    assert found is not None
    assert found.status == "cancelled"
    assert await types(store, job.id) == ["queued", "started", "cancelled"]


async def of_attach(store: Store, faulty: Store) -> None:
    job = await running(store)
    page = await faulty.attach(job.id, node="n")
    assert page is not None
    assert [event.type for event in page.events] == ["queued", "started"]
    assert await store.pipeline.call("HGET", keys.JOB + job.id, "watch") == b"n"


async def of_detach(store: Store, faulty: Store) -> None:
    job = await running(store)
    await store.attach(job.id, node="n")
    await faulty.detach(job.id, "n")
    assert await store.pipeline.call("HGET", keys.JOB + job.id, "watch") == b""


async def of_positions(store: Store, faulty: Store) -> None:
    job = await running(store)
    assert await faulty.positions([job.id, "none"]) == [(2, "running"), (-1, "")]


async def of_snapshot(store: Store, faulty: Store) -> None:
    job = await running(store)
    assert await faulty.snapshot(job.id) == await store.snapshot(job.id)


async def of_jobs(store: Store, faulty: Store) -> None:
    job = await running(store)
    found, _ = await faulty.jobs("", status="", analysis="", limit=1000, after="", limit_bytes=10**6)
    assert job.id in [one.job for one in found]


async def of_queues(store: Store, faulty: Store) -> None:
    await running(store)
    (stats,) = await faulty.queues(["default"])
    assert stats.running >= 1


async def of_expire(store: Store, faulty: Store) -> None:
    job = a_job()
    await store.submit(job)
    await store.pipeline.call("DEL", keys.BODY + job.id)
    await faulty.expire("default")
    assert await types(store, job.id) == ["queued", "failed"]


async def of_abort(store: Store, faulty: Store) -> None:
    job = await running(store)
    await store.pipeline.call("ZADD", keys.ABORT, 10**15, job.id)
    await refused_once(faulty.abort)
    assert await types(store, job.id) == ["queued", "started", "cancelled"]


async def of_advertise(store: Store, faulty: Store) -> None:
    advertised = [analysis.advertisement(60) for analysis in load_analyses("").values()]
    await refused_once(lambda: faulty.advertise(advertised))
    assert {from_json(item)["name"] for item in await store.analyses()} == {item.name for item in advertised}


async def of_analyses(store: Store, faulty: Store) -> None:
    await store.advertise([analysis.advertisement(60) for analysis in load_analyses("").values()])
    assert await refused_once(faulty.analyses) == await store.analyses()


async def of_adopt(store: Store, faulty: Store) -> None:
    await store.pipeline.call("SET", keys.BODY + "j", b'{"f":"a","a":[],"k":{},"t":null,"et":1}')
    await store.pipeline.call("ZADD", keys.QUEUE, 1, "j")
    await refused_once(lambda: faulty.adopt("default", [keys.QUEUE], {"a": None}, 1))
    assert await types(store, "j") == ["queued"]
    assert [job.id for job in await claim(store)] == ["j"]
    await store.cancel("j", "", None)


CASES: dict[str, Callable[[Store, Store], Awaitable[None]]] = {
    "abort": of_abort, "adopt": of_adopt, "advertise": of_advertise, "analyses": of_analyses, "append": of_append,
    "attach": of_attach, "cancel": of_cancel, "claim": of_claim, "detach": of_detach, "expire": of_expire,
    "finish": of_finish, "jobs": of_jobs, "positions": of_positions, "queues": of_queues, "renew": of_renew,
    "requeue": of_requeue, "snapshot": of_snapshot, "submit": of_submit,
}  # fmt: skip


def test_every_script_is_tried() -> None:
    assert CASES.keys() == load_scripts().keys()


@PHASES
@pytest.mark.parametrize("script", CASES)
async def test_a_script_that_is_refused_by_any_reply_has_happened_once(
    store: Store, faulty: Store, proxy: FaultProxy, script: str, after: bool
) -> None:
    for reply in NOT_NOW:
        fault = proxy.inject(script, f"{reply} injected", after=after, times=1)
        await CASES[script](store, faulty)
        assert fault.met == 1, reply


@REPLIES
async def test_a_call_that_is_refused_for_longer_than_its_patience_says_why(proxy: FaultProxy, reply: str) -> None:
    async with opened(proxy, patience_s=0.05) as store:
        proxy.inject(ANY, f"{reply} injected")
        for call in (store.submit(a_job()), store.cancel("j", "", None), store.workers(), store.check_writable()):
            with pytest.raises(StoreRefuses, match=rf"refuses at the moment: {NOT_NOW[reply]} \({reply}\)"):
                await call


@pytest.mark.parametrize("reply", ["WRONGTYPE x", "BUSYGROUP x", "ERR OOM", "NOPERM x"])
async def test_any_other_error_is_not_waited_for(faulty: Store, proxy: FaultProxy, reply: str) -> None:
    fault = proxy.inject("submit", reply)
    with pytest.raises(Exception, match=reply):
        await faulty.submit(a_job())
    assert fault.met == 1


# An attempt.


async def chunks(store: Store, job: Claimed) -> list[int]:
    page = await store.attach(job.id, limit=10_000, limit_bytes=10**8)
    assert page is not None
    return [json.loads(event.data) for event in page.events if event.type == "chunk"]


def in_trouble(trouble: Callable[[], Awaitable[Any]], seen: Callable[[], Awaitable[Any]], heal: Any) -> Any:
    """An analysis that emits before, during and after a time in which the store is in trouble."""

    async def talk(ctx: Context) -> None:
        for number in range(CHUNKS):
            if number == CHUNKS // 4:
                await trouble()
            elif number == CHUNKS // 2:
                await seen()
                await heal()
            await ctx.emit(number)

    return talk


@PHASES
@REPLIES
async def test_what_is_emitted_while_the_store_refuses_is_in_the_log_once_and_in_order(
    store: Store, faulty: Store, proxy: FaultProxy, reply: str, after: bool
) -> None:
    faults: list[Fault] = []

    async def trouble() -> None:
        faults.append(proxy.inject("append", f"{reply} injected", after=after))

    async def seen() -> None:
        await faults[0].seen()

    async def heal() -> None:
        proxy.heal()

    job = await running(store)
    assert await outcome(faulty, job, in_trouble(trouble, seen, heal)) == "succeeded"
    assert await chunks(store, job) == list(range(CHUNKS))


BUSY_LOOP = "while true do end"
TROUBLES: dict[str, tuple[list[list[object]], list[list[object]]]] = {
    "OOM": ([["CONFIG", "SET", "maxmemory", 1]], [["CONFIG", "SET", "maxmemory", 0]]),
    "NOREPLICAS": ([["CONFIG", "SET", "min-replicas-to-write", 1]], [["CONFIG", "SET", "min-replicas-to-write", 0]]),
    "READONLY": ([["REPLICAOF", "127.0.0.1", 1]], [["REPLICAOF", "NO", "ONE"]]),
    "BUSY": ([["CONFIG", "SET", "busy-reply-threshold", 1], ["EVAL", BUSY_LOOP, 0]], [["SCRIPT", "KILL"]]),
}


@pytest.mark.parametrize("reply", TROUBLES)
async def test_so_it_is_when_a_real_store_is_in_trouble(own_processes: Processes, reply: str) -> None:
    process = await own_processes.store()
    begin_with, end_with = TROUBLES[reply]
    endless: list[asyncio.Task[Any]] = []

    async def trouble() -> None:
        for command in begin_with:
            if BUSY_LOOP in command:
                endless.append(asyncio.create_task(admin.execute_command(*command)))
            else:
                await admin.execute_command(*command)

    async def heal() -> None:
        for command in end_with:
            await admin.execute_command(*command)

    async with redis.Redis.from_url(process.url) as admin, fault_proxy(process) as proxy, opened(proxy) as faulty:

        async def seen() -> None:
            async def refused() -> bool:
                return proxy.errors[reply] > 0

            await until(refused, what=f"the store to answer {reply}")
            with pytest.raises(StoreRefuses, match=reply):
                await faulty.check_writable()

        job = await running(faulty)
        assert await outcome(faulty, job, in_trouble(trouble, seen, heal)) == "succeeded"
        assert await chunks(faulty, job) == list(range(CHUNKS))
        for task in endless:
            with suppress(redis.ResponseError):  # it was killed
                await task


@pytest.mark.parametrize("reply", ["OOM x", "WRONGTYPE x"], ids=["not now, for too long", "a defect"])
async def test_an_attempt_whose_events_are_refused_is_lost_and_never_goes_on_behind_a_hole(
    store: Store, proxy: FaultProxy, reply: str
) -> None:
    job = await running(store, max_attempts=2)
    faults: list[Fault] = []

    async def written() -> bool:
        return await chunks(store, job) == [0]

    async def talk(ctx: Context) -> str:
        await ctx.emit(0)
        await until(written, what="the first chunk")
        faults.append(proxy.inject("append", reply))
        await ctx.emit(1)
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        proxy.heal()
        for number in (2, 3):
            with suppress(Exception):
                await ctx.emit(number)
        return "it went on"

    with capture_logs() as logs:
        async with opened(proxy, patience_s=0.05) as faulty:
            assert await outcome(faulty, job, talk) == "lost"
    assert faults[0].met > 0
    assert await chunks(store, job) == [0]
    assert (await snapshot(store, job.id)).status == "running", "until its lease runs out"
    assert "events could not be written" in [entry["event"] for entry in logs]


@PHASES
@REPLIES
async def test_the_end_of_an_attempt_is_told_once_and_the_job_runs_once(
    store: Store, faulty: Store, proxy: FaultProxy, reply: str, after: bool
) -> None:
    async def give(ctx: Context) -> int:
        return ctx.attempt

    async def ask_again(ctx: Context) -> None:
        raise Retry(delay_s=0)

    for function, script, how, last in (
        (give, "finish", "succeeded", "succeeded"), (ask_again, "requeue", "retrying", "retrying"),
    ):  # fmt: skip
        job = await running(store, max_attempts=2)
        fault = proxy.inject(script, f"{reply} injected", after=after, times=2)
        assert await outcome(faulty, job, function) == how
        assert fault.met == 2
        assert await types(store, job.id) == ["queued", "started", last]
    await claimed_again(store, job.id)
    for why, script, last in ((Stop.TIMEOUT, "finish", "failed"), (Stop.DRAIN, "requeue", "log")):
        job = await running(store, max_attempts=2)
        fault = proxy.inject(script, f"{reply} injected", after=after, times=2)
        attempt, task = await begin(faulty, job, forever)
        attempt.stop(why)
        assert await task == why.value
        assert fault.met == 2
        assert await types(store, job.id) == ["queued", "started", last]


# The heartbeat.


@PHASES
@REPLIES
async def test_a_heartbeat_that_is_refused_is_made_again_soon_and_is_no_failure(
    store: Store, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, reply: str, after: bool
) -> None:
    monkeypatch.setattr(leases, "TRIES", 10_000)
    health, lost = Health(), list[str]()
    job = await running(store)
    fault = proxy.inject("renew", f"{reply} injected", after=after, times=2)
    thread = Leases(
        proxy.url, "w", lease_s=600, stall_s=3600, slots=1, queue="default", health=health,
        on_lost=lambda id, _: lost.append(id),
    )  # fmt: skip
    thread.held.add((job.id, job.token))
    thread.start()

    async def renewed() -> bool:
        return bool(await store.pipeline.call("PTTL", keys.LEASE + job.id) > 2 * LONG_S * 1000 and fault.met == 2)

    try:
        await until(renewed, what="the lease to be renewed")
    finally:
        await asyncio.to_thread(thread.stop)
    assert (health.failures, lost) == ({}, [])


# The API.


@REPLIES
async def test_the_api_answers_503_and_is_not_ready_and_goes_on(
    valkey: Process, store: Store, proxy: FaultProxy, reply: str
) -> None:
    await store.advertise([analysis.advertisement(60) for analysis in load_analyses("").values()])
    process: dict[str, Any] = {"analysis": "process", "params": {"text": "x"}}
    async with (
        within(replace(valkey, url=proxy.url), store_patience_s=0.05) as here,
        web(here.api) as http,
        rpc(here.api) as socket,
    ):
        job = await submit(http, **process)
        assert (await http.get("/readyz")).json() == {"status": "ready"}
        proxy.inject("LPUSHX", f"{reply} injected")
        problem(await http.get("/readyz"), "store_unavailable")
        proxy.inject(ANY, f"{reply} injected")
        for answer in (
            await http.post("/jobs", json=process), await http.delete(f"/jobs/{job}"), await http.get("/readyz"),
            await http.get(f"/jobs/{job}"), await http.get("/workers"),
        ):  # fmt: skip
            detail = problem(answer, "store_unavailable")["detail"]
            assert f"{NOT_NOW[reply]} ({reply})" in detail
        for method, named in (("job.submit", process), ("job.cancel", {"job": job})):
            with pytest.raises(Refused) as caught:
                await socket.call(method, **named)
            assert caught.value.data["type"] == "/problems/store_unavailable"
        proxy.heal()
        assert (await http.get("/readyz")).json() == {"status": "ready"}
        assert (await http.delete(f"/jobs/{job}")).status_code == 202
        await submit(http, **process)
