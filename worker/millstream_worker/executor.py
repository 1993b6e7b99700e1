"""Where an analysis computes. What an executor gives back is plain data, so that this may be another process."""

import asyncio
import os
from typing import Protocol

from pydantic import BaseModel
from pydantic_core import PydanticSerializationError

from millstream.authoring.analysis import Analysis
from millstream.protocol.reading import readable
from millstream_worker.context import AttemptContext, result_of
from millstream_worker.outcome import Failure, Outcome, Succeeded, failure_of, message_of


class Executor(Protocol):
    """One way to run analyses."""

    async def run(self, analysis: Analysis, context: AttemptContext, params: BaseModel) -> Outcome:
        """Run an analysis to its end. Whatever it raises is a Failure.

        Raises CancelledError when the calling task is cancelled, as soon as the analysis has stopped.
        """


class InLoop:
    """Runs async functions and generators in the worker's own loop, in the task of the attempt."""

    def __init__(self) -> None:
        self._pid = os.getpid()

    async def run(self, analysis: Analysis, context: AttemptContext, params: BaseModel) -> Outcome:
        arguments = {name: getattr(params, name) for name in type(params).model_fields}
        try:
            if not analysis.generator:
                value = await analysis.function(context, **arguments)
            else:
                async for chunk in analysis.function(context, **arguments):
                    await context.emit(chunk)
                value = result_of(context)
            return _outcome(analysis, value)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            explained = RuntimeError("The analysis awaited something that was cancelled.")
            explained.__cause__ = error
            return failure_of(explained)
        except GeneratorExit:  # this coroutine is being closed
            raise
        except BaseException as error:  # SystemExit too: an analysis does not end its worker
            if os.getpid() != self._pid and isinstance(error, SystemExit):
                os._exit(error.code if isinstance(error.code, int) else 1)
            return failure_of(error)
        finally:
            if os.getpid() != self._pid:  # a process that the analysis has forked: it is no second worker
                os._exit(1)


def _outcome(analysis: Analysis, value: object) -> Outcome:
    try:
        return Succeeded(readable(analysis.returns.dump_json(value, warnings="none")))
    except (PydanticSerializationError, ValueError) as error:
        text = f"The analysis returned what cannot be written as JSON: {message_of(error)}"
        return Failure("analysis_error", text)
