"""What processes report to each other: heartbeats, advertised analyses, queue statistics. No I/O.

During a rolling update old processes read what new ones write and the other way round: unknown fields are ignored, and
fields added later have defaults.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from millstream.protocol.jobs import PRIORITIES


class Report(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class Heartbeat(Report):
    """What a worker writes with each renewal of its leases."""

    worker: str
    host: str
    pid: int
    queue: str
    slots: int = Field(description="jobs it can run side by side")
    running: int
    rss: int = Field(default=0, description="resident memory, in bytes")
    at: str = Field(description="its last heartbeat")
    ended: dict[str, int] = Field(default_factory=dict, description="attempts since its start, by how they ended")
    failures: dict[str, int] = Field(default_factory=dict, description="failed runs of its background tasks, by task")


class AnalysisInfo(Report):
    """An analysis, as clients see it."""

    name: str
    description: str
    params_schema: dict[str, Any]
    result_schema: dict[str, Any]
    timeout_s: float
    queue: str


class Advertisement(AnalysisInfo):
    """An analysis as workers advertise it. `max_attempts` None: its author did not ask for failures to be retried."""

    max_attempts: int | None = None


class LaneStats(NamedTuple):
    """How full one priority of a queue is: jobs that are due and wait, that run, and that are not due yet; the age of
    the oldest that waits, in seconds.
    """

    due: int
    running: int
    delayed: int
    oldest_s: float


class QueueStats(Report):
    """How full a queue is."""

    name: str
    depth: int = Field(description="jobs that are due and wait")
    by_priority: Mapping[str, int]
    running: int
    delayed: int = Field(description="jobs that are not due yet: delayed, or waiting for a retry")
    oldest_age_s: float = Field(description="how long the first in line has waited")

    @classmethod
    def of(cls, name: str, lanes: Sequence[LaneStats]) -> "QueueStats":
        """The lanes of a queue, in the order of PRIORITIES, together."""
        return cls(
            name=name,
            depth=sum(lane.due for lane in lanes),
            by_priority={priority: lane.due for priority, lane in zip(PRIORITIES, lanes, strict=True)},
            running=sum(lane.running for lane in lanes),
            delayed=sum(lane.delayed for lane in lanes),
            oldest_age_s=max(lane.oldest_s for lane in lanes),
        )
