"""The JSON-RPC 2.0 envelopes of `millstream.v1` and the parameters of its methods: parse and encode. No I/O.

Section numbers are those of the JSON-RPC 2.0 specification.
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from pydantic_core import to_json

from millstream.protocol.errors import Problem
from millstream.protocol.events import Cursor, Event
from millstream.protocol.jobs import Priority, Snapshot
from millstream.protocol.reading import read_json, read_params

SOCKET = "/ws"  # the `instance` of its problems

Events = Literal["all", "terminal"]
Id = str | int | float | None

DAY_S = 86_400
JobId = Annotated[str, StringConstraints(min_length=1, max_length=512)]


class Params(BaseModel):
    """Parameters of a method: by name, nothing unknown, nothing converted."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    @property
    def ordered_by(self) -> Hashable:
        """Calls of one client that have this in common are carried out in their order; None: in any."""
        return None


class Submit(Params):
    """Ask for a job."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"analysis": "process", "params": {"text": "hello", "delay_s": 1}, "key": "order-17"}]
        }
    )

    analysis: Annotated[str, StringConstraints(min_length=1, max_length=200)]
    params: dict[str, Any] = Field(default_factory=dict, description="parameters of the analysis, by name")
    key: Annotated[str, StringConstraints(min_length=1, max_length=200)] | None = Field(
        default=None, description="idempotency key: the same key and request give the same job"
    )
    timeout_s: float | None = Field(default=None, gt=0, le=DAY_S, description="how long one attempt may take")
    max_attempts: int | None = Field(default=None, ge=1, le=100)
    priority: Priority = "default"
    delay_s: float = Field(default=0, ge=0, le=DAY_S, description="do not start before this many seconds")
    on_disconnect: Literal["continue", "cancel"] = "continue"
    events: Events = "all"

    @property
    def ordered_by(self) -> Hashable:
        return None if self.key is None else ("key", self.key)


class LargeAnswer(Params):
    """Parameters of a method whose answer may be large: such answers are made one at a time."""

    @property
    def ordered_by(self) -> Hashable:
        return LargeAnswer


class AboutJob(LargeAnswer):
    """Parameters that name a job."""

    job: JobId


class Attach(AboutJob):
    """Follow a job's events from a cursor on, or from the start."""

    after: str | None = None
    events: Events = "all"


class Cancel(AboutJob):
    reason: Annotated[str, StringConstraints(max_length=1000)] | None = None


class JobOnly(AboutJob):
    pass


class Nothing(Params):
    pass


class Listing(LargeAnswer):
    pass


Methods = Mapping[str, type[Params]]  # the methods there are, by name, and the parameters that each takes


@dataclass(frozen=True, slots=True)
class Call:
    """One request of a client. `expects_reply` is False for a notification (§4.1)."""

    method: str
    params: Params
    id: Id
    expects_reply: bool


@dataclass(frozen=True, slots=True)
class Fault:
    """A request that cannot be carried out, and why; `id` is None where it could not be read (§5)."""

    problem: Problem
    id: Id
    expects_reply: bool = True


@dataclass(frozen=True, slots=True)
class Incoming:
    """What one frame holds: a single request or a batch (§6)."""

    calls: list[Call | Fault]
    batch: bool


def parse(text: str, methods: Methods, *, max_batch: int, max_values: int) -> Incoming:
    """Read one frame of calls to these methods. Never raises: what is wrong becomes a `Fault`."""
    try:
        document = read_json(text, max_values, what="frame")
    except Problem as problem:
        return Incoming([Fault(problem, None)], batch=False)
    if not isinstance(document, list):
        return Incoming([_request(document, methods)], batch=False)
    if not document:
        return Incoming([_invalid("A batch holds at least one request; this array is empty.")], batch=False)
    if len(document) > max_batch:
        detail = f"A batch holds at most {max_batch} requests; this one has {len(document)}. None was carried out."
        return Incoming([_invalid(detail)], batch=False)
    return Incoming([_request(member, methods) for member in document], batch=True)


def _invalid(detail: str, id: Id = None) -> Fault:
    return Fault(Problem("invalid_request", detail), id)


def _request(document: Any, methods: Methods) -> Call | Fault:
    if not isinstance(document, dict):
        return _invalid(f"A request is an object with jsonrpc, method, params and id; this is {_name(document)}.")
    id = document.get("id")
    if isinstance(id, bool) or not isinstance(id, str | int | float | None):
        return _invalid(f"id must be a string, a number or null, not {_name(id)}.")
    if isinstance(id, float) and not isfinite(id):  # 1e999 is JSON, but what comes of it could not be sent back as JSON
        return _invalid("id is a number that is too large.")
    if document.get("jsonrpc") != "2.0":
        return _invalid('jsonrpc must be the string "2.0".', id)
    method, params = document.get("method"), document.get("params", {})
    if not isinstance(method, str):
        return _invalid("method must be a string." if "method" in document else "method is missing.", id)
    if not isinstance(params, dict | list):
        return _invalid(f"params must be an object, not {_name(params)}.", id)
    expects_reply = "id" in document
    if method not in methods:
        known = ", ".join(methods)
        problem = Problem("method_not_found", f"There is no method {method[:80]!r}. The methods are: {known}.")
        return Fault(problem, id, expects_reply)
    if isinstance(params, list):
        if params:
            problem = Problem("invalid_params", f"{method} takes its params by name, in an object, not in an array.")
            return Fault(problem, id, expects_reply)
        params = {}
    try:
        return Call(method, read_params(methods[method], params, method), id, expects_reply)
    except Problem as problem:
        return Fault(problem, id, expects_reply)


def read_cursor(text: str | None) -> Cursor:
    """The cursor in a client's `after`; absent, it is the start. Raises Problem."""
    if text is None:
        return Cursor(0, 0)
    try:
        return Cursor.parse(text)
    except ValueError as error:
        problem = Problem("invalid_params", f"after: {error}.", [{"pointer": "/after", "detail": str(error)}])
        raise problem from None


def _name(value: Any) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def encode_result(id: Id, result: bytes) -> str:
    return f'{{"jsonrpc":"2.0","result":{result.decode()},"id":{to_json(id).decode()}}}'


def encode_error(id: Id, problem: Problem, root: str = "") -> str:
    error = {"code": problem.type.code, "message": problem.detail, "data": problem.document(SOCKET, root)}
    return f'{{"jsonrpc":"2.0","error":{to_json(error).decode()},"id":{to_json(id).decode()}}}'


def encode_notification(method: str, params: bytes) -> str:
    return f'{{"jsonrpc":"2.0","method":"{method}","params":{params.decode()}}}'


def gap_as_json(job: str, after: str, snapshot: Snapshot | None, replay_from: str) -> bytes:
    """What is told of a gap in a log, on every transport."""
    shown = snapshot.as_json() if snapshot else b"null"
    place = (to_json(job), to_json(after), shown, to_json(replay_from))
    return b'{"job":%b,"after":%b,"snapshot":%b,"replay_from":%b}' % place


def encode_event(event: Event) -> str:
    return f'{{"jsonrpc":"2.0","method":"job.event","params":{event.as_json()}}}'
