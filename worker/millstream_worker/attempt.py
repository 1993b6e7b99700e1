"""One attempt of a job: its analysis runs, its events are written, its end is told."""

import asyncio
import math
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from typing import Any

import aiofiles
import structlog
from aiofiles.threadpool.binary import AsyncBufferedReader
from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticSerializationError, from_json, to_json

from millstream.authoring.analysis import Analysis
from millstream.authoring.outcomes import Final, Retry
from millstream.confined_fs import NotServed, ServedDirectory
from millstream.protocol.errors import StoreUnavailable, sentence, validation_errors
from millstream.protocol.event_types import Level
from millstream.store.store import Claimed, LeaseLost, LogFull, Store
from millstream_worker.body import BadBody, Body, arq_result, read_body
from millstream_worker.settings import WorkerSettings

log = structlog.get_logger("millstream.worker")

BUFFER_EVENTS = 512
BUFFER_BYTES = 512 * 1024


class Stop(Enum):
    """Why an attempt is ended from outside."""

    CANCELLED = "cancelled"
    LOST = "lost"
    TIMEOUT = "timeout"
    DRAIN = "drain"


class EventTooLarge(Exception):
    """One event's data is over the limit."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an attempt failed. `again`: another attempt may do better, after `delay_s` (None: the usual delay)."""

    code: str
    message: str
    again: bool = False
    delay_s: float | None = None
    extra: dict[str, Any] | None = None

    def as_dict(self) -> dict[str, Any]:
        return {"code": self.code, "message": self.message, **(self.extra or {})}


