"""The error catalogue: every error a client can see, once.

A `Problem` is raised where the rule lives and turned into a JSON-RPC error or an RFC 9457 document at the edge, so no
transport has rules of its own.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class ProblemType:
    """One type of error: its JSON-RPC 2.0 code (§5.1 of that specification), its HTTP status, its title, what its page
    at /problems/<slug> says (where it comes from, what to do), and whether a submit may be refused with it.
    """

    code: int
    status: int
    title: str
    cause: str
    cure: str
    on_submit: bool = False


PROBLEM_TYPES: dict[str, ProblemType] = {
    "parse_error": ProblemType(
        -32700, 400, "The message is not JSON",
        "The frame or body could not be read as JSON, is nested deeper than 200 levels, or "
        "has a number of 400 digits or more.",
        "Send one JSON document, in UTF-8, without NaN or Infinity.",
        on_submit=True,
    ),
    "invalid_request": ProblemType(
        -32600, 400, "The message is not a valid request",
        "It is JSON, but not a request: a member is missing or of the wrong type.",
        "On the socket send JSON-RPC 2.0 requests; over HTTP send the body as application/json.",
        on_submit=True,
    ),
    "method_not_found": ProblemType(
        -32601, 400, "There is no such method",
        "The method's name is not one of this server's.",
        "The detail lists the methods there are.",
    ),
    "invalid_params": ProblemType(
        -32602, 422, "The parameters are not what is expected",
        "A parameter is missing, unknown, or not what the method or the analysis expects.",
        "Each entry of errors points at one; GET /analyses/{name} has the JSON Schema of an analysis' parameters.",
        on_submit=True,
    ),
    "internal_error": ProblemType(
        -32603, 500, "Something went wrong on the server",
        "A defect in the server; it has been logged there.",
        "Try again; if it stays, tell the operator when it happened.",
    ),
    "unauthorized": ProblemType(
        -32001, 401, "A valid key is needed",
        "No key was given, or it is not known, or it has expired.",
        "Send Authorization: Bearer KEY; the operator makes keys with millstream keys new.",
    ),
    "forbidden": ProblemType(
        -32003, 403, "This is not allowed",
        "The key lacks the scope that this needs, or a page of another origin tried to open a socket.",
        "Ask the operator for a key with the scope, or to list the origin in MILLSTREAM_ORIGINS.",
    ),
    "unknown_analysis": ProblemType(
        -32004, 404, "There is no such analysis",
        "No worker has advertised an analysis of this name, or none has for as long as a job may wait.",
        "GET /analyses (or analysis.list) lists them; a worker loads more with MILLSTREAM_ANALYSES.",
        on_submit=True,
    ),
    "job_not_found": ProblemType(
        -32005, 404, "There is no such job",
        "The id is wrong, the job belongs to another key, or its time to live is over.",
        "Use the id of a submit's answer; jobs are kept for an hour after their end (MILLSTREAM_KEEP_S).",
    ),
    "result_not_ready": ProblemType(
        -32008, 409, "The job has not ended yet",
        "The result was asked for before there is one.",
        "Follow the job's events, or submit with Prefer: wait=N.",
    ),
    "idempotency_conflict": ProblemType(
        -32009, 409, "The key was used for another request",
        "The same idempotency key came with other parameters.",
        "Use a new key for a new request, and the same request with the same key.",
        on_submit=True,
    ),
    "payload_too_large": ProblemType(
        -32013, 413, "The message is too large",
        "The body or frame has more bytes (MILLSTREAM_MAX_BODY_BYTES, 1 MiB by default) or JSON values "
        "(MILLSTREAM_JSON_VALUES) than it may, or the answers to a batch have too many bytes together.",
        "Send less, refer to a file, or ask for less in one batch.",
        on_submit=True,
    ),
    "rate_limited": ProblemType(
        -32029, 429, "Too many requests",
        "This owner submits more often than the operator allows (MILLSTREAM_SUBMIT_RATE).",
        "Wait as long as Retry-After says.",
        on_submit=True,
    ),
    "too_many_in_flight": ProblemType(
        -32031, 429, "Too many jobs are in flight",
        "This socket, or this owner, has as many unfinished jobs as it may have.",
        "Wait for some to end, or cancel some.",
        on_submit=True,
    ),
    "too_much_kept": ProblemType(
        -32035, 429, "Your jobs hold too many bytes",
        "The parameters, logs and results of this owner's jobs, ended ones included, have as many bytes as they may "
        "(MILLSTREAM_OWNER_BYTES).",
        "Wait as long as Retry-After says: until some are no longer kept (MILLSTREAM_KEEP_S).",
        on_submit=True,
    ),
    "queue_full": ProblemType(
        -32030, 503, "The queue is full",
        "As many jobs wait as may wait (MILLSTREAM_QUEUE_DEPTH).",
        "Try again later; the operator may start more workers.",
        on_submit=True,
    ),
    "draining": ProblemType(
        -32032, 503, "The server is restarting",
        "The server is shutting down and accepts no new jobs.",
        "Connect again, in a moment, and repeat the request.",
        on_submit=True,
    ),
    "store_unavailable": ProblemType(
        -32033, 503, "The store cannot be reached",
        "The server cannot reach its store, or the store takes no writes, and the server timed out waiting for it.",
        "Try again; with an idempotency key it is safe to repeat a submit.",
    ),
    "no_workers": ProblemType(
        -32034, 503, "No worker has registered any analysis yet",
        "No worker has advertised its analyses to this store yet.",
        "Start a worker: millstream worker.",
        on_submit=True,
    ),
}  # fmt: skip

#: How jobs end without a result, where the result is asked for; invalid_params is above.
JOB_FAILURES: dict[str, ProblemType] = {
    "analysis_error": ProblemType(
        0, 500, "The analysis failed", "The analysis raised an error; the detail is its message.", "That depends on it."
    ),
    "timeout": ProblemType(
        0, 504, "The job took too long", "An attempt ran longer than it may.", "Submit it with a larger timeout_s."
    ),
    "attempts_exhausted": ProblemType(
        0, 500, "No attempt was successful",
        "Every attempt was lost with its worker or handed back too often, or asked for another one.",
        "Look at the job's events; submit it again with a larger max_attempts.",
    ),
    "result_too_large": ProblemType(
        0, 500, "The result is too large",
        "A result, an event, the log or all unfinished jobs of the owner are over a limit.",
        "The analysis should send its result in chunks, or write a file.",
    ),
    "expired": ProblemType(
        0, 504, "The job waited too long", "No worker took the job within its life (MILLSTREAM_LIFE_S).",
        "See that a worker runs which knows the analysis, and submit it again.",
    ),
    "cancelled": ProblemType(
        0, 410, "The job was cancelled", "A client cancelled it.", "Submit it again if that was wrong."
    ),
}  # fmt: skip


IN_JSON = {  # pydantic's messages name Python's types
    **dict.fromkeys(("model_type", "dict_type", "dataclass_type"), "Input should be an object"),
    **dict.fromkeys(("list_type", "tuple_type", "set_type"), "Input should be an array"),
}


def pointer(steps: Iterable[str | int]) -> str:
    """A JSON Pointer (RFC 6901); the whole document is the empty one."""
    return "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in steps)


def validation_errors(found: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """pydantic's `errors()` as the `errors` of a Problem, in the terms of JSON."""
    return [{"pointer": pointer(item["loc"]), "detail": IN_JSON.get(item["type"], item["msg"])} for item in found]


