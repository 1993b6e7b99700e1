"""The life of one attempt of a job: its analysis runs, perhaps it is stopped, its end is told."""

import asyncio
import random
import time
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import replace
from enum import Enum
from typing import Any

import structlog
from pydantic import BaseModel
from pydantic_core import from_json, to_json

from millstream.authoring.analysis import Analysis
from millstream.backoff import backoff_s
from millstream.confined_fs import ServedDirectory
from millstream.protocol.errors import StoreUnavailable
from millstream.protocol.events import succeeded
from millstream.store.store import Claimed, LeaseLost, Store
from millstream_worker.body import BadBody, Body, NotWritable, arq_result, read_body
from millstream_worker.context import AttemptContext
from millstream_worker.event_writer import EventWriter
from millstream_worker.executor import Executor
from millstream_worker.outcome import Failure, Outcome, OutputTooLarge, Succeeded, failure_of, refusal_of
from millstream_worker.settings import WorkerSettings

log = structlog.get_logger("millstream.worker")


class Stop(Enum):
    """Why an attempt is ended from outside."""

    CANCELLED = "cancelled"
    LOST = "lost"
    TIMEOUT = "timeout"
    DRAIN = "drain"


class Attempt:
    """One attempt of a claimed job. Create it in the task that runs it."""

    def __init__(
        self,
        job: Claimed,
        analysis: Analysis | None,
        store: Store,
        settings: WorkerSettings,
        worker: str,
        directory: ServedDirectory,
    ) -> None:
        self._job = job
        self._analysis = analysis
        self._store = store
        self._settings = settings
        self._worker = worker
        self._directory = directory
        self._events = EventWriter(store, job, max_event_bytes=settings.event_bytes, on_lost=self._lose)
        self._timeout_s = job.timeout_s or (analysis and analysis.timeout_s) or settings.timeout_s
        self._began = time.monotonic()
        self._body: Body | None = None
        self._task = asyncio.current_task()
        self._stopped: Stop | None = None
        self._ending: asyncio.Task[None] | None = None

    async def run(self, executor: Executor) -> str:
        """Run to the end. Returns how it ended: a terminal status, `retrying`, or a Stop's value. Never raises."""
        try:
            return await self._run(executor)
        except (LeaseLost, StoreUnavailable) as error:
            log.warning("attempt lost", job=self._job.id, attempt=self._job.attempt, error=str(error))
            return Stop.LOST.value
        finally:
            self._events.on_lost = None  # or the two would hold each other until the garbage collector comes

    async def _run(self, executor: Executor) -> str:
        try:
            outcome = await self._compute(executor)
        except asyncio.CancelledError:
            if self._stopped is None:
                self.stop(Stop.DRAIN)
            return await self._stop_told()
        if self._stopped:  # and the analysis took no notice
            return await self._stop_told()
        self._task = None  # the end is being told: too late to be stopped
        return await self._settle(outcome)

    async def _stop_told(self) -> str:
        if self._ending:
            await _uninterrupted(self._ending)
        assert self._stopped is not None
        return self._stopped.value

    # Computing.

    async def _compute(self, executor: Executor) -> Outcome:
        try:
            analysis, params = self._bind()
        except BaseException as error:  # an author's types may raise anything when they validate
            return refusal_of(error)
        context = AttemptContext(
            self._job.id, self._job.attempt, write=self._events.write, open_file=self._directory.open
        )
        timer = asyncio.get_running_loop().call_later(self._timeout_s, self.stop, Stop.TIMEOUT)
        try:
            outcome = await executor.run(analysis, context, params)
            self._events.close()
            if isinstance(outcome, Succeeded):
                await self._events.flush()  # within the time limit too
            return outcome
        finally:
            timer.cancel()

    def _bind(self) -> tuple[Analysis, BaseModel]:
        """The analysis and its parameters. Raises BadBody, and what their validation raises."""
        analysis, body = self._analysis, read_body(self._job.body)
        self._body = body
        if analysis is None:
            raise BadBody(f"There is no analysis {body.function!r} here.")
        return analysis, analysis.params.model_validate(named_arguments(analysis, body))

    # Being stopped.

    def stop(self, why: Stop) -> None:
        """End the attempt from outside: what must be told is told at once, whether or not the analysis lets go."""
        if self._stopped or self._task is None:
            return
        self._stopped = why
        self._events.close()
        if why is Stop.TIMEOUT:
            failure = Failure("timeout", f"The attempt took longer than {self._timeout_s:g} s.")
            self._ending = asyncio.create_task(self._end(self._fail(failure)))
        elif why is Stop.DRAIN:
            message = f"Worker {self._worker} is leaving; the job goes to another one."
            self._ending = asyncio.create_task(self._end(self._store.hand_back(self._job, message)))
        self._task.cancel()

    def _lose(self) -> None:
        if not isinstance(self._events.broken, LeaseLost):
            log.error("events could not be written", job=self._job.id, exc_info=self._events.broken)
        self.stop(Stop.LOST)

    async def _end(self, last: Coroutine[Any, Any, None]) -> None:
        await self._events.flush()
        with suppress(LeaseLost):
            await last

    # Telling the end.

    async def _settle(self, outcome: Outcome) -> str:
        await self._events.flush()
        outcome = self._judge(outcome)
        if isinstance(outcome, Succeeded):
            data = succeeded(outcome.result, time.monotonic() - self._began)
            try:
                told = self._arq_result(True, outcome.result)
            except NotWritable as error:
                outcome = Failure("analysis_error", str(error))
            else:
                await self._finish("succeeded", data, told)
                return "succeeded"
        if outcome.traceback:
            log.info("analysis failed", job=self._job.id, attempt=self._job.attempt, exception=outcome.traceback)
        if self._is_tried_again(outcome):
            delay_s = self._backoff_s() if outcome.delay_s is None else outcome.delay_s
            await self._store.retry(self._job, outcome.as_error(), delay_s)
            return "retrying"
        if outcome.retry == "requested":
            outcome = replace(outcome, code="attempts_exhausted")
        await self._fail(outcome)
        return "failed"

    def _judge(self, outcome: Outcome) -> Outcome:
        """Output over a limit makes a success a failure. Raises what broke the events: some are missing."""
        broken, limit = self._events.broken, self._settings.event_bytes
        if broken and not isinstance(broken, OutputTooLarge):
            raise broken
        if isinstance(outcome, Failure):
            return outcome
        if isinstance(broken, OutputTooLarge):
            return failure_of(broken)
        if len(outcome.result) > limit:
            text = f"The result has {len(outcome.result)} bytes; the limit is {limit}. Send it in chunks."
            return Failure("result_too_large", text)
        return outcome

    def _is_tried_again(self, failure: Failure) -> bool:
        job = self._job
        if failure.retry == "never" or job.attempt >= job.max_attempts:
            return False
        return failure.retry == "requested" or job.retry

    def _backoff_s(self) -> float:
        """Exponential backoff with full jitter."""
        settings = self._settings
        cap_s = backoff_s(self._job.attempt, first_s=settings.retry_base_s, max_s=settings.retry_cap_s)
        return random.uniform(0, cap_s)

    async def _fail(self, failure: Failure) -> None:
        data = to_json({"error": failure.as_error(), "elapsed_s": round(time.monotonic() - self._began, 6)})
        await self._finish("failed", data, self._arq_result(False, to_json(failure.message)))

    async def _finish(self, status: str, data: bytes, result: bytes) -> None:
        await self._store.finish(self._job, status, data, result, events=self._events.written)

    def _arq_result(self, success: bool, value: bytes) -> bytes:
        """For a job that stock arq enqueued, the result that its client polls for."""
        if not self._job.adopted or self._body is None:
            return b""
        now = time.time_ns() // 1_000_000
        began = now - round((time.monotonic() - self._began) * 1000)
        return arq_result(
            self._body, id=self._job.id, queue=self._job.adopted, attempt=self._job.attempt, success=success,
            value=from_json(value), started_ms=began, ended_ms=now,
        )  # fmt: skip


def named_arguments(analysis: Analysis, body: Body) -> dict[str, Any]:
    """Parameters by name; stock arq clients may give them by position. Raises BadBody."""
    names = list(analysis.params.model_fields)
    if len(body.args) > len(names):
        raise BadBody(f"{analysis.name} takes {len(names)} parameters, not {len(body.args)}.")
    return {**dict(zip(names, body.args, strict=False)), **body.kwargs}


async def _uninterrupted(task: asyncio.Task[None]) -> None:
    """Wait for a task even when cancelled meanwhile; its own errors are the attempt's."""
    while not task.done():
        with suppress(asyncio.CancelledError):
            await asyncio.shield(task)
    task.result()