class Attempt:
    """The running attempt, which is also the analysis' context.

    Events are written in groups: while one call to the store is under way, those that follow are gathered for the
    next. An analysis that is faster than the store waits once the buffer is full.
    """

    def __init__(
        self, job: Claimed, store: Store, settings: WorkerSettings, worker: str, directory: ServedDirectory
    ) -> None:
        self.job = job.id
        self.attempt = job.attempt
        self.stopped: Stop | None = None
        self.timeout_s = job.timeout_s or settings.timeout_s
        self.returned: Any = None
        self._claimed = job
        self._body: Body | None = None
        self._store = store
        self._settings = settings
        self._worker = worker
        self._directory = directory
        self._task = asyncio.current_task()
        self._began = time.monotonic()
        self._events: list[tuple[str, bytes]] = []
        self._bytes = 0
        self._next = 1
        self._writing: asyncio.Task[None] | None = None
        self._broken: Exception | None = None
        self._ending: asyncio.Task[None] | None = None

    # The context (see millstream.Context).

    async def emit(self, value: Any) -> None:
        await self._put("chunk", _encode(value))

    async def progress(self, done: float, total: float | None = None, message: str | None = None) -> None:
        for name, value in (("done", done), ("total", total)):
            if value is not None and not (isinstance(value, int | float) and math.isfinite(value)):
                raise ValueError(f"progress: {name} must be a finite number, not {value!r}.")
        data = {"done": done, "total": total, "message": message}
        if self._events and self._events[-1][0] == "progress":
            _, passed = self._events.pop()  # not sent yet, and already history
            self._bytes -= len(passed)
        await self._put("progress", to_json({k: v for k, v in data.items() if v is not None}))

    async def log(self, message: str, level: Level = "info") -> None:
        await self._put("log", to_json({"level": level, "message": message}))

    def result(self, value: Any) -> None:
        self.returned = value

    @asynccontextmanager
    async def open(self, path: str) -> AsyncIterator[AsyncBufferedReader]:
        try:
            opened = await asyncio.to_thread(self._directory.open, path)
        except NotServed:
            raise FileNotFoundError(f"There is no file {path!r} in the data directory.") from None
        async with aiofiles.open(opened.file, "rb") as handle:
            yield handle

    # Writing events.

    async def _put(self, kind: str, data: bytes) -> None:
        if self._broken:
            raise self._broken
        if len(data) > self._settings.event_bytes:
            raise EventTooLarge(
                f"A {kind} of {len(data)} bytes is over the limit of {self._settings.event_bytes} for one event."
            )
        self._events.append((kind, data))
        self._bytes += len(data)
        if self._writing is None:
            self._writing = asyncio.create_task(self._write())
        while len(self._events) >= BUFFER_EVENTS or self._bytes >= BUFFER_BYTES:
            await asyncio.wait({self._writing})
            if self._broken:
                raise self._broken

    async def _write(self) -> None:
        try:
            while self._events:
                group, size = _group(self._events)
                del self._events[: len(group)]
                self._bytes -= size
                await self._store.append(self._claimed, self._next, group)
                self._next += len(group)
        except (LeaseLost, StoreUnavailable) as error:
            self._broken = error
            self.stop(Stop.LOST)
        except LogFull as error:
            self._broken = error
        finally:
            self._writing = None

    async def _flush(self) -> None:
        while self._writing:
            await asyncio.wait({self._writing})

    # Ending.

    def stop(self, why: Stop) -> None:
        """End the attempt from outside: what must be told is told at once, whether or not the analysis lets go."""
        if self.stopped or self._task is None:
            return
        self.stopped = why
        if why is Stop.TIMEOUT:
            failure = Failure("timeout", f"The attempt took longer than {self.timeout_s:g} s.")
            self._ending = asyncio.create_task(self._end(self._fail(failure)))
        elif why is Stop.DRAIN:
            message = f"Worker {self._worker} is leaving; the job goes to another one."
            self._ending = asyncio.create_task(self._end(self._store.hand_back(self._claimed, message)))
        self._task.cancel()

    async def _end(self, last: Any) -> None:
        await self._flush()
        with suppress(LeaseLost):
            await last

    async def run(self, analysis: Analysis | None) -> str:
        """Run to the end. Returns how it ended: a terminal status, `retrying`, or a Stop's value. Never raises."""
        try:
            return await self._run(analysis)
        except (LeaseLost, StoreUnavailable) as error:
            log.warning("attempt lost", job=self.job, attempt=self.attempt, error=str(error))
            return Stop.LOST.value

    async def _run(self, analysis: Analysis | None) -> str:
        timer = None
        try:
            body = self._body = read_body(self._claimed.body)
            if analysis is None:
                raise BadBody(f"There is no analysis {body.function!r} here.")
            params = analysis.params.model_validate(_bind(analysis, body))
            self.timeout_s = self._claimed.timeout_s or analysis.timeout_s or self._settings.timeout_s
            timer = asyncio.get_running_loop().call_later(self.timeout_s, self.stop, Stop.TIMEOUT)
            value = await self._compute(analysis, params)
            await self._flush()
            if self._broken:
                raise self._broken
            outcome: Failure | bytes = self._succeeded(analysis, value)
        except asyncio.CancelledError:
            if self.stopped is None:
                self.stop(Stop.DRAIN)
            if self._ending:
                await _uninterrupted(self._ending)
            assert self.stopped is not None
            return self.stopped.value
        except (LeaseLost, StoreUnavailable, GeneratorExit):
            raise
        except BaseException as error:  # SystemExit too: an analysis does not end its worker
            # Of a job that stock arq enqueued, only the analysis can say whether to try again.
            adopted = self._claimed.adopted and analysis is not None and analysis.max_attempts is not None
            outcome = _failure(error, self._claimed.retry or adopted)
            if outcome.code == "analysis_error":
                log.info("analysis failed", job=self.job, attempt=self.attempt, exc_info=error)
        finally:
            if timer:
                timer.cancel()
        self._task = None  # the end is being told: too late to be stopped
        return await self._settle(outcome)

    async def _compute(self, analysis: Analysis, params: BaseModel) -> Any:
        given = {name: getattr(params, name) for name in type(params).model_fields}
        try:
            if not analysis.generator:
                return await analysis.function(self, **given)
            async for chunk in analysis.function(self, **given):
                await self.emit(chunk)
            return self.returned
        except asyncio.CancelledError as error:
            if self._task is None or self._task.cancelling():
                raise
            raise RuntimeError("The analysis awaited something that was cancelled.") from error

    def _succeeded(self, analysis: Analysis, value: Any) -> bytes | Failure:
        try:
            result = analysis.returns.dump_json(value, warnings="none")
        except (PydanticSerializationError, ValueError) as error:
            return Failure("analysis_error", f"The analysis returned what cannot be written as JSON: {error}")
        if len(result) > self._settings.event_bytes:
            return Failure(
                "result_too_large",
                f"The result has {len(result)} bytes; the limit is {self._settings.event_bytes}. Send it in chunks.",
            )
        return result

    async def _settle(self, outcome: bytes | Failure) -> str:
        await self._flush()
        if isinstance(outcome, bytes):
            data = b'{"result":%b,"elapsed_s":%.6f}' % (outcome, time.monotonic() - self._began)
            await self._finish("succeeded", data, self._arq_result(True, outcome))
            return "succeeded"
        if outcome.again and self.attempt < self._claimed.max_attempts:
            delay_s = self._delay_s() if outcome.delay_s is None else outcome.delay_s
            # "attempts_exhausted" is said of the last attempt only
            error = {**outcome.as_dict(), "code": "analysis_error"}
            await self._store.retry(self._claimed, error, delay_s)
            return "retrying"
        await self._fail(outcome)
        return "failed"

    async def _fail(self, failure: Failure) -> None:
        data = to_json({"error": failure.as_dict(), "elapsed_s": round(time.monotonic() - self._began, 6)})
        await self._finish("failed", data, self._arq_result(False, to_json(failure.message)))

    async def _finish(self, status: str, data: bytes, result: bytes) -> None:
        await self._store.finish(self._claimed, status, data, result, events=self._next - 1)

    def _delay_s(self) -> float:
        """Exponential backoff with full jitter."""
        settings = self._settings
        return random.uniform(0, min(settings.retry_cap_s, settings.retry_base_s * 2.0 ** min(self.attempt - 1, 64)))

    def _arq_result(self, success: bool, value: bytes) -> bytes:
        """For a job that stock arq enqueued, the result that its client polls for."""
        if not self._claimed.adopted or self._body is None:
            return b""
        now = time.time_ns() // 1_000_000
        began = now - round((time.monotonic() - self._began) * 1000)
        return arq_result(
            self._body, id=self.job, attempt=self.attempt, success=success, value=from_json(value),
            started_ms=began, ended_ms=now,
        )  # fmt: skip


