"""What one socket may do next: frames in, commands out; answers and events in, frames out. No I/O.

There are two kinds of session, one for each mode of `/ws`. Both are readers of the hub, and both bound what they
hold: `full` says when to stop reading from the socket; a follower whose event finds no room is read from the log when
there is room again.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from pydantic_core import from_json, to_json

from millstream.protocol.errors import Problem
from millstream.protocol.events import Event
from millstream.protocol.jobs import Snapshot
from millstream.protocol.messages import (
    Call,
    Fault,
    Id,
    Methods,
    Submit,
    encode_error,
    encode_event,
    encode_notification,
    encode_result,
    parse,
)
from millstream_api.jobs.hub import Follower, Reader, State


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much one session may have under way."""

    in_flight: int = 1000
    events: int = 256
    bytes: int = 1024 * 1024
    commands: int = 1000


@dataclass(slots=True)
class Exchange:
    """One frame of a client and the answers to it; those to a batch leave together (JSON-RPC 2.0 §6)."""

    batch: bool
    pending: int
    answers: list[str] = field(default_factory=list)
    starts: list[Callable[[], None]] = field(default_factory=list)


@dataclass(slots=True)
class Command:
    """Something to carry out: a method with its parameters, and for a submit the new job's id."""

    method: str
    params: Any
    job: str
    id: Id = None
    expects_reply: bool = True
    exchange: Exchange | None = None


class Session(Reader, Protocol):
    """What the two modes have in common, as api/millstream_api/jobs/websocket.py drives them."""

    followers: dict[str, Follower]
    cancel_on_disconnect: set[str]
    waits_for_room: bool  # where nothing can be refused, a job waits until the queue takes it

    @property
    def full(self) -> bool:
        """Stop reading from the socket for now."""

    @property
    def idle(self) -> bool:
        """Nothing is owed to the client but the events of running jobs."""

    def receive(self, text: str) -> list[Command]: ...

    def receive_binary(self) -> int | None:
        """A binary frame came: the code to close with, or None."""

    def answer(self, command: Command, result: Any, start: Callable[[], None] | None = None) -> None:
        """A command succeeded; `start` is called once the answer is on its way."""

    def refuse(self, command: Command, problem: Problem) -> None: ...

    def submitted_as(self, command: Command, job: str) -> None:
        """The store knew the request already: it is this job, which counts in place of the new one."""

    def leave(self, follower: Follower) -> None:
        """The socket has nothing more to do with this job."""

    def next_frame(self) -> str | None: ...

    def next_behind(self) -> Follower | None:
        """Whose log to read now. It is given out once; `fell_behind` puts it back."""

    def drain(self, reconnect_after_ms: int) -> None: ...


