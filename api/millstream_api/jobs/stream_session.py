"""What one HTTP stream has to write: the events of one job, all from its first or from a cursor on. No I/O."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from millstream.protocol.events import START, Cursor, Event
from millstream.protocol.jobs import Snapshot
from millstream.protocol.messages import gap_as_json
from millstream_api.jobs.hub import Follower, Hub
from millstream_api.jobs.session import Bounds, Command, Session

if TYPE_CHECKING:
    from millstream.store.store import Submitted


@dataclass(frozen=True, slots=True)
class Gap:
    """The store has lost events after `after`; it goes on after `replay_from`. `snapshot` None: the job is gone."""

    job: str
    after: str
    snapshot: Snapshot | None
    replay_from: str

    def as_json(self) -> bytes:
        return b'{"type":"gap",%b' % gap_as_json(self.job, self.after, self.snapshot, self.replay_from)[1:]


class StreamSession(Session):
    """`follower` is there once a submit or an attach has succeeded."""

    def __init__(self, hub: Hub, bounds: Bounds, wake: Callable[[], None]) -> None:
        super().__init__(hub)
        self.follower: Follower | None = None
        self._bounds = bounds
        self._wake = wake
        self._held: list[Event | Gap] = []
        self._bytes = 0

    def take(self) -> Sequence[Event | Gap]:
        """Everything that is held."""
        held, self._held, self._bytes = self._held, [], 0
        return held

    def _begin_submitted(self, command: Command, submitted: "Submitted", follower: Follower) -> None:
        self._begin(follower, START, True)  # no answer tells event 1, so the stream has it, too

    def _begin(self, follower: Follower, after: Cursor, behind: bool) -> None:
        self.follower = follower
        super()._begin(follower, after, behind)

    # The hub's reader.

    def offer(self, follower: Follower, event: Event) -> bool:
        if not self._bounds.admit(event, len(self._held), self._bytes):
            return False
        self._held.append(event)
        self._bytes += len(event.data)
        if event.terminal:
            self._release(follower)
        self._wake()
        return True

    def gap(self, follower: Follower, snapshot: Snapshot | None, replay_from: str) -> None:
        self._held.append(Gap(follower.job, str(follower.cursor), snapshot, replay_from))
        self._wake()

    def fell_behind(self, follower: Follower) -> None:
        self._wake()
