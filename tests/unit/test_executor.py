"""Running an analysis in the loop: whatever it does, its end is data."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from millstream import Context, Final, analysis
from millstream.authoring.analysis import MARK, Analysis
from millstream_worker.context import AttemptContext
from millstream_worker.executor import InLoop
from millstream_worker.outcome import Failure, Outcome, Succeeded


async def run(function: Any, log: list[Any] | None = None, **params: Any) -> Outcome:
    described: Analysis = getattr(function, MARK)

    async def write(type: str, data: bytes) -> None:
        if log is not None:
            log.append((type, json.loads(data)))

    def open_file(path: str) -> Any:
        raise AssertionError(path)

    context = AttemptContext("j", 1, write=write, open_file=open_file)
    return await InLoop().run(described, context, described.params.model_validate(params))


@analysis()
async def double(ctx: Context, number: int, times: int = 2) -> int:
    return number * times


@analysis()
async def count(ctx: Context, to: int, total: bool = False) -> AsyncIterator[int]:
    for number in range(to):
        yield number
    if total:
        ctx.result({"to": to})


@analysis()
async def give_back(ctx: Context, value: str) -> Any:
    return {"object": object(), "surrogate": "\udcff"}[value]


@analysis()
async def fail(ctx: Context, how: str) -> None:
    errors = {"value": ValueError("no"), "final": Final("never"), "exit": SystemExit(3), "closed": GeneratorExit()}
    raise errors[how]


@analysis()
async def await_what_was_cancelled(ctx: Context) -> None:
    task = asyncio.create_task(asyncio.sleep(60))
    task.cancel()
    await task


@analysis()
async def wait(ctx: Context) -> None:
    await asyncio.Event().wait()


async def test_the_result_is_what_was_returned_as_json() -> None:
    assert await run(double, number=4) == Succeeded(b"8")
    assert await run(double, number=4, times=3) == Succeeded(b"12")


async def test_a_generators_chunks_are_events_and_its_result_is_what_it_set() -> None:
    log: list[Any] = []
    assert await run(count, log, to=2) == Succeeded(b"null")
    assert log == [("chunk", 0), ("chunk", 1)]
    assert await run(count, to=2, total=True) == Succeeded(b'{"to":2}')


@pytest.mark.parametrize("value", ["object", "surrogate"])
async def test_a_result_that_json_cannot_write_is_a_failure_that_is_not_tried_again(value: str) -> None:
    outcome = await run(give_back, value=value)
    assert isinstance(outcome, Failure)
    assert (outcome.code, outcome.retry) == ("analysis_error", "never")
    assert outcome.message.startswith("The analysis returned what cannot be written as JSON: ")
    json.dumps(outcome.message).encode()


@pytest.mark.parametrize(
    ("how", "message", "type", "retry"),
    [
        ("value", "no", "ValueError", "allowed"),
        ("final", "never", "Final", "never"),
        ("exit", "3", "SystemExit", "allowed"),
    ],
)
async def test_what_it_raises_is_a_failure(how: str, message: str, type: str, retry: str) -> None:
    outcome = await run(fail, how=how)
    assert isinstance(outcome, Failure)
    assert (outcome.message, outcome.extra, outcome.retry) == (message, {"type": type}, retry)
    assert "in fail" in (outcome.traceback or "")


async def test_awaiting_what_somebody_else_cancelled_is_a_failure() -> None:
    outcome = await run(await_what_was_cancelled)
    assert isinstance(outcome, Failure)
    assert outcome.message == "The analysis awaited something that was cancelled."
    assert (outcome.extra, outcome.retry) == ({"type": "RuntimeError"}, "allowed")
    assert "CancelledError" in (outcome.traceback or "")


async def test_being_cancelled_is_not_a_failure() -> None:
    running = asyncio.create_task(run(wait))
    await asyncio.sleep(0)  # now it waits
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_being_closed_is_not_a_failure() -> None:
    with pytest.raises(GeneratorExit):
        await run(fail, how="closed")
