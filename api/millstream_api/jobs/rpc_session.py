"""`millstream.v1`: JSON-RPC 2.0, many jobs, their events mixed. No I/O.

What is held for a client is bounded: `full` says when to stop reading from the socket; a follower whose event finds no
room is read from the log when there is room again.
"""

from collections import deque
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING

from pydantic_core import to_json

from millstream.protocol.errors import Problem
from millstream.protocol.events import START, Cursor, Event
from millstream.protocol.jobs import Page, Snapshot
from millstream.protocol.messages import (
    Call,
    Fault,
    LargeAnswer,
    Methods,
    Submit,
    encode_error,
    encode_event,
    encode_notification,
    encode_result,
    gap_as_json,
    parse,
)
from millstream_api.jobs.hub import Follower, Hub, State
from millstream_api.jobs.session import Bounds, Command, Exchange, Session, Start

if TYPE_CHECKING:
    from millstream.store.store import Submitted


class RpcSession(Session):
    def __init__(
        self,
        hub: Hub,
        methods: Methods,
        bounds: Bounds,
        new_job_id: Callable[[Submit], str],
        wake: Callable[[], None],
        root: str = "",
    ) -> None:
        super().__init__(hub)
        self._root = root
        self._methods = methods
        self._bounds = bounds
        self._new_job_id = new_job_id
        self._wake = wake
        self._outbox: deque[str | Event] = deque()
        self._bytes = 0
        self._behind: deque[Follower] = deque()
        self._in_flight: set[str] = set()
        self._commands = 0
        self._asked = 0  # bytes of the frames that are not answered yet
        self._batches = 0  # of which are batches
        self._waits_for_room: Command | None = None
        self._turns: dict[Hashable, deque[Command] | None] = {}  # by `ordered_by` of what is carried out; what waits

    @property
    def full(self) -> bool:
        """Stop reading from the socket for now."""
        bounds = self._bounds
        too_many = self._commands >= bounds.commands or len(self._outbox) >= bounds.events + bounds.commands
        return too_many or self._batches > 0 or max(self._bytes, self._asked) >= bounds.bytes

    @property
    def idle(self) -> bool:
        """Nothing is owed to the client but the events of running jobs."""
        return not self._outbox and not self._commands

    # Commands.

    def receive(self, text: str) -> list[Command]:
        """The commands that are to be carried out now; `next_in_turn` tells of others."""
        bounds = self._bounds
        incoming = parse(text, self._methods, max_batch=bounds.batch, max_values=bounds.json_values)
        exchange = Exchange(incoming.batch, len(incoming.calls), len(text))
        self._asked += exchange.size
        self._batches += exchange.batch
        commands = []
        for call in incoming.calls:
            command = self._command(call, exchange)
            self._commands += 1
            if isinstance(call, Fault):
                self.refuse(command, call.problem)
            elif command.job and len(self._in_flight) >= bounds.in_flight:
                detail = f"{len(self._in_flight)} jobs of this socket have not ended; wait for one of them to end."
                self.refuse(command, Problem("too_many_in_flight", detail))
            else:
                if command.job:
                    self._in_flight.add(command.job)
                if self._takes_turn(command):
                    commands.append(command)
        return commands

    def _command(self, call: Call | Fault, exchange: Exchange) -> Command:
        if isinstance(call, Fault):
            return Command("", None, "", call.id, call.expects_reply, exchange)
        job = self._new_job_id(call.params) if isinstance(call.params, Submit) else ""
        return Command(call.method, call.params, job, call.id, call.expects_reply, exchange)

    def _takes_turn(self, command: Command) -> bool:
        """Is it to be carried out now? Else it waits for an earlier one of the same kind or key, or for room."""
        subject = command.params.ordered_by
        if subject is None:
            return True
        if subject not in self._turns:
            self._turns[subject] = None
            return self._admit(command) is not None
        waiting = self._turns[subject]
        if waiting is None:
            waiting = self._turns[subject] = deque()
        waiting.append(command)
        return False

    def next_in_turn(self, command: Command) -> Command | None:
        subject = command.params.ordered_by
        if subject is None:
            return None
        while waiting := self._turns[subject]:
            if admitted := self._admit(waiting.popleft()):
                return admitted
            if self._waits_for_room:
                return None
        del self._turns[subject]
        return None

    def _admit(self, command: Command) -> Command | None:
        """Is it to be carried out now? Answers that may be large are made while there is room beside those that are
        held: that is over the bound by one answer at most. Else it waits for room, or is refused where there will be
        none: the answers to its batch leave together.
        """
        assert command.exchange is not None
        held, bound = command.exchange.held, self._bounds.bytes
        if command.params.ordered_by is not LargeAnswer or self._bytes + held < bound:
            return command
        if held < bound:
            self._waits_for_room = command
        else:
            detail = f"The answers to this batch are over {bound} bytes; ask for the rest in another one."
            self.refuse(command, Problem("payload_too_large", detail))
        return None

    def next_with_room(self) -> Command | None:
        command, self._waits_for_room = self._waits_for_room, None
        if command is None or self._admit(command):
            return command
        return None if self._waits_for_room else self.next_in_turn(command)

    def receive_binary(self) -> int | None:
        """A binary frame came: the code to close with, or None."""
        self._send(
            encode_error(None, Problem("parse_error", "JSON-RPC comes in text frames; this was binary."), self._root)
        )
        return None

    def submitted(self, command: Command, submitted: "Submitted") -> Sequence[str]:
        if submitted.duplicate:
            self._in_flight.discard(command.job)
            self._in_flight.add(submitted.job)
        return super().submitted(command, submitted)

    def _begin_submitted(self, command: Command, submitted: "Submitted", follower: Follower) -> None:
        result = {
            "job": submitted.job,
            "status": submitted.status,
            "cursor": str(submitted.cursor),
            "duplicate": submitted.duplicate,
        }
        self._settle(
            command, encode_result(command.id, to_json(result)), (follower, submitted.cursor, submitted.duplicate)
        )

    def _begin_attached(self, command: Command, page: Page, follower: Follower, after: Cursor) -> None:
        begin = to_json(str(START if page.gap else after))
        result = b'%b,"replay_from":%b}' % (page.snapshot.as_json()[:-1], begin)
        self._settle(command, encode_result(command.id, result), (follower, after, True))

    def answer(self, command: Command, result: bytes) -> None:
        self._settle(command, encode_result(command.id, result), None)

    def refuse(self, command: Command, problem: Problem) -> None:
        self.abandon(command)
        self._in_flight.discard(command.job)
        self._settle(command, encode_error(command.id, problem, self._root), None)
        if problem.slug == "store_unavailable" and command.params.ordered_by is LargeAnswer:
            self._refuse_those_behind(problem)

    def _refuse_those_behind(self, problem: Problem) -> None:
        """What waited for a call of a store that is away is not to wait as long again, each after the other."""
        waiting = self._turns.get(LargeAnswer) or deque()
        self._turns[LargeAnswer] = deque(command for command in waiting if command.method == "job.detach")
        for command in waiting:
            if command.method != "job.detach":
                self.refuse(command, problem)

    def _settle(self, command: Command, answer: str, start: Start | None) -> None:
        """Answer a command; what is to start does so once the answer is on its way."""
        exchange = command.exchange
        assert exchange is not None
        self._commands -= 1
        exchange.pending -= 1
        if command.expects_reply:
            exchange.answers.append(answer)
            exchange.held += len(answer)
        if start:
            exchange.starts.append(start)
        if exchange.pending == 0:
            self._asked -= exchange.size
            self._batches -= exchange.batch
            if exchange.answers:
                self._send(f"[{','.join(exchange.answers)}]" if exchange.batch else exchange.answers[0])
            for follower, after, behind in exchange.starts:
                self._begin(follower, after, behind)
        self._wake()

    def _release(self, follower: Follower) -> None:
        self._in_flight.discard(follower.job)
        super()._release(follower)

    # The hub's reader.

    def offer(self, follower: Follower, event: Event) -> bool:
        if not self._bounds.admit(event, len(self._outbox), self._bytes):
            return False
        self._outbox.append(event)
        self._bytes += len(event.data)
        if event.terminal:
            self._release(follower)
        self._wake()
        return True

    def gap(self, follower: Follower, snapshot: Snapshot | None, replay_from: str) -> None:
        params = gap_as_json(follower.job, str(follower.cursor), snapshot, replay_from)
        self._send(encode_notification("job.gap", params))
        if snapshot is None:
            self._release(follower)

    def fell_behind(self, follower: Follower) -> None:
        self._behind.append(follower)
        self._wake()

    # What is to be sent, and read.

    def _send(self, frame: str) -> None:
        self._outbox.append(frame)
        self._bytes += len(frame)
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
        """Whose log to read now. It is given out once; `log_read` puts it back."""
        while self._behind:
            follower = self._behind.popleft()
            if follower.state is State.BEHIND and self.followers.get(follower.job) is follower:
                return follower
        return None

    def drain(self, reconnect_after_ms: int) -> None:
        self._send(encode_notification("server.drain", b'{"reconnect_after_ms":%d}' % reconnect_after_ms))
