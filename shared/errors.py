"""The error catalogue: every error a client can see, once.

A `Problem` is raised where the rule lives and turned into a JSON-RPC error or an RFC 9457 document at the edge, so no
transport has rules of its own.
"""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of error: its JSON-RPC 2.0 code (§5.1 of that specification), its HTTP status and its title."""

    code: int
    status: int
    title: str


KINDS: dict[str, Kind] = {
    "parse_error": Kind(-32700, 400, "The message is not JSON"),
    "invalid_request": Kind(-32600, 400, "The message is not a valid request"),
    "method_not_found": Kind(-32601, 400, "There is no such method"),
    "invalid_params": Kind(-32602, 422, "The parameters are not what is expected"),
    "internal_error": Kind(-32603, 500, "Something went wrong on the server"),
    "unauthorized": Kind(-32001, 401, "A valid key is needed"),
    "forbidden": Kind(-32003, 403, "This is not allowed"),
    "unknown_analysis": Kind(-32004, 404, "There is no such analysis"),
    "job_not_found": Kind(-32005, 404, "There is no such job"),
    "result_not_ready": Kind(-32008, 409, "The job has not ended yet"),
    "idempotency_conflict": Kind(-32009, 409, "The key was used for another request"),
    "payload_too_large": Kind(-32013, 413, "The message is too large"),
    "rate_limited": Kind(-32029, 429, "Too many requests"),
    "too_many_in_flight": Kind(-32031, 429, "Too many jobs are in flight"),
    "queue_full": Kind(-32030, 503, "The queue is full"),
    "draining": Kind(-32032, 503, "The server is restarting"),
    "store_unavailable": Kind(-32033, 503, "The store cannot be reached"),
    "no_workers": Kind(-32034, 503, "No worker has ever been here"),
}


@dataclass(slots=True)
class Problem(Exception):
    """An error for the client: `slug` names its kind, `detail` says what was wrong and what would be right.

    `errors` lists the members that were wrong, as `{"pointer": "/params/text", "detail": "..."}`.
    """

    slug: str
    detail: str
    errors: list[dict[str, Any]] = field(default_factory=list)
    retry_after_s: float | None = None

    def __str__(self) -> str:
        return self.detail

    @property
    def kind(self) -> Kind:
        return KINDS[self.slug]

    def document(self, instance: str | None = None) -> dict[str, Any]:
        """The RFC 9457 problem object, the same on every transport."""
        kind = self.kind
        document: dict[str, Any] = {
            "type": f"/problems/{self.slug}",
            "title": kind.title,
            "status": kind.status,
            "detail": self.detail,
        }
        if instance is not None:
            document["instance"] = instance
        if self.errors:
            document["errors"] = self.errors
        if self.retry_after_s is not None:
            document["retry_after_s"] = self.retry_after_s
        return document


class StoreUnavailable(Exception):
    """The store could not be reached in time, or the connection broke before the reply came."""
