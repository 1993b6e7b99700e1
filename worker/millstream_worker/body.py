"""arq's job format: what a job's body says, and the result that a stock arq client waits for. JSON or msgpack, never
pickle.

A body is `{"t": try, "f": function, "a": args, "k": kwargs, "et": enqueue time}` (arq 0.28, jobs.serialize_job).
"""

from dataclasses import dataclass
from typing import Any

import msgpack
from pydantic_core import from_json, to_json


class BadBody(Exception):
    """The body is not one that can be read; the message is for the client."""


class NotWritable(Exception):
    """A result cannot be written in the codec of its job's body; the message is for the client."""


@dataclass(frozen=True, slots=True)
class Body:
    function: str
    args: list[Any]
    kwargs: dict[str, Any]
    enqueued_ms: int
    packed: bool


def read_body(data: bytes) -> Body:
    """Raises BadBody."""
    packed = not data.startswith(b"{")
    try:
        d = msgpack.unpackb(data, strict_map_key=False) if packed else from_json(data)
        body = Body(d["f"], list(d["a"]), dict(d["k"]), int(d["et"]), packed)
    except (ValueError, TypeError, KeyError, msgpack.UnpackException):
        raise BadBody(
            "The job's body is neither JSON nor msgpack. Give arq's client a job_serializer that writes one of them; "
            "pickle, its default, is never read."
        ) from None
    if not isinstance(body.function, str) or not all(isinstance(name, str) for name in body.kwargs):
        raise BadBody("The job's body does not name a function and its parameters.")
    return body


def arq_result(
    body: Body, *, id: str, queue: str, attempt: int, success: bool, value: Any, started_ms: int, ended_ms: int
) -> bytes:
    """The result of a job as arq keeps it (arq 0.28, jobs.serialize_result), in the codec of its body; `queue` is the
    stock arq queue that the job comes from. Raises NotWritable.
    """
    result = {
        "t": attempt, "f": body.function, "a": body.args, "k": body.kwargs, "et": body.enqueued_ms, "s": success,
        "r": value, "st": started_ms, "ft": ended_ms, "q": queue, "id": id,
    }  # fmt: skip
    reason: Exception | None = None
    for told in (result, result | {"a": [], "k": {}}):  # parameters that could be read cannot always be written
        try:
            return _written(told, body.packed)
        except (ValueError, TypeError, OverflowError) as error:
            reason = error
    raise NotWritable(f"The result cannot be written as {'msgpack' if body.packed else 'JSON'}: {reason}.")


def _written(result: dict[str, Any], packed: bool) -> bytes:
    written: bytes = msgpack.packb(result) if packed else to_json(result, inf_nan_mode="null")
    return written
