"""The engine in a process with its test: what it claims and hands over, and that it outlives what goes wrong."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import hiredis
import pytest
from structlog.testing import capture_logs

from millstream import Context, analysis
from millstream.authoring.analysis import MARK, Analysis
from millstream.background import Background
from millstream.store import keys
from millstream.store.limits import Limits
from millstream.store.not_now import NOT_NOW
from millstream.store.store import Claimed, Store, UnexpectedReply
from millstream_worker.engine import Engine
from millstream_worker.settings import WorkerSettings
from tests.integration.conftest import Client
from tests.integration.fault_proxy import fault_proxy
from tests.integration.jobs import a_job, snapshot, types
from tests.processes import Process, until

pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated close:DeprecationWarning")  # by arq, of redis

Author = Callable[[Context], Awaitable[Any]]
Start = Callable[..., AbstractAsyncContextManager[Engine]]


class Faulty(Store):
    """A store that can be made to answer late, or not at all, as a worker sees it; it notes what it answered."""

    def __init__(self, url: str) -> None:
        super().__init__(url, name="faulty", limits=Limits(), patience_s=5)
        self.replies = asyncio.Event()  # while it is not set, claims are answered late
        self.replies.set()
        self.claims: list[int] = []  # how many jobs each claim has got
        self.refused: set[str] = set()
        self.defects = 0  # ends that go wrong, as no end should

    async def claim(self, *arguments: Any) -> tuple[float | None, list[Claimed]]:
        try:
            due_s, jobs = await super().claim(*arguments)
        except hiredis.ReplyError:
            self.refused.add("claim")
            raise
        self.claims.append(len(jobs))
        if jobs:
            await self.replies.wait()
        return due_s, jobs

    async def abort(self) -> None:
        try:
            await super().abort()
        except hiredis.ReplyError:
            self.refused.add("abort")
            raise

    async def finish(self, *arguments: Any, **more: Any) -> None:
        if self.defects:
            self.defects -= 1
            raise RuntimeError("a defect")
        await super().finish(*arguments, **more)

    async def until_refused(self, call: str) -> None:
        async def refused() -> bool:
            return call in self.refused

        await until(refused, what=f"a refused {call}")


@pytest.fixture
async def faulty(valkey: Process, client: Client) -> AsyncIterator[Faulty]:
    store = Faulty(valkey.url)
    await store.open(10)
    yield store
    await store.close()


@pytest.fixture
async def gate() -> asyncio.Event:
    """For an analysis to wait for; at the end of a test it is set, so that the engine can leave."""
    return asyncio.Event()


@pytest.fixture
def start(tmp_path: Path, gate: asyncio.Event) -> Start:
    """Run an engine that knows one analysis, `a`."""

    @asynccontextmanager
    async def start(store: Store, function: Author, **settings: Any) -> AsyncIterator[Engine]:
        described: Analysis = getattr(analysis("a")(function), MARK)
        of_worker = WorkerSettings(redis_url=store.pipeline.url, data_dir=tmp_path, **settings)
        background = Background()
        engine = Engine(of_worker, {"a": described}, store, "w1", background)
        running = asyncio.create_task(engine.async_run())
        try:
            yield engine
        finally:
            gate.set()
            await engine.drain()
            with suppress(asyncio.CancelledError):
                await running
            await background.close()
            await engine.close()

    return start


async def until_types(store: Store, job: str, *expected: str) -> None:
    async def seen() -> bool:
        return await types(store, job) == list(expected)

    try:
        await until(seen, what=f"{expected}")
    except AssertionError:
        assert await types(store, job) == list(expected)


async def listens(client: Client) -> bool:
    """Is a worker connected that may hear the bell?"""
    return any(found["name"] == "w1-bell" for found in await client.client_list())


async def until_deaf(client: Client) -> None:
    async def deaf() -> bool:
        return not await listens(client)

    await until(deaf, what="the worker to leave the bell to others")


async def at_once(ctx: Context) -> int:
    return ctx.attempt


async def forever(ctx: Context) -> None:
    await ctx.log("here")
    await asyncio.Event().wait()


async def test_a_job_whose_end_went_wrong_runs_again_and_its_slot_is_free(faulty: Faulty, start: Start) -> None:
    faulty.defects = 1
    with capture_logs() as logs:
        async with start(faulty, at_once, lease_s=0.3, max_jobs=1):
            await faulty.submit(a_job("j", max_attempts=2))
            await faulty.submit(a_job("other"))
            await until_types(faulty, "other", "queued", "started", "succeeded")
            await until_types(faulty, "j", "queued", "started", "retrying", "started", "succeeded")
    assert "attempt failed unexpectedly" in [entry["event"] for entry in logs]


async def test_a_worker_whose_claim_is_refused_claims_again(faulty: Faulty, client: Client, start: Start) -> None:
    await client.set(keys.lane(priority="high"), "not what it should be")
    async with start(faulty, at_once):
        await faulty.submit(a_job("j"))
        await faulty.until_refused("claim")
        await client.delete(keys.lane(priority="high"))
        await until_types(faulty, "j", "queued", "started", "succeeded")


async def test_a_worker_that_cannot_look_for_what_is_to_be_aborted_looks_again(
    faulty: Faulty, client: Client, start: Start
) -> None:
    await client.set(keys.ABORT, "not what it should be")
    async with start(faulty, forever):
        await faulty.submit(a_job("j"))
        await faulty.until_refused("abort")
        await until_types(faulty, "j", "queued", "started", "log")
        await client.delete(keys.ABORT)
        await client.zadd(keys.ABORT, {"j": 10**15})
        await until_types(faulty, "j", "queued", "started", "log", "cancelled")


async def test_a_tick_that_failed_is_not_the_last(
    faulty: Faulty, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors, ticked = [RuntimeError("odd"), ValueError("odd")], asyncio.Event()

    async def odd(engine: Engine) -> None:
        if errors:
            raise errors.pop()
        ticked.set()

    monkeypatch.setattr(Engine, "_tick", odd)
    async with start(faulty, at_once):
        await asyncio.wait_for(ticked.wait(), 15)


async def test_a_worker_whose_claim_is_answered_oddly_claims_again(
    faulty: Faulty, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, odd = faulty.run, [UnexpectedReply("odd"), ValueError("odd")]

    async def answered_oddly(name: str, *arguments: Any, **more: Any) -> Any:
        if name == "claim" and odd:
            raise odd.pop()
        return await run(name, *arguments, **more)

    monkeypatch.setattr(faulty, "run", answered_oddly)
    async with start(faulty, at_once):
        await faulty.submit(a_job("j"))
        await until_types(faulty, "j", "queued", "started", "succeeded")


@pytest.mark.parametrize("command", ["claim", "BLPOP"])
async def test_a_worker_that_is_refused_goes_on_and_counts_no_failure(
    valkey: Process, client: Client, start: Start, command: str
) -> None:
    async with fault_proxy(valkey) as proxy:
        store = Store(proxy.url, name="refused", limits=Limits())
        await store.open(10)
        faults = [proxy.inject(command, f"{reply} x", times=1) for reply in NOT_NOW]
        async with start(store, at_once) as engine:
            for fault in faults:
                await fault.seen()
            await store.submit(a_job("j"))
            await until_types(store, "j", "queued", "started", "succeeded")
            assert engine._background.failures == {}
        await store.close()


async def test_a_burst_is_left_to_other_workers_too(faulty: Faulty, start: Start) -> None:
    for number in range(40):
        await faulty.submit(a_job(f"{number:02}"))
    async with start(faulty, at_once, max_jobs=100):
        await until_types(faulty, "39", "queued", "started", "succeeded")
    assert sum(faulty.claims) == 40
    assert max(faulty.claims) <= 16, "with 100 free slots"


async def test_a_worker_claims_no_more_than_it_has_slots_for(faulty: Faulty, start: Start, gate: asyncio.Event) -> None:
    ran: list[str] = []

    async def hold(ctx: Context) -> None:
        ran.append(ctx.job)
        await gate.wait()

    for number in range(5):
        await faulty.submit(a_job(f"{number}"))
    async with start(faulty, hold, max_jobs=2):

        async def busy() -> bool:
            return len(ran) >= 2

        await until(busy, what="two jobs to run")
        statuses = [(await snapshot(faulty, f"{number}")).status for number in range(5)]
        assert statuses == ["running"] * 2 + ["queued"] * 3
        gate.set()
        await until_types(faulty, "4", "queued", "started", "succeeded")
    assert max(faulty.claims) <= 2


async def test_a_cancelled_job_is_stopped_before_any_heartbeat_says_so(faulty: Faulty, start: Start) -> None:
    stopped = asyncio.Event()

    async def hold(ctx: Context) -> None:
        await ctx.log("here")
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    async with start(faulty, hold, lease_s=3600):  # a heartbeat each twenty minutes
        await faulty.submit(a_job("j"))
        await until_types(faulty, "j", "queued", "started", "log")
        await faulty.cancel("j", "", None)
        await asyncio.wait_for(stopped.wait(), 15)
    assert await types(faulty, "j") == ["queued", "started", "log", "cancelled"]


async def test_what_was_being_claimed_when_the_drain_began_is_handed_over(
    faulty: Faulty, client: Client, start: Start
) -> None:
    async def hold(ctx: Context) -> None:
        await asyncio.Event().wait()

    faulty.replies.clear()
    async with start(faulty, hold) as engine:
        await faulty.submit(a_job("j", max_attempts=1))
        await until_types(faulty, "j", "queued", "started")
        draining = asyncio.create_task(engine.drain())
        await until_deaf(client)  # so far has the drain come
        faulty.replies.set()
        await asyncio.wait_for(draining, 15)
        assert not engine.tasks
    assert await types(faulty, "j") == ["queued", "started", "log"]
    found = await snapshot(faulty, "j")
    assert (found.status, found.attempt) == ("queued", 0)


async def test_a_worker_that_leaves_hears_no_bell_that_is_meant_for_others(
    faulty: Faulty, client: Client, start: Start, gate: asyncio.Event
) -> None:
    async def hold(ctx: Context) -> None:
        await gate.wait()

    async with start(faulty, hold, finish_s=3600) as engine:
        await faulty.submit(a_job("j"))
        await until_types(faulty, "j", "queued", "started")
        assert await listens(client)
        draining = asyncio.create_task(engine.drain())
        await until_deaf(client)
        await faulty.submit(a_job("next"))
        assert await client.llen(keys.bell("default")) == 1
        gate.set()
        await asyncio.wait_for(draining, 15)
    assert await types(faulty, "next") == ["queued"], "and it takes no job"
    assert await types(faulty, "j") == ["queued", "started", "succeeded"], "what it ran had time to finish"


async def test_a_drain_does_not_wait_for_what_does_not_let_go_and_its_job_is_handed_over(
    faulty: Faulty, start: Start, gate: asyncio.Event
) -> None:
    async def stubborn(ctx: Context) -> str:
        await ctx.log("here")
        while not gate.is_set():
            with suppress(asyncio.CancelledError):
                await gate.wait()
        return "all the same"

    async with start(faulty, stubborn, drain_s=0.05) as engine:
        await faulty.submit(a_job("j"))
        await until_types(faulty, "j", "queued", "started", "log")
        await asyncio.wait_for(engine.drain(), 15)
        assert len(engine.tasks) == 1
        assert (await snapshot(faulty, "j")).status == "queued"
        assert await types(faulty, "j") == ["queued", "started", "log", "log"]
        gate.set()
    assert await types(faulty, "j") == ["queued", "started", "log", "log"], "what it returned is not told"
