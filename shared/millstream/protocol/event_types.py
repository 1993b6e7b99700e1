"""Every type of event: the shape of its data, whether it ends the job, who writes it. No I/O.

Schemas, the published documents, the scripts' and the client's idea of an end, and the table in docs/protocol.md come
from here.
"""

from dataclasses import dataclass
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict

Json = Any
Level = Literal["debug", "info", "warning", "error"]
LEVELS: tuple[Level, ...] = get_args(Level)


class Data(BaseModel):
    """The data of an event: an object with these members and no others."""

    model_config = ConfigDict(extra="forbid")


class Queued(Data):
    analysis: str
    queue: str


class Started(Data):
    attempt: int
    worker: str


class Progress(Data):
    done: float
    total: float | None = None
    message: str | None = None


class LogLine(Data):
    level: Level
    message: str


class JobError(BaseModel):
    """Why an attempt or a job failed; some codes bring more members."""

    model_config = ConfigDict(extra="allow")
    code: str
    message: str


class Retrying(Data):
    error: JobError
    delay_s: float
    attempt: int


class Succeeded(Data):
    result: Json
    elapsed_s: float


class Failed(Data):
    error: JobError
    elapsed_s: float | None = None


class Cancelled(Data):
    reason: str | None


@dataclass(frozen=True, slots=True)
class EventType:
    """`written_by`: who causes it. The name of a terminal type is also the status that it gives its job."""

    data: Any
    written_by: Literal["store", "worker", "analysis"]
    summary: str
    terminal: bool = False


EVENT_TYPES: dict[str, EventType] = {
    "queued": EventType(Queued, "store", "accepted; always seq 1"),
    "started": EventType(Started, "store", "a worker begins an attempt: forget the chunks that came before"),
    "progress": EventType(Progress, "analysis", "how far the analysis is"),
    "chunk": EventType(Json, "analysis", "a partial result"),
    "log": EventType(LogLine, "analysis", "a line for the user, from the analysis or about it (its worker is leaving)"),
    "retrying": EventType(
        Retrying, "worker", "this attempt failed, or its worker was lost (`worker_lost`), and another follows"
    ),
    "succeeded": EventType(Succeeded, "worker", "the job has its result", terminal=True),
    "failed": EventType(Failed, "worker", "the job ended without a result", terminal=True),
    "cancelled": EventType(Cancelled, "store", "a client cancelled the job", terminal=True),
}

TERMINAL_TYPES = frozenset(name for name, event_type in EVENT_TYPES.items() if event_type.terminal)