class RpcSession:
    """`millstream.v1`: JSON-RPC 2.0, many jobs, their events mixed."""

    waits_for_room = False

    def __init__(
        self, methods: Methods, bounds: Bounds, new_job_id: Callable[[Submit], str], wake: Callable[[], None]
    ) -> None:
        self.followers: dict[str, Follower] = {}
        self.cancel_on_disconnect: set[str] = set()
        self._methods = methods
        self._bounds = bounds
        self._new_job_id = new_job_id
        self._wake = wake
        self._outbox: deque[str | Event] = deque()
        self._bytes = 0
        self._behind: deque[Follower] = deque()
        self._in_flight: set[str] = set()
        self._commands = 0

    @property
    def full(self) -> bool:
        bounds = self._bounds
        too_many = self._commands >= bounds.commands or len(self._outbox) >= bounds.events + bounds.commands
        return too_many or self._bytes >= bounds.bytes

    @property
    def idle(self) -> bool:
        return not self._outbox and not self._commands

    def receive(self, text: str) -> list[Command]:
        incoming = parse(text, self._methods)
        exchange = Exchange(incoming.batch, len(incoming.calls))
        commands = []
        for call in incoming.calls:
            command = self._command(call, exchange)
            self._commands += 1
            if isinstance(call, Fault):
                self.refuse(command, call.problem)
            elif command.job and len(self._in_flight) >= self._bounds.in_flight:
                detail = f"{len(self._in_flight)} jobs of this socket have not ended; wait for one of them to end."
                self.refuse(command, Problem("too_many_in_flight", detail))
            else:
                if command.job:
                    self._in_flight.add(command.job)
                commands.append(command)
        return commands

    def _command(self, call: Call | Fault, exchange: Exchange) -> Command:
        if isinstance(call, Fault):
            return Command("", None, "", call.id, call.expects_reply, exchange)
        job = self._new_job_id(call.params) if isinstance(call.params, Submit) else ""
        return Command(call.method, call.params, job, call.id, call.expects_reply, exchange)

    def receive_binary(self) -> int | None:
        self._send(encode_error(None, Problem("parse_error", "JSON-RPC comes in text frames; this was binary.")))
        return None

    def answer(self, command: Command, result: Any, start: Callable[[], None] | None = None) -> None:
        self._settle(command, encode_result(command.id, result), start)

    def refuse(self, command: Command, problem: Problem) -> None:
        self._in_flight.discard(command.job)
        self._settle(command, encode_error(command.id, problem), None)

    def _settle(self, command: Command, answer: str, start: Callable[[], None] | None) -> None:
        exchange = command.exchange
        assert exchange is not None
        self._commands -= 1
        exchange.pending -= 1
        if command.expects_reply:
            exchange.answers.append(answer)
        if start:
            exchange.starts.append(start)
        if exchange.pending == 0:
            if exchange.answers:
                self._send(f"[{','.join(exchange.answers)}]" if exchange.batch else exchange.answers[0])
            for begin in exchange.starts:
                begin()
            self._wake()

    def _send(self, frame: str) -> None:
        self._outbox.append(frame)
        self._bytes += len(frame)
        self._wake()

    def submitted_as(self, command: Command, job: str) -> None:
        self._in_flight.discard(command.job)
        self._in_flight.add(job)

    def offer(self, follower: Follower, event: Event) -> bool:
        bounds = self._bounds
        if self._outbox and (len(self._outbox) >= bounds.events or self._bytes + len(event.data) > bounds.bytes):
            return False
        self._outbox.append(event)
        self._bytes += len(event.data)
        if event.terminal:
            self.leave(follower)
        self._wake()
        return True

    def gap(self, follower: Follower, snapshot: Snapshot | None, replay_from: str) -> None:
        params = {
            "job": follower.job,
            "after": str(follower.cursor),
            "snapshot": snapshot.as_dict() if snapshot else None,
            "replay_from": replay_from,
        }
        self._send(encode_notification("job.gap", params))
        if snapshot is None:
            self.leave(follower)

    def leave(self, follower: Follower) -> None:
        self._in_flight.discard(follower.job)
        self.cancel_on_disconnect.discard(follower.job)
        if self.followers.get(follower.job) is follower:
            del self.followers[follower.job]

    def fell_behind(self, follower: Follower) -> None:
        self._behind.append(follower)
        self._wake()

    def next_frame(self) -> str | None:
        if not self._outbox:
            return None
        item = self._outbox.popleft()
        if isinstance(item, str):
            self._bytes -= len(item)
            return item
        self._bytes -= len(item.data)
        return encode_event(item)

    def next_behind(self) -> Follower | None:
        while self._behind:
            follower = self._behind.popleft()
            if follower.state is State.BEHIND and self.followers.get(follower.job) is follower:
                return follower
        return None

    def drain(self, reconnect_after_ms: int) -> None:
        self._send(encode_notification("server.drain", {"reconnect_after_ms": reconnect_after_ms}))


@dataclass(slots=True)
class Slot:
    """A frame that waits for its answer."""

    answer: str | None = None


