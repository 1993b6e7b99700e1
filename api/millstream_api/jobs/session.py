"""What one client follows, whatever its transport. No I/O.

A session is a reader of the hub, and the only one that touches its followers. Its driver carries commands out
and hands in what came of them:

    submitting ──▶ submitted          from the first on, the events of the job are kept for this client
    attaching  ──▶ attached
         └───────▶ refuse, abandon    nothing is left behind in the hub
    detach
    leave ──▶ the jobs to cancel

Its kinds are in rpc_session.py and plain_session.py, one for each mode of `/ws`, and in stream_session.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from millstream.protocol.errors import Problem
from millstream.protocol.events import Cursor, Event
from millstream.protocol.jobs import Page
from millstream.protocol.messages import Attach, Id, Submit, read_cursor
from millstream_api.jobs.hub import Follower, Hub, Reader, State

if TYPE_CHECKING:
    from millstream.store.store import Submitted

Start = tuple[Follower, Cursor, bool]  # whose events may begin, after which, and whether in the log


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much one session may have under way."""

    in_flight: int = 1000
    events: int = 256
    bytes: int = 1024 * 1024
    commands: int = 1000
    batch: int = 100
    json_values: int = 50_000

    def admit(self, event: Event, held: int, held_bytes: int) -> bool:
        """Is there room for an event beside what is held? Where nothing is held, there always is."""
        return not held or (held < self.events and held_bytes + len(event.data) <= self.bytes)


@dataclass(slots=True)
class Exchange:
    """One frame of a client and the answers to it; those to a batch leave together (JSON-RPC 2.0 §6)."""

    batch: bool
    pending: int
    size: int  # of the frame
    answers: list[str] = field(default_factory=list)
    held: int = 0  # bytes of these answers
    starts: list[Start] = field(default_factory=list)


@dataclass(slots=True)
class Command:
    """Something to carry out: a method with its parameters, and for a submit the new job's id."""

    method: str
    params: Any
    job: str
    id: Id = None
    expects_reply: bool = True
    exchange: Exchange | None = None
    follower: Follower | None = None  # what is followed for it


class Session(Reader):
    """What the kinds of session have in common. `followers` by job, each of which has begun or waits for a submit."""

    def __init__(self, hub: Hub) -> None:
        self.followers: dict[str, Follower] = {}
        self.left = False
        self._hub = hub
        self._cancel_on_disconnect: set[str] = set()

    def submitting(self, command: Command) -> None:
        """The store is about to be asked for the job."""
        command.follower = self._follow(command.job, command.params)

    def submitted(self, command: Command, submitted: "Submitted") -> Sequence[str]:
        """The store has accepted the job, or knew it. Returns the jobs to cancel, where the client left meanwhile."""
        request: Submit = command.params
        if submitted.duplicate:
            self.abandon(command)
        elif request.on_disconnect == "cancel":  # for a duplicate, that was for the first submit to say
            self._cancel_on_disconnect.add(submitted.job)
        if self.left:
            return self.leave()
        follower = command.follower or self.followers.get(submitted.job) or self._follow(submitted.job, request)
        self._begin_submitted(command, submitted, follower)
        return ()

    def attaching(self, command: Command) -> None:
        """The store is about to be asked for the job's log; what this client follows already goes on until then."""
        request: Attach = command.params
        command.follower = self._hub.follow(request.job, self, terminal_only=request.events == "terminal")

    def attached(self, command: Command, page: Page) -> None:
        request, follower = command.params, command.follower
        assert follower is not None
        if self.left:
            self._hub.drop(follower)
            return
        if earlier := self.followers.get(request.job):
            self._hub.drop(earlier, forget=False)
        self.followers[request.job] = follower
        self._begin_attached(command, page, follower, read_cursor(request.after))

    def abandon(self, command: Command) -> None:
        """Nothing came of a command."""
        follower, command.follower = command.follower, None
        if follower is None:
            return
        self._hub.drop(follower, forget=False)
        if self.followers.get(follower.job) is follower:
            del self.followers[follower.job]

    def detach(self, command: Command) -> None:
        if follower := self.followers.get(command.params.job):
            self._release(follower)
            self._hub.drop(follower)
        self.answer(command, b"{}")

    def answer(self, command: Command, result: bytes) -> None:
        """Say what a command came to, as JSON, where there are answers to commands."""

    def refuse(self, command: Command, problem: Problem) -> None:
        """Say why a command is not carried out, where there are answers to commands."""
        self.abandon(command)

    def tries_again(self, problem: Problem) -> bool:
        """Is a submit that was refused so to be repeated?"""
        return False

    def next_in_turn(self, command: Command) -> Command | None:
        """A command was carried out: the one that waited for it, if any, is to be carried out now."""
        return None

    def next_with_room(self) -> Command | None:
        """Frames were sent: the command that waited for room, if any, is to be carried out now."""
        return None

    def log_read(self, follower: Follower) -> None:
        """A page of the log was read for a follower that was behind."""
        if follower.state is State.BEHIND:
            self.fell_behind(follower)
        elif follower.state is State.DONE and self.followers.get(follower.job) is follower:
            self._release(follower)

    def leave(self) -> list[str]:
        """The client is gone, and nothing is followed any more. The jobs that are to be cancelled for that."""
        self.left = True
        for follower in self.followers.values():
            self._hub.drop(follower)
        self.followers.clear()
        jobs = list(self._cancel_on_disconnect)
        self._cancel_on_disconnect.clear()
        return jobs

    # What the kinds of session do in their own ways.

    def _begin_submitted(self, command: Command, submitted: "Submitted", follower: Follower) -> None:
        self._begin(follower, submitted.cursor, submitted.duplicate)

    def _begin_attached(self, command: Command, page: Page, follower: Follower, after: Cursor) -> None:
        self._begin(follower, after, True)

    def _begin(self, follower: Follower, after: Cursor, behind: bool) -> None:
        """A follower that has begun already, for an earlier submit, goes on as it is."""
        follower.start(after, behind=behind)
        self._hub.drop_if_done(follower)

    def _follow(self, job: str, request: Submit) -> Follower:
        follower = self._hub.follow(job, self, terminal_only=request.events == "terminal")
        self.followers[job] = follower
        return follower

    def _release(self, follower: Follower) -> None:
        """The client has nothing more to do with this job."""
        self._cancel_on_disconnect.discard(follower.job)
        if self.followers.get(follower.job) is follower:
            del self.followers[follower.job]
