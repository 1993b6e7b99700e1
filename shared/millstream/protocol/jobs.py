"""What a job is, and which way its status may go. No I/O."""

from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Literal, get_args

from pydantic_core import from_json, to_json

from millstream.protocol.event_types import TERMINAL_TYPES
from millstream.protocol.events import Cursor, Event, result_in, rfc3339

Priority = Literal["high", "default", "low"]
PRIORITIES: tuple[Priority, ...] = get_args(Priority)  # the most urgent first


class Status(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


TERMINAL = frozenset(map(Status, TERMINAL_TYPES))

#: What may follow what. `lua/` enforces it; tests/integration/test_transitions.py compares the two.
TRANSITIONS: dict[Status, frozenset[Status]] = {
    Status.QUEUED: frozenset({Status.RUNNING, Status.FAILED, Status.CANCELLED}),
    Status.RUNNING: frozenset({Status.QUEUED, Status.SUCCEEDED, Status.FAILED, Status.CANCELLED}),
    Status.SUCCEEDED: frozenset(),
    Status.FAILED: frozenset(),
    Status.CANCELLED: frozenset(),
}


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A job as it stands. Times are RFC 3339 (UTC, milliseconds); what is absent is None.

    `progress`, `result` and `error` are JSON as the store holds it, which is passed on without being read.
    """

    job: str
    analysis: str
    status: Status
    attempt: int
    max_attempts: int
    owner: str | None
    queue: str
    created_at: str
    started_at: str | None
    finished_at: str | None
    cursor: str
    progress: bytes = b"null"
    result: bytes = b"null"
    error: bytes = b"null"

    @property
    def terminal(self) -> bool:
        return self.status in TERMINAL

    def as_json(self) -> bytes:
        """The JSON object that every transport sends."""
        known = to_json({name: getattr(self, name) for name in _PLAIN})
        return b'%b,"progress":%b,"result":%b,"error":%b}' % (known[:-1], self.progress, self.result, self.error)


_PLAIN = tuple(field.name for field in fields(Snapshot) if field.type is not bytes)


@dataclass(frozen=True, slots=True)
class Page:
    """What a log holds after a cursor. `gap`: not what the cursor asked for; the events then begin with the first."""

    gap: bool
    more: bool
    snapshot: Snapshot
    events: list[Event]


def read_snapshot(job: str, reply: list[bytes | None]) -> Snapshot:
    """Build a snapshot from what `snapshot()` in lua/prelude.lua returns, in its order."""
    text = [None if value is None else value.decode() for value in reply[:11]]
    analysis, status, attempt, max_attempts, owner, queue, created, started, finished, seq, at = text
    progress, ending = reply[11], reply[12]
    succeeded = status == Status.SUCCEEDED
    return Snapshot(
        job=job,
        analysis=analysis or "",
        status=Status(status or "queued"),
        attempt=int(attempt or 0),
        max_attempts=int(max_attempts or 0),
        owner=owner or None,
        queue=queue or "",
        created_at=rfc3339(int(created or 0)),
        started_at=rfc3339(int(started)) if started else None,
        finished_at=rfc3339(int(finished)) if finished else None,
        cursor=str(Cursor(int(seq or 0), int(at or 0))),
        progress=progress or b"null",
        result=result_in(ending) if ending and succeeded else b"null",
        error=to_json(from_json(ending).get("error")) if ending and not succeeded else b"null",
    )
