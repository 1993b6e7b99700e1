"""How the computing of an attempt ended, as plain data: it may have happened in another process."""

import traceback
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ValidationError

from millstream.authoring.outcomes import Final, Retry
from millstream.protocol.errors import sentence, validation_errors
from millstream_worker.body import BadBody

MAX_MESSAGE_CHARS = 10_000


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


def failure_of(error: BaseException) -> Failure:
    """What an exception means for its job."""
    match error:
        case ValidationError():
            errors = validation_errors(error.errors())
            text = f"The parameters are wrong: {sentence(errors)}."
            return Failure("invalid_params", text, extra={"errors": errors[:20]})
        case BadBody():
            return Failure("invalid_params", message_of(error))
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
                traceback=_json_text("".join(traceback.format_exception(error)).rstrip("\n")),
            )


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
