"""Whatever happens to published events, a follower's reader sees its job's log without gaps or duplicates."""

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from millstream.protocol.events import START, Cursor, Event
from millstream.protocol.jobs import Page
from millstream_api.jobs.hub import EARLY, Follower, Hub, State
from tests.unit.readers import JOB, SmallReader, a_page


@dataclass
class Log:
    """The log of one job, as lua/attach.lua reads it."""

    events: list[Event] = field(default_factory=list)
    clock: int = 1000

    def write(self, type: str) -> Event:
        self.clock += 1
        self.events.append(Event(JOB, len(self.events) + 1, self.clock, 1, type, b"{}"))
        return self.events[-1]

    @property
    def ended(self) -> bool:
        return self.events[-1].terminal

    def page(self, after: Cursor, limit: int, *, terminal_only: bool = False) -> Page:
        held = [event.cursor for event in self.events]
        gap = after.seq > 0 and after not in held
        seq = 0 if gap else after.seq
        if terminal_only:
            last_event = [event for event in self.events[-1:] if event.terminal and event.seq > seq]
            return a_page(last_event, gap=gap, ended=self.ended)
        events = self.events[seq : seq + limit]
        last = events[-1].seq if events else seq
        return a_page(events, gap=gap, more=last < len(self.events), ended=self.ended)


@dataclass
class Watcher:
    """A follower with its reader, and what of the log it should see."""

    follower: Follower
    reader: SmallReader
    begin: Cursor
    live: bool
    asked: Cursor | None = None
    page: Page | None = None


ROOMS = st.sampled_from([1, 2, 5, 100])
RARELY = st.sampled_from([False, False, False, True])


