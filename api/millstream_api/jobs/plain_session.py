"""A socket without subprotocol: each frame is a job, and each is answered by one frame, in their order. No I/O.

What is held for a client is bounded: `full` says when to stop reading from the socket; an answer that finds no room is
read from the log when there is room again.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pydantic_core import from_json

from millstream.protocol.errors import Problem
from millstream.protocol.events import Event, result_in
from millstream.protocol.jobs import Snapshot
from millstream.protocol.messages import Submit
from millstream_api.jobs.hub import Follower, Hub, State
from millstream_api.jobs.session import Bounds, Command, Session

if TYPE_CHECKING:
    from millstream.store.store import Submitted

TRANSIENT_REFUSALS = ("queue_full", "too_many_in_flight", "rate_limited")  # there will be room again


class PlainSession(Session):
    def __init__(
        self,
        hub: Hub,
        analysis: str,
        bounds: Bounds,
        new_job_id: Callable[[Submit], str],
        wake: Callable[[], None],
    ) -> None:
        super().__init__(hub)
        self._analysis = analysis
        self._bounds = bounds
        self._new_job_id = new_job_id
        self._wake = wake
        self._answers: dict[str, str | None] = {}  # by job, in the order of the frames; None: there is none yet
        self._bytes = 0
        self._asked = 0  # bytes of the frames that are not accepted yet
        self._no_room = False  # an answer did not fit; none is asked for again before one has left
        self._behind: dict[str, Follower] = {}

    @property
    def full(self) -> bool:
        """Stop reading from the socket for now."""
        return len(self._answers) >= self._bounds.in_flight or self._asked >= self._bounds.bytes

    @property
    def idle(self) -> bool:
        """Nothing is owed to the client."""
        return not self._answers

    # Commands.

    def receive(self, text: str) -> list[Command]:
        request = Submit.model_construct(
            analysis=self._analysis, params={"text": text}, key=None, timeout_s=None, max_attempts=None,
            priority="default", delay_s=0, on_disconnect="continue", events="terminal",
        )  # fmt: skip
        job = self._new_job_id(request)
        self._answers[job] = None
        self._asked += len(text)
        return [Command("job.submit", request, job)]

    def receive_binary(self) -> int | None:
        """A binary frame came: the code to close with, or None."""
        return 1003

    def submitted(self, command: Command, submitted: "Submitted") -> Sequence[str]:
        self._asked -= len(command.params.params["text"])
        self._wake()
        return super().submitted(command, submitted)

    def refuse(self, command: Command, problem: Problem) -> None:
        self._asked -= len(command.params.params["text"])
        self.abandon(command)
        self._put(command.job, f"Error: {problem.detail}")

    def tries_again(self, problem: Problem) -> bool:
        """A full queue is waited for, so that the client feels it as backpressure."""
        return problem.slug in TRANSIENT_REFUSALS and not self.left

    # The hub's reader.

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

    def fell_behind(self, follower: Follower) -> None:
        self._behind[follower.job] = follower
        self._wake()

    # What is to be sent, and read.

    def _put(self, job: str, answer: str) -> None:
        self.followers.pop(job, None)
        if job in self._answers:
            self._answers[job] = answer
            self._bytes += len(answer)
            self._wake()

    def next_frame(self) -> str | None:
        job = self._first()
        if job is None or (answer := self._answers[job]) is None:
            return None
        del self._answers[job]
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
        return next(iter(self._answers), None)

    def drain(self, reconnect_after_ms: int) -> None:
        """Nothing but answers is ever sent in this mode."""


def plain_answer(event: Event) -> str:
    """The one frame that tells how a job ended."""
    if event.type == "succeeded":
        result = result_in(event.data)
        return str(from_json(result)) if result.startswith(b'"') else result.decode()
    data = from_json(event.data)
    match event.type:
        case "failed":
            return f"Error: {data['error']['message']}"
        case _:
            return f"Error: {event.type}: {data['reason']}" if data.get("reason") else f"Error: {event.type}"