def sentence(errors: Sequence[Mapping[str, Any]]) -> str:
    """The first five of a Problem's `errors`, for its `detail`: `params/n: what is wrong; …`."""
    shown = (": ".join(filter(None, (item["pointer"][1:], item["detail"]))) for item in errors[:5])
    return "; ".join(shown)[:1000]


@dataclass(slots=True)
class Problem(Exception):
    """An error for the client: `slug` names its kind, `detail` says what was wrong and what would be right.

    `errors` lists the members that were wrong, as `{"pointer": "/params/text", "detail": "..."}`.
    """

    slug: str
    detail: str
    errors: list[dict[str, Any]] = field(default_factory=list)
    retry_after_s: float | None = None
    headers: dict[str, str] = field(default_factory=dict)  # more, for HTTP

    def __str__(self) -> str:
        return self.detail

    @property
    def type(self) -> ProblemType:
        return PROBLEM_TYPES.get(self.slug) or JOB_FAILURES[self.slug]

    def document(self, instance: str | None = None, root: str = "") -> dict[str, Any]:
        """The RFC 9457 problem object, the same on every transport. `root` comes before its paths: where the API is
        published below a path.
        """
        problem_type = self.type
        document: dict[str, Any] = {
            "type": f"{root}/problems/{self.slug}",
            "title": problem_type.title,
            "status": problem_type.status,
            "detail": self.detail,
        }
        if instance is not None:
            document["instance"] = root + instance
        if self.errors:
            document["errors"] = self.errors
        if self.retry_after_s is not None:
            document["retry_after_s"] = self.retry_after_s
        return document


class StoreUnavailable(Exception):
    """The store could not be reached in time, or the connection broke before the reply came."""
