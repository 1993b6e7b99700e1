"""One attempt as a worker runs it: what its analysis says is written, bounded, before its end, and it ends once."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from millstream import Context, Final, Retry, analysis
from millstream.authoring.analysis import MARK, Analysis
from millstream.confined_fs import ServedDirectory
from millstream.store import keys
from millstream.store.limits import Limits
from millstream.store.store import Claimed, LeaseLost, Store
from millstream_worker.attempt import Attempt, Stop
from millstream_worker.executor import InLoop
from millstream_worker.settings import WorkerSettings
from tests.integration.conftest import Client
from tests.integration.jobs import a_job, claim, events, running, types
from tests.processes import Process

Author = Callable[[Context], Awaitable[Any]]


class Held(Store):
    """A store that answers late: while `gate` is not set, no event and no end gets through to it."""

    def __init__(self, url: str, limits: Limits) -> None:
        super().__init__(url, name="held", limits=limits, patience_s=5)
        self.gate = asyncio.Event()
        self.appending = asyncio.Event()
        self.finishing = asyncio.Event()
        self.numbers: list[int] = []

    async def append(self, job: Claimed, number: int, events: Iterable[tuple[str, bytes]]) -> None:
        self.numbers.append(number)
        self.appending.set()
        await self.gate.wait()
        await super().append(job, number, events)

    async def finish(
        self, job: Claimed, status: str, data: bytes, arq_result: bytes = b"", events: int | None = None
    ) -> None:
        self.finishing.set()
        await self.gate.wait()
        await super().finish(job, status, data, arq_result, events)


@pytest.fixture
async def held(valkey: Process, client: Client) -> AsyncIterator[Held]:
    store = Held(valkey.url, Limits())
    await store.open(10)
    yield store
    await store.close()


def described(function: Author, **options: Any) -> Analysis:
    found: Analysis = getattr(analysis(**options)(function), MARK)
    return found


async def begin(
    store: Store, job: Claimed, function: Author, *, options: dict[str, Any] | None = None, **settings: Any
) -> tuple[Attempt, asyncio.Task[str]]:
    """Run an attempt in a task of its own; that returns how it ended."""
    begun: asyncio.Future[Attempt] = asyncio.get_running_loop().create_future()

    async def whole() -> str:
        directory = ServedDirectory(Path())
        try:
            found = described(function, **(options or {}))
            begun.set_result(attempt := Attempt(job, found, store, WorkerSettings(**settings), "w", directory))
            return await attempt.run(InLoop())
        finally:
            directory.close()

    task = asyncio.create_task(whole())
    return await begun, task


async def outcome(store: Store, job: Claimed, function: Author, **more: Any) -> str:
    _, task = await begin(store, job, function, **more)
    return await asyncio.wait_for(task, 15)


async def last(store: Store, job: Claimed) -> tuple[str, Any]:
    event = (await events(store, job.id))[-1]
    return event.type, json.loads(event.data)


async def last_type(store: Store, job: Claimed) -> str:
    found = await store.attach(job.id, limit=1_000_000, limit_bytes=10**9)
    assert found is not None
    return found.events[-1].type


async def forever(ctx: Context) -> None:
    await asyncio.Event().wait()


async def ask_again(ctx: Context) -> None:
    raise Retry


@pytest.mark.parametrize(("count", "size"), [(5000, 1), (40, 100_000)], ids=["many", "large"])
async def test_an_analysis_that_is_faster_than_the_store_waits_once_the_buffer_is_full(
    held: Held, count: int, size: int
) -> None:
    job = await running(held)
    said = 0

    async def talk(ctx: Context) -> None:
        nonlocal said
        for number in range(count):
            said += 1
            await ctx.emit(f"{number} " + "x" * size)

    _, task = await begin(held, job, talk)
    await held.appending.wait()
    assert said <= 512
    assert said * size <= 512 * 1024 + size
    held.gate.set()
    assert await task == "succeeded"
    page = await held.attach(job.id, limit=10_000, limit_bytes=10_000_000)
    assert page is not None
    chunks = [int(json.loads(event.data).split()[0]) for event in page.events if event.type == "chunk"]
    assert chunks == list(range(count)), "and all of it is written, in order"


@pytest.mark.parametrize(("why", "end"), [(Stop.TIMEOUT, "failed"), (Stop.DRAIN, "log")])
async def test_what_was_said_before_an_end_from_outside_is_in_the_log_before_it(
    held: Held, why: Stop, end: str
) -> None:
    job = await running(held, max_attempts=3)

    async def talk(ctx: Context) -> None:
        for number in range(3):
            await ctx.emit(number)
            await held.appending.wait()
        await forever(ctx)

    attempt, task = await begin(held, job, talk)
    await held.appending.wait()
    attempt.stop(why)
    held.gate.set()
    assert await task == why.value
    assert held.numbers == [1, 2], "the second group was waiting when the end came"
    assert await types(held, job.id) == ["queued", "started", "chunk", "chunk", "chunk", end]


async def test_a_timeout_is_final_though_attempts_are_left(store: Store) -> None:
    job = await running(store, max_attempts=3, retry=True, timeout_s=0.02)
    assert await outcome(store, job, forever) == "timeout"
    assert await types(store, job.id) == ["queued", "started", "failed"]
    assert (await last(store, job))[1]["error"]["code"] == "timeout"


@pytest.mark.parametrize(
    ("of_submit", "of_analysis", "of_worker", "expected"),
    [
        (0.02, 0.3, 0.3, "0.02 s"),
        (0.04, 0.02, 0.01, "0.04 s"),
        (0, 0.02, 0.3, "0.02 s"),
        (0, 0.04, 0.02, "0.04 s"),
        (0, None, 0.02, "0.02 s"),
    ],
)
async def test_the_timeout_of_a_submit_counts_before_the_analysis_and_that_before_the_workers(
    store: Store, of_submit: float, of_analysis: float | None, of_worker: float, expected: str
) -> None:
    job = await running(store, timeout_s=of_submit)
    await outcome(store, job, forever, options={"timeout": of_analysis}, timeout_s=of_worker)
    assert (await last(store, job))[1]["error"]["message"].endswith(f"longer than {expected}.")


async def test_an_end_that_is_being_told_is_not_replaced_by_another(held: Held) -> None:
    job = await running(held)

    async def at_once(ctx: Context) -> str:
        return "done"

    attempt, task = await begin(held, job, at_once)
    await held.finishing.wait()
    attempt.stop(Stop.TIMEOUT)
    held.gate.set()
    assert await task == "succeeded"
    assert await last(held, job) == ("succeeded", {"result": "done", "elapsed_s": pytest.approx(0, abs=60)})


async def test_an_end_is_told_to_the_end_however_often_its_attempt_is_cancelled(held: Held) -> None:
    job = await running(held)
    attempt, task = await begin(held, job, forever)
    attempt.stop(Stop.TIMEOUT)
    await held.finishing.wait()
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
    held.gate.set()
    assert await task == "timeout"
    assert (await last(held, job))[0] == "failed"


async def give_back(ctx: Context) -> int:
    return 1


async def stumble(ctx: Context) -> None:
    raise ValueError


@pytest.mark.parametrize(
    ("function", "why", "how", "end"),
    [
        (forever, Stop.TIMEOUT, "timeout", "failed"),
        (forever, Stop.DRAIN, "drain", "log"),
        (give_back, None, "succeeded", "succeeded"),
        (stumble, None, "failed", "failed"),
        (ask_again, None, "retrying", "retrying"),
    ],
)
async def test_a_task_that_emits_without_end_does_not_delay_the_end_of_its_attempt(
    store: Store, function: Author, why: Stop | None, how: str, end: str
) -> None:
    job = await running(store, max_attempts=3)
    left: list[asyncio.Task[None]] = []
    emitting = asyncio.Event()

    async def endless(ctx: Context) -> None:
        while True:
            await ctx.emit(1)
            emitting.set()

    async def leave(ctx: Context) -> Any:
        left.append(asyncio.create_task(endless(ctx)))
        await emitting.wait()
        return await function(ctx)

    attempt, task = await begin(store, job, leave)
    await emitting.wait()
    if why:
        attempt.stop(why)
    try:
        assert await asyncio.wait_for(task, 15) == how
    finally:
        (emits,) = left
        if not emits.done():
            emits.cancel()
    with pytest.raises(LeaseLost, match="has ended"):
        await emits
    assert await last_type(store, job) == end


@pytest.mark.parametrize("too_large", [False, True])
async def test_a_task_that_emits_on_after_every_error_leaves_the_end_of_its_attempt_a_turn(
    store: Store, too_large: bool
) -> None:
    job = await running(store, timeout_s=0.02)
    left: list[asyncio.Task[None]] = []

    async def endless(ctx: Context) -> None:
        while True:
            try:
                await ctx.emit("x" * (2000 if too_large else 1))
            except Exception:
                continue

    async def leave(ctx: Context) -> None:
        left.append(asyncio.create_task(endless(ctx)))
        await forever(ctx)

    assert await outcome(store, job, leave, event_bytes=1024) == "timeout"
    left[0].cancel()
    assert (await last_type(store, job)) == "failed"


@pytest.mark.parametrize(("why", "end"), [(Stop.TIMEOUT, "failed"), (Stop.DRAIN, "log")])
async def test_what_an_analysis_that_was_stopped_returns_does_not_count(store: Store, why: Stop, end: str) -> None:
    job = await running(store, max_attempts=3)
    here = asyncio.Event()

    async def stubborn(ctx: Context) -> str:
        try:
            here.set()
            await forever(ctx)
        except asyncio.CancelledError:
            pass  # it takes no notice
        return "all the same"

    attempt, task = await begin(store, job, stubborn)
    await here.wait()
    attempt.stop(why)
    assert await task == why.value
    assert await types(store, job.id) == ["queued", "started", end]


async def delays(store: Store, attempt: int, count: int = 30) -> list[float]:
    """How long retries after an attempt of this number are told to wait: base 1 s, cap 60 s."""
    for _ in range(count):
        await store.submit(a_job(max_attempts=9999, retry=True))
    jobs = [replace(job, attempt=attempt) for job in await claim(store, count)]
    assert len(jobs) == count
    settings = {"retry_base_s": 1, "retry_cap_s": 60}
    outcomes = await asyncio.gather(*(outcome(store, job, ask_again, **settings) for job in jobs))
    assert set(outcomes) == {"retrying"}
    told = [await last(store, job) for job in jobs]
    assert {type for type, _ in told} == {"retrying"}
    return [data["delay_s"] for _, data in told]


async def test_the_delay_of_a_retry_is_random_and_grows_up_to_a_cap(store: Store) -> None:
    """Each delay is anywhere up to its bound: that 30 of them lie in one half of it does not happen (1 in 10^9)."""
    for attempt, bound in ((1, 1), (2, 2), (4, 8), (7, 60), (99, 60)):
        found = await delays(store, attempt)
        assert 0 <= min(found) < bound / 2 < max(found) <= bound, f"attempt {attempt}"
        assert len(set(found)) > 5, "spread over it"


async def test_the_delay_keeps_to_its_cap_however_many_attempts_there_were(store: Store) -> None:
    assert max(await delays(store, 5000)) <= 60


async def limited(store: Store, **limits: Any) -> Store:
    return await Store(store.pipeline.url, name="limited", limits=Limits.model_construct(**limits)).open(10)


@pytest.mark.parametrize("count", [9, 5000], ids=["the last event", "an event with more behind it"])
async def test_a_job_whose_log_is_full_fails_in_words_and_is_not_tried_again(store: Store, count: int) -> None:
    small = await limited(store, log_events=10)
    job = await running(store, max_attempts=3, retry=True)

    async def talk(ctx: Context) -> None:
        for number in range(count):
            await ctx.emit(number)

    assert await outcome(small, job, talk) == "failed"
    error = (await last(store, job))[1]["error"]
    assert error == {"code": "result_too_large", "message": "The job's log is full."}
    await small.close()


async def test_an_attempt_that_lost_its_lease_is_ended_and_tells_nothing(store: Store, client: Client) -> None:
    job = await running(store, max_attempts=3, retry=True)
    cancelled = asyncio.Event()

    async def talk(ctx: Context) -> None:
        await client.delete(f"{keys.LEASE}{job.id}")
        await ctx.emit(1)
        try:
            await forever(ctx)
        finally:
            cancelled.set()

    assert await outcome(store, job, talk) == "lost"
    assert cancelled.is_set()
    assert await types(store, job.id) == ["queued", "started"]


async def test_an_analysis_that_goes_on_without_its_lease_hears_of_it_from_its_next_event(
    store: Store, client: Client
) -> None:
    job = await running(store)
    heard: list[type[BaseException]] = []

    async def talk(ctx: Context) -> None:
        await client.delete(f"{keys.LEASE}{job.id}")
        await ctx.emit(1)
        try:
            await forever(ctx)
        except asyncio.CancelledError:
            pass  # it takes no notice
        try:
            await ctx.emit(2)
        except LeaseLost as error:
            heard.append(type(error))
            raise

    assert await outcome(store, job, talk) == "lost"
    assert heard == [LeaseLost]
    assert await types(store, job.id) == ["queued", "started"]


async def fails_its_own_validation(ctx: Context) -> None:
    TypeAdapter(int).validate_python("x")


async def asks_again_in_a_task(ctx: Context) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(ask_again(ctx))


async def gives_up_in_a_task(ctx: Context) -> None:
    async def give_up() -> None:
        raise Final("never")

    async with asyncio.TaskGroup() as group:
        group.create_task(give_up())


@pytest.mark.parametrize(
    ("function", "retry", "ends", "code"),
    [
        (fails_its_own_validation, True, "retrying", "analysis_error"),
        (fails_its_own_validation, False, "failed", "analysis_error"),
        (asks_again_in_a_task, False, "retrying", "analysis_error"),
        (gives_up_in_a_task, True, "failed", "analysis_error"),
    ],
)
async def test_what_an_analysis_meets_inside_is_its_own_failure_and_what_it_says_there_counts(
    store: Store, function: Author, retry: bool, ends: str, code: str
) -> None:
    job = await running(store, max_attempts=2, retry=retry)
    assert await outcome(store, job, function) == ends
    type, data = await last(store, job)
    assert (type, data["error"]["code"]) == (ends, code)
