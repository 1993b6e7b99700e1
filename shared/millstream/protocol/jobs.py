"""What a job is, and which way its status may go. No I/O."""

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Literal, get_args

from pydantic_core import from_json

from millstream.protocol.event_types import TERMINAL_TYPES
from millstream.protocol.events import Cursor, Event, rfc3339

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
    """A job as it stands. Times are RFC 3339 (UTC, milliseconds); what is absent is None."""

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
    progress: Any
    result: Any
    error: Any

    @property
    def terminal(self) -> bool:
        return self.status in TERMINAL

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Page:
    """What a log holds after a cursor. `gap`: not what the cursor asked for; the events then begin with the first."""

    gap: bool
    more: bool
    snapshot: Snapshot
    events: list[Event]


def read_snapshot(job: str, fields: list[bytes | None]) -> Snapshot:
    """Build a snapshot from what `snapshot()` in lua/prelude.lua returns, in its order."""
    text = [None if value is None else value.decode() for value in fields[:11]]
    analysis, status, attempt, max_attempts, owner, queue, created, started, finished, seq, at = text
    progress, ending = fields[11], fields[12]
    end: dict[str, Any] = from_json(ending) if ending else {}
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
        progress=from_json(progress) if progress else None,
        result=end.get("result"),
        error=end.get("error"),
    )
