"""Background tasks: whatever a step raises is logged and counted, and the task goes on."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
from structlog.testing import capture_logs

from millstream import background as module
from millstream.background import Background, Health, Step
from millstream.protocol.errors import StoreUnavailable


@pytest.fixture
async def background(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Background]:
    monkeypatch.setattr(module, "FIRST_PAUSE_S", 0.001)
    background = Background()
    yield background
    await background.close()


class Steps:
    """A step that raises what it is given, run by run, and then succeeds."""

    def __init__(self, *errors: BaseException | None) -> None:
        self.errors = list(errors)
        self.runs: asyncio.Queue[BaseException | None] = asyncio.Queue()

    async def __call__(self) -> None:
        error = self.errors.pop(0) if self.errors else None
        self.runs.put_nowait(error)
        if error:
            raise error

    async def seen(self, count: int) -> list[BaseException | None]:
        async with asyncio.timeout(10):
            return [await self.runs.get() for _ in range(count)]


Start = Callable[[Background, str, Step], None]
WAYS: dict[str, Start] = {
    "every": lambda background, name, step: background.every(0.001, name, step),
    "when": lambda background, name, step: background.when(asyncio.Event(), name, step),
    "once": lambda background, name, step: background.once(name, step),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("error", [RuntimeError("odd"), ValueError("reply"), ExceptionGroup("many", [KeyError(1)])])
async def test_a_task_goes_on_after_any_error(background: Background, way: str, error: Exception) -> None:
    step = Steps(error, error, None)
    with capture_logs() as logs:
        WAYS[way](background, "sweep", step)
        assert await step.seen(3) == [error, error, None]
        await asyncio.sleep(0)
    assert (background.failures["sweep"], background.failing) == (2, {})
    assert [(entry["event"], entry["log_level"]) for entry in logs] == [
        ("background task failed; it goes on", "error"),  # once, however often it fails in a row
        ("background task works again", "info"),
    ]


async def test_a_task_that_fails_is_named_until_it_succeeds(background: Background) -> None:
    step, release = Steps(RuntimeError("odd")), asyncio.Event()

    async def held() -> None:
        if not step.errors:
            await release.wait()
        await step()

    background.every(0.001, "sweep", held)
    await step.seen(1)
    await asyncio.sleep(0)
    assert background.failing == {"sweep": 1}
    release.set()
    await step.seen(1)
    await asyncio.sleep(0)
    assert background.failing == {}


@pytest.mark.parametrize("way", ["every", "once"])
async def test_a_store_that_is_away_is_no_failure(background: Background, way: str) -> None:
    step = Steps(StoreUnavailable("away"), None)
    WAYS[way](background, "sweep", step)
    await step.seen(2)
    assert background.failures == {}


async def test_a_step_that_waits_for_an_event_runs_at_once_and_whenever_it_is_set(background: Background) -> None:
    step, event = Steps(), asyncio.Event()
    background.when(event, "read", step)
    await step.seen(1)
    for _ in range(3):
        event.set()
        await step.seen(1)
    assert not event.is_set()


async def test_what_is_to_be_done_once_is_not_done_again(background: Background) -> None:
    step = Steps(RuntimeError(), None)
    background.once("sweep", step)
    await step.seen(2)
    (task,) = background._tasks
    async with asyncio.timeout(10):
        await task
    assert step.runs.empty()


async def test_closing_ends_every_task(background: Background) -> None:
    background.every(60, "a", Steps())
    background.once("b", Steps(RuntimeError()))
    await asyncio.sleep(0)
    await background.close()
    assert all(task.done() for task in background._tasks)


def test_pauses_grow_to_a_bound() -> None:
    health = Health()
    pauses = [health.failed("a", RuntimeError()) for _ in range(2000)]
    assert pauses == sorted(pauses)
    assert (pauses[0], pauses[-1]) == (module.FIRST_PAUSE_S, module.MAX_PAUSE_S)
