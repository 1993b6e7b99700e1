"""A job's events and a reader of them, for the tests of the hub."""

from collections import deque
from dataclasses import dataclass, field

from millstream.protocol.events import Event
from millstream.protocol.jobs import Page, Snapshot, Status
from millstream_api.jobs.hub import Follower

JOB = "j"


def an_event(seq: int, type: str = "chunk", at: int = 1000) -> Event:
    return Event(JOB, seq, at + seq, 1, type, b"{}")


def a_page(events: list[Event], *, gap: bool = False, more: bool = False, ended: bool = False, last: int = 0) -> Page:
    """A page of a log; `last` is the seq of the last event that the job has had."""
    status = Status.SUCCEEDED if ended else Status.RUNNING
    cursor = str(an_event(last).cursor) if last else "0-0"
    snapshot = Snapshot(JOB, "a", status, 1, 3, None, "default", "", None, None, cursor)
    return Page(gap, more, snapshot, events)


@dataclass
class SmallReader:
    """Holds at most `room` events at a time. `seen` is what it took since the last gap."""

    room: int
    held: deque[Event] = field(default_factory=deque)
    seen: list[Event] = field(default_factory=list)
    gaps: list[tuple[str, str]] = field(default_factory=list)
    told: bool = False

    def offer(self, follower: Follower, event: Event) -> bool:
        assert not (self.seen and self.seen[-1].terminal), "something came after the end"
        if len(self.held) >= self.room:
            return False
        self.held.append(event)
        self.seen.append(event)
        return True

    def gap(self, follower: Follower, snapshot: Snapshot | None, replay_from: str) -> None:
        self.gaps.append((str(follower.cursor), replay_from))
        self.seen.clear()

    def fell_behind(self, follower: Follower) -> None:
        self.told = True

    @property
    def seqs(self) -> list[int]:
        return [event.seq for event in self.seen]
