"""The shapes of what is sent, for the published specifications. tests/integration/test_specifications.py holds what
is really sent to them.
"""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from millstream.protocol.event_types import EVENT_TYPES, Json
from millstream.protocol.jobs import Status


class Shape(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ProblemDocument(Shape):
    """An error (RFC 9457)."""

    type: str = Field(description="names the kind of problem, and is the path of a page about it")
    title: str
    status: int
    detail: str | None = Field(default=None, description="what was wrong, and what would be right")
    instance: str | None = None
    errors: list[dict[str, Any]] | None = Field(default=None, description="each with a JSON Pointer and a detail")
    retry_after_s: float | None = None


class TrafficInfo(Shape):
    """Files on their way out of this process."""

    open: int = Field(description="streams that are open")
    streams: int = Field(description="streams since the start")
    bytes_sent: int
    bytes_per_s: int = Field(description="the rate of about the last ten seconds")


class Snapshot(Shape):
    """A job as it stands. Times are RFC 3339 (UTC, milliseconds); what is absent is null."""

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
    progress: Json
    result: Json
    error: Json


class JobEvent(Shape):
    """One entry of a job's log. `data` depends on the type."""

    job: str
    seq: Annotated[int, Field(ge=1)]
    cursor: str = Field(description="names the place after this event")
    attempt: int
    type: str = Field(json_schema_extra={"enum": list(EVENT_TYPES)})
    at: str = Field(description="RFC 3339, UTC, milliseconds")
    data: Json


class JobGap(Shape):
    """Events after `after` are lost; what there is after `replay_from` follows."""

    job: str
    after: str
    snapshot: Snapshot | None
    replay_from: str


class ServerDrain(Shape):
    """The server restarts: reconnect after this time, and attach with your cursors."""

    reconnect_after_ms: int


class SubmitResult(Shape):
    job: str
    status: str
    cursor: str
    duplicate: bool


class Empty(Shape):
    pass


class Attached(Snapshot):
    """The snapshot, and where the events that follow begin."""

    replay_from: str


#: What the server sends by itself.
NOTIFICATIONS: dict[str, type[Shape]] = {"job.event": JobEvent, "job.gap": JobGap, "server.drain": ServerDrain}
