"""Who follows which job here, and the slow reader's way back to the log. No I/O.

A follower is one reader's place in one job's log. It is in one of four states, and every change of state is in this
file:

    PENDING ── start ──▶ LIVE ──▶ DONE          LIVE: hears each event as it is published
                          │ ▲                   BEHIND: hears nothing, reads the log page by page
          full, or a gap  ▼ │ caught up         DONE: has had the last event, or was dropped
                         BEHIND ──▶ DONE

A live event is taken only when it continues the follower's place without a gap; whatever does not fit (a reader that
is full, an event that was missed, a connection that broke) makes it BEHIND, and the log makes it whole again.
"""

from collections.abc import Callable
from enum import Enum
from typing import Protocol

from millstream.protocol.events import START, Cursor, Event
from millstream.protocol.jobs import Page, Snapshot

EARLY = 16  # events held for a follower that has not started yet


class State(Enum):
    PENDING = "pending"
    LIVE = "live"
    BEHIND = "behind"
    DONE = "done"


class Reader(Protocol):
    """Where a follower's events go: a session, or a stream."""

    def offer(self, follower: "Follower", event: Event) -> bool:
        """Take an event; False: no room, ask again through the log."""

    def gap(self, follower: "Follower", snapshot: Snapshot | None, replay_from: str) -> None:
        """The store has lost events after `follower.cursor`; what it holds after `replay_from` follows. The job itself
        is lost (`snapshot` None), or nothing follows where that is the cursor of a snapshot that has ended.
        """

    def fell_behind(self, follower: "Follower") -> None:
        """From now on this follower must be read from the log."""


class Follower:
    __slots__ = ("asked", "cursor", "early", "gapped", "job", "missed", "reader", "seen", "state", "terminal_only")

    def __init__(self, job: str, reader: Reader, *, terminal_only: bool) -> None:
        self.job = job
        self.reader = reader
        self.terminal_only = terminal_only
        self.state = State.PENDING
        self.cursor = START  # the last event that the reader took
        self.seen = 0  # the last seq that was heard of
        self.asked = 0  # what `seen` was when the log was last asked
        self.early: list[Event] = []  # heard before the start
        self.missed = False  # something may not have been heard before the start
        self.gapped = False  # the reader was told of a gap, and has had nothing since

    def hear(self, event: Event) -> None:
        """An event was published."""
        if self.terminal_only and not event.terminal:
            return
        self.seen = max(self.seen, event.seq)
        if self.state is State.PENDING:
            if len(self.early) < EARLY:
                self.early.append(event)
            else:
                self.missed = True
        elif self.state is State.LIVE and event.seq > self.cursor.seq:
            continues = self.terminal_only or event.seq == self.cursor.seq + 1
            if not (continues and self._take(event)):
                self.fall_behind()

    def start(self, cursor: Cursor, *, behind: bool = False) -> None:
        """Begin after `cursor`: live, or (`behind`) with what the log holds. Not when it was dropped meanwhile."""
        if self.state is not State.PENDING:
            return
        early, self.early = self.early, []
        self.cursor, self.state = cursor, State.LIVE
        if behind or self.missed:
            self.fall_behind()
        for event in early:
            self.hear(event)

    def fall_behind(self) -> None:
        """Take nothing more that is published until the log has been read to its end."""
        if self.state is State.LIVE:
            self.state = State.BEHIND
            self.reader.fell_behind(self)
        elif self.state is State.PENDING:
            self.missed = True

    def ask(self) -> Cursor:
        """The cursor after which to read the log now."""
        self.asked = self.seen
        return self.cursor

    def read(self, page: Page | None) -> None:
        """What the log holds after the cursor (None: the job is gone). Still BEHIND afterwards: ask again.

        It is LIVE again once it has all of the log and nothing was published while the log was being read. What was
        heard of before that and is not in the log was lost by the store.
        """
        if self.state is not State.BEHIND:
            return
        if page is None:
            self.reader.gap(self, None, str(START))
            self.state = State.DONE
            return
        if page.gap:
            self._gap(page, START)
        for event in page.events:
            if event.seq != self.cursor.seq + 1 and not self.terminal_only:
                self._gap(page, self.cursor)
            if not self._take(event):
                return
        if self.state is State.BEHIND and not page.more and self.seen <= max(self.cursor.seq, self.asked):
            if page.snapshot.terminal:
                end = Cursor.parse(page.snapshot.cursor)
                if self.cursor.seq < end.seq:  # else it began after the end
                    self._gap(page, end)
            self.state = State.DONE if page.snapshot.terminal else State.LIVE
            self.seen = self.cursor.seq

    def _gap(self, page: Page, replay_from: Cursor) -> None:
        """Tell the reader of a gap, once for each, and go on."""
        if not self.gapped:
            self.reader.gap(self, page.snapshot, str(replay_from))
        self.gapped, self.cursor = True, replay_from

    def _take(self, event: Event) -> bool:
        if not self.reader.offer(self, event):
            return False
        self.cursor, self.gapped = event.cursor, False
        if event.terminal:
            self.state = State.DONE
        return True


class Hub:
    """The followers of this process, by job. `forget` is called for a job that has no follower here any more."""

    def __init__(self, forget: Callable[[str], None]) -> None:
        self.followers: dict[str, list[Follower]] = {}
        self._forget = forget

    def follow(self, job: str, reader: Reader, *, terminal_only: bool) -> Follower:
        """Add a follower, which waits for `start`."""
        follower = Follower(job, reader, terminal_only=terminal_only)
        self.followers.setdefault(job, []).append(follower)
        return follower

    def drop(self, follower: Follower, *, forget: bool = True) -> None:
        """The reader no longer wants it, or has had it all. `forget`: this node need not hear of the job either."""
        followers = self.followers.get(follower.job)
        if followers is None or follower not in followers:
            return
        had_all, follower.state = follower.state is State.DONE, State.DONE  # a page may be on its way to it
        followers.remove(follower)
        if not followers:
            del self.followers[follower.job]
            if forget and not had_all:
                self._forget(follower.job)

    def publish(self, event: Event) -> None:
        """An event came from the store."""
        followers = self.followers.get(event.job)
        if followers is None:
            if not event.terminal:
                self._forget(event.job)
            return
        for follower in tuple(followers):
            try:
                follower.hear(event)
            except Exception:  # of one reader: it concerns no other, and comes again when that reads the log by itself
                follower.fall_behind()
            self.drop_if_done(follower)

    def drop_if_done(self, follower: Follower) -> None:
        if follower.state is State.DONE:
            self.drop(follower)

    def resync(self, carries: Callable[[str], bool]) -> None:
        """A subscription broke, and events of the jobs that it carries may have been missed: their logs are read."""
        for job, followers in tuple(self.followers.items()):
            if carries(job):
                for follower in tuple(followers):
                    follower.fall_behind()