class Following(RuleBasedStateMachine):
    """One job is written and published while readers follow it. The network drops, doubles and reorders what is
    published; the store may lose the end of the log, which breaks the connection.
    """

    def __init__(self) -> None:
        super().__init__()
        self.log = Log()
        self.forgotten: list[str] = []
        self.hub = Hub(self.forgotten.append)
        self.network: list[Event] = []
        self.watchers: list[Watcher] = []
        self.log.write("queued")

    def _join(self, room: int, begin: Cursor, *, live: bool, terminal_only: bool) -> None:
        reader = SmallReader(room)
        follower = self.hub.follow(JOB, reader, terminal_only=terminal_only)
        self.watchers.append(Watcher(follower, reader, begin, live))

    @initialize(room=ROOMS, started=st.booleans(), terminal_only=RARELY)
    def submit(self, room: int, started: bool, terminal_only: bool) -> None:
        self._join(room, self.log.events[0].cursor, live=True, terminal_only=terminal_only)
        if started:
            self.start(0)

    @precondition(lambda self: len(self.watchers) < 3)
    @rule(room=ROOMS, place=st.floats(0, 1), started=st.booleans(), terminal_only=RARELY)
    def attach(self, room: int, place: float, started: bool, terminal_only: bool) -> None:
        cursors = [START, *(event.cursor for event in self.log.events)]
        self._join(room, cursors[round(place * (len(cursors) - 1))], live=False, terminal_only=terminal_only)
        if started:
            self.start(len(self.watchers) - 1)

    @rule(which=st.integers(0, 2))
    def start(self, which: int) -> None:
        if which < len(self.watchers) and self.watchers[which].follower.state is State.PENDING:
            watcher = self.watchers[which]
            watcher.follower.start(watcher.begin, behind=not watcher.live)
            self.hub.drop_if_done(watcher.follower)

    @rule(which=st.integers(0, 2), limit=st.integers(1, 5))
    def the_log_is_read(self, which: int, limit: int) -> None:
        """All three at once, as it mostly is."""
        self.reader_reads(which, 100)
        self.ask_the_log(which)
        self.log_answers(which, limit)
        self.page_arrives(which)

    @precondition(lambda self: not self.log.ended)
    @rule(types=st.lists(st.sampled_from(["chunk", "progress", "progress", "log"]), min_size=1, max_size=EARLY + 2))
    def write(self, types: list[str]) -> None:
        self.network += [self.log.write(type) for type in types]

    @precondition(lambda self: not self.log.ended)
    @rule(type=st.sampled_from(["succeeded", "failed", "cancelled"]))
    def end(self, type: str) -> None:
        self.network.append(self.log.write(type))

    @precondition(lambda self: self.network)
    @rule(count=st.integers(1, EARLY + 2))
    def deliver(self, count: int) -> None:
        for event in self.network[:count]:
            self.hub.publish(event)
        del self.network[:count]

    @precondition(lambda self: self.network)
    @rule(place=st.floats(0, 1), keep=st.booleans())
    def deliver_early_or_twice(self, place: float, keep: bool) -> None:
        index = round(place * (len(self.network) - 1))
        self.hub.publish(self.network[index])
        if not keep:
            del self.network[index]

    @precondition(lambda self: self.network)
    @rule(place=st.floats(0, 1))
    def drop(self, place: float) -> None:
        del self.network[round(place * (len(self.network) - 1))]

    @rule()
    def connection_breaks(self) -> None:
        self.network.clear()
        self.hub.resync(lambda _: True)

    @rule(keep=st.integers(1, 30))
    def store_loses_the_end_of_the_log(self, keep: int) -> None:
        if any(watcher.follower.state is State.DONE for watcher in self.watchers):
            return  # what was told cannot be taken back
        del self.log.events[keep:]
        for watcher in self.watchers:
            watcher.page = watcher.asked = None
        self.connection_breaks()

    @rule(which=st.integers(0, 2))
    def ask_the_log(self, which: int) -> None:
        if which < len(self.watchers) and self.watchers[which].follower.state is State.BEHIND:
            watcher = self.watchers[which]
            watcher.asked, watcher.page = watcher.follower.ask(), None

    @rule(which=st.integers(0, 2), limit=st.integers(1, 5))
    def log_answers(self, which: int, limit: int) -> None:
        watcher = self.watchers[which] if which < len(self.watchers) else None
        if watcher and watcher.asked is not None:
            watcher.page = self.log.page(watcher.asked, limit, terminal_only=watcher.follower.terminal_only)
            watcher.asked = None

    @rule(which=st.integers(0, 2))
    def page_arrives(self, which: int) -> None:
        watcher = self.watchers[which] if which < len(self.watchers) else None
        if watcher and watcher.page is not None:
            watcher.follower.read(watcher.page)
            watcher.page = None
            self.hub.drop_if_done(watcher.follower)

    @rule(which=st.integers(0, 2), count=st.integers(1, 4))
    def reader_reads(self, which: int, count: int) -> None:
        if which < len(self.watchers):
            held = self.watchers[which].reader.held
            for _ in range(min(count, len(held))):
                held.popleft()

    @rule()
    def quiet_logs_are_compared(self) -> None:
        """As Relay._check does."""
        for watcher in self.watchers:
            follower = watcher.follower
            if self.log.ended or (not follower.terminal_only and follower.cursor.seq != len(self.log.events)):
                follower.fall_behind()

    @invariant()
    def nothing_is_missing_and_nothing_comes_twice(self) -> None:
        for watcher in self.watchers:
            if watcher.follower.terminal_only:
                assert [event.terminal for event in watcher.reader.seen] in ([], [True])
                continue
            begin = 0 if watcher.reader.gaps else watcher.begin.seq
            assert watcher.reader.seqs == list(range(begin + 1, begin + 1 + len(watcher.reader.seen)))

    @invariant()
    def a_follower_that_is_behind_has_told_its_reader(self) -> None:
        assert all(watcher.reader.told for watcher in self.watchers if watcher.follower.state is State.BEHIND)

    def teardown(self) -> None:
        """However it stood: once the job ends and the log is read, everybody has had the end."""
        if not self.watchers:
            return
        if not self.log.ended:
            self.log.write("succeeded")
        for watcher in self.watchers:
            if watcher.follower.state is State.PENDING:
                watcher.follower.start(watcher.begin, behind=not watcher.live)
        self.quiet_logs_are_compared()
        for watcher in self.watchers:
            for _ in range(len(self.log.events) + 2):
                if watcher.follower.state is State.BEHIND:
                    watcher.reader.held.clear()
                    after = watcher.follower.ask()
                    watcher.follower.read(self.log.page(after, 5, terminal_only=watcher.follower.terminal_only))
            self.hub.drop_if_done(watcher.follower)
            assert watcher.follower.state is State.DONE
            assert watcher.follower not in self.hub.followers.get(JOB, ())
            if watcher.begin != self.log.events[-1].cursor:
                assert watcher.reader.seen[-1] == self.log.events[-1]
        self.nothing_is_missing_and_nothing_comes_twice()


Following.TestCase.settings = settings(stateful_step_count=40)
TestFollowing = Following.TestCase
