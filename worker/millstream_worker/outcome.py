"""How the computing of an attempt ended, as plain data: it may have happened in another process."""

import traceback
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from pydantic import ValidationError

from millstream.authoring.outcomes import Final, Retry
from millstream.protocol.errors import sentence, validation_errors
from millstream_worker.body import BadBody

MAX_MESSAGE_CHARS = 10_000
CAUSES = 5  # of an exception group, that its message names


class OutputTooLarge(Exception):
    """An event, or the job's whole log, is over its limit. The message is for the client."""


@dataclass(frozen=True, slots=True)
class Succeeded:
    """The analysis returned; `result` is its value as JSON."""

    result: bytes


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an attempt failed. `code`, `message` and `extra` are for the client, `traceback` is for the log.

    `retry` says whether another attempt may do better: `never`; `allowed`, where the job wants its failures tried
    again; `requested`, by the analysis itself. It begins after `delay_s` (None: the worker's backoff).
    """

    code: str
    message: str
    retry: Literal["never", "allowed", "requested"] = "never"
    delay_s: float | None = None
    extra: dict[str, Any] | None = None
    traceback: str | None = None

    def as_error(self) -> dict[str, Any]:
        """The `error` member of an event."""
        return {"code": self.code, "message": self.message, **(self.extra or {})}


Outcome = Succeeded | Failure


def refusal_of(error: BaseException) -> Failure:
    """What an exception means for its job that came before the analysis: its parameters could not be read."""
    match error:
        case ValidationError():
            errors = validation_errors(error.errors())
            text = f"The parameters are wrong: {sentence(errors)}."
            return Failure("invalid_params", text, extra={"errors": errors[:20]})
        case BadBody():
            return Failure("invalid_params", message_of(error))
        case _:
            return failure_of(error)


def failure_of(error: BaseException) -> Failure:
    """What an exception of an analysis means for its job."""
    match error:
        case BaseExceptionGroup():
            return _failure_of_group(error)
        case OutputTooLarge():
            return Failure("result_too_large", message_of(error))
        case Retry():
            return Failure("analysis_error", message_of(error), retry="requested", delay_s=error.delay_s)
        case _:
            return Failure(
                "analysis_error",
                message_of(error),
                retry="never" if isinstance(error, Final) else "allowed",
                extra={"type": type(error).__name__},
                traceback=_traceback(error),
            )


def _failure_of_group(group: BaseExceptionGroup[Any]) -> Failure:
    """What the causes say counts, in whatever depth: one that is final, or too large, before one that asks for another
    attempt, and that before all others. Its message names them.
    """
    causes = list(_causes(group))
    failures = [failure_of(cause) for cause in causes]
    counts = min(failures, key=lambda failure: ("never", "requested", "allowed").index(failure.retry))
    named = "; ".join(f"{type(cause).__name__}: {message_of(cause)}" for cause in causes[:CAUSES])
    message = f"{message_of(group)}: {named}"[:MAX_MESSAGE_CHARS]
    if counts.extra is None:  # it is no defect
        delays = [failure.delay_s for failure in failures if failure.delay_s is not None]
        return replace(counts, message=message, delay_s=max(delays) if counts.retry == "requested" and delays else None)
    return replace(counts, message=message, extra={"type": type(group).__name__}, traceback=_traceback(group))


def _causes(group: BaseExceptionGroup[Any]) -> Iterator[BaseException]:
    """The exceptions of a group and of the groups in it."""
    waiting: list[BaseException] = [group]
    while waiting:
        error = waiting.pop()
        if isinstance(error, BaseExceptionGroup):
            waiting += reversed(error.exceptions)
        else:
            yield error


def _traceback(error: BaseException) -> str:
    return _json_text("".join(traceback.format_exception(error)).rstrip("\n"))


def message_of(error: BaseException) -> str:
    """What an exception says of itself, as text that JSON can hold; its name when it says nothing, or cannot."""
    try:
        text = str(error)
    except Exception:
        text = ""
    return _json_text(text[:MAX_MESSAGE_CHARS]) or type(error).__name__


def _json_text(text: str) -> str:
    """Surrogates, which UTF-8 has no bytes for, as escapes."""
    return text.encode(errors="backslashreplace").decode()