class PlainSession:
    """No subprotocol: each frame is a job, and each is answered by one frame, in their order."""

    waits_for_room = True

    def __init__(
        self, analysis: str, bounds: Bounds, new_job_id: Callable[[Submit], str], wake: Callable[[], None]
    ) -> None:
        self.followers: dict[str, Follower] = {}
        self.cancel_on_disconnect: set[str] = set()
        self._analysis = analysis
        self._bounds = bounds
        self._new_job_id = new_job_id
        self._wake = wake
        self._slots: dict[str, Slot] = {}  # by job, in the order of the frames
        self._bytes = 0
        self._no_room = False  # an answer did not fit; none is asked for again before one has left
        self._behind: dict[str, Follower] = {}

    @property
    def full(self) -> bool:
        return len(self._slots) >= self._bounds.in_flight

    @property
    def idle(self) -> bool:
        return not self._slots

    def receive(self, text: str) -> list[Command]:
        request = Submit.model_construct(
            analysis=self._analysis, params={"text": text}, key=None, timeout_s=None, max_attempts=None,
            priority="default", delay_s=0, on_disconnect="continue", events="terminal",
        )  # fmt: skip
        job = self._new_job_id(request)
        self._slots[job] = Slot()
        return [Command("job.submit", request, job)]

    def receive_binary(self) -> int | None:
        return 1003

    def answer(self, command: Command, result: Any, start: Callable[[], None] | None = None) -> None:
        if start:
            start()

    def refuse(self, command: Command, problem: Problem) -> None:
        self._put(command.job, f"Error: {problem.detail}")

    def submitted_as(self, command: Command, job: str) -> None:
        raise AssertionError("a plain frame has no idempotency key")

    def offer(self, follower: Follower, event: Event) -> bool:
        """Take an answer; those that must wait for an earlier one are held only up to a bound."""
        if self._bytes + len(event.data) > self._bounds.bytes and follower.job != self._first():
            self._no_room = True
            return False
        self._put(follower.job, plain_answer(event))
        return True

    def gap(self, follower: Follower, snapshot: Snapshot | None, replay_from: str) -> None:
        if snapshot is None or (snapshot.terminal and replay_from == snapshot.cursor):
            self._put(follower.job, "Error: The store has lost the job, or its end.")

    def _put(self, job: str, answer: str) -> None:
        self.followers.pop(job, None)
        if slot := self._slots.get(job):
            slot.answer = answer
            self._bytes += len(answer)
            self._wake()

    def leave(self, follower: Follower) -> None:
        self.followers.pop(follower.job, None)

    def fell_behind(self, follower: Follower) -> None:
        self._behind[follower.job] = follower
        self._wake()

    def next_frame(self) -> str | None:
        job = self._first()
        if job is None or (answer := self._slots[job].answer) is None:
            return None
        del self._slots[job]
        self._bytes -= len(answer)
        self._no_room = False
        return answer

    def next_behind(self) -> Follower | None:
        """The first in line, if it is behind; another one only while there is room to hold its answer."""
        job = self._first()
        if job not in self._behind:
            if self._no_room or not self._behind:
                return None
            job = next(iter(self._behind))
        follower = self._behind.pop(job)
        return follower if follower.state is State.BEHIND else self.next_behind()

    def _first(self) -> str | None:
        return next(iter(self._slots), None)

    def drain(self, reconnect_after_ms: int) -> None:
        """Nothing but answers is ever sent in this mode."""


def plain_answer(event: Event) -> str:
    """The one frame that tells how a job ended."""
    data = from_json(event.data)
    match event.type:
        case "succeeded":
            result = data["result"]
            return result if isinstance(result, str) else to_json(result).decode()
        case "failed":
            return f"Error: {data['error']['message']}"
        case _:
            return f"Error: cancelled: {data['reason']}" if data.get("reason") else "Error: cancelled"