def _group(events: list[tuple[str, bytes]]) -> tuple[list[tuple[str, bytes]], int]:
    """As many of the events as make one call of a bounded size, and their size in bytes."""
    size = 0
    for count, (_, data) in enumerate(events, 1):
        size += len(data)
        if size >= BUFFER_BYTES // 2:
            return events[:count], size
    return list(events), size


def _encode(value: Any) -> bytes:
    try:
        return to_json(value, inf_nan_mode="null")
    except (PydanticSerializationError, ValueError) as error:
        raise TypeError(f"A chunk cannot be written as JSON: {error}") from None


def _bind(analysis: Analysis, body: Body) -> dict[str, Any]:
    """Parameters by name; stock arq clients may give them by position."""
    names = list(analysis.params.model_fields)
    if len(body.args) > len(names):
        raise BadBody(f"{analysis.name} takes {len(names)} parameters, not {len(body.args)}.")
    return {**dict(zip(names, body.args, strict=False)), **body.kwargs}


def _failure(error: BaseException, retry: bool) -> Failure:
    """What an exception means for the job."""
    match error:
        case ValidationError():
            errors = validation_errors(error.errors())
            text = f"The parameters are wrong: {sentence(errors)}."
            return Failure("invalid_params", text, extra={"errors": errors[:20]})
        case BadBody():
            return Failure("invalid_params", _message(error))
        case EventTooLarge() | LogFull():
            text = str(error) if isinstance(error, EventTooLarge) else "The job's log is full."
            return Failure("result_too_large", text)
        case Retry():
            return Failure("attempts_exhausted", _message(error), again=True, delay_s=error.delay_s)
        case _:
            again = retry and not isinstance(error, Final)
            return Failure("analysis_error", _message(error), again=again, extra={"type": type(error).__name__})


def _message(error: BaseException) -> str:
    """What an exception says of itself, as text that JSON can hold; its name when it says nothing, or cannot."""
    try:
        text = str(error)
    except Exception:
        text = ""
    return text[:10_000].encode(errors="backslashreplace").decode() or type(error).__name__


async def _uninterrupted(task: asyncio.Task[None]) -> None:
    """Wait for a task even when cancelled meanwhile; its own errors are the attempt's."""
    while not task.done():
        with suppress(asyncio.CancelledError):
            await asyncio.shield(task)
    task.result()
