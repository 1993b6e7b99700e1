"""Writing the events of one attempt."""

import asyncio
from collections.abc import Callable

from millstream.store.store import Claimed, LeaseLost, LogFull, Store
from millstream_worker.outcome import OutputTooLarge

MAX_BUFFERED_EVENTS = 512
MAX_BUFFERED_BYTES = 512 * 1024
GROUP_BYTES = MAX_BUFFERED_BYTES // 2

Event = tuple[str, bytes]  # its type, and its data as JSON


class EventWriter:
    """Numbers the events of an attempt and appends them to the job's log, in groups: while one call to the store is
    under way, the events that follow are gathered for the next. A caller that is faster than the store waits once the
    buffer is full. An event leaves the buffer only when the log has it, so that none can be passed over.

    `written` counts the events that the log has. `broken` is why no more can be written: OutputTooLarge when the log
    is full; anything else (LeaseLost, StoreUnavailable, a defect) when the attempt is lost, which `on_lost` is called
    for.
    """

    __slots__ = (
        "_appending", "_buffer", "_closed", "_job", "_max_event_bytes", "_store", "_under_way", "_waiting_bytes",
        "broken", "on_lost", "written",
    )  # fmt: skip

    def __init__(self, store: Store, job: Claimed, *, max_event_bytes: int, on_lost: Callable[[], None]) -> None:
        self.written = 0
        self.broken: Exception | None = None
        self.on_lost: Callable[[], None] | None = on_lost
        self._store = store
        self._job = job
        self._max_event_bytes = max_event_bytes
        self._buffer: list[Event] = []
        self._under_way = 0  # events at the head of the buffer that a call takes to the store
        self._waiting_bytes = 0  # of those behind them
        self._closed = False
        self._appending: asyncio.Task[None] | None = None

    async def write(self, type: str, data: bytes) -> None:
        """Buffer an event, and wait while the buffer is full. Raises OutputTooLarge, LeaseLost after `close`, and what
        `broken` holds.
        """
        if error := self._refusal(type, len(data)):
            await asyncio.sleep(0)  # or a loop that emits on after every error would leave others no turn
            raise error
        if type == "progress" and self._waiting > 0 and self._buffer[-1][0] == "progress":
            _, passed = self._buffer.pop()  # not sent yet, and already history
            self._waiting_bytes -= len(passed)
        self._buffer.append((type, data))
        self._waiting_bytes += len(data)
        if self._appending is None:
            self._appending = asyncio.create_task(self._append())
        while self._waiting >= MAX_BUFFERED_EVENTS or self._waiting_bytes >= MAX_BUFFERED_BYTES:
            await asyncio.wait({self._appending})
            if self.broken:
                raise self.broken

    def _refusal(self, type: str, size: int) -> Exception | None:
        if self.broken:
            return self.broken
        if self._closed:
            return LeaseLost(f"The attempt of job {self._job.id} has ended.")
        if size > self._max_event_bytes:
            text = f"A {type} of {size} bytes is over the limit of {self._max_event_bytes} for one event."
            return OutputTooLarge(text)
        return None

    @property
    def _waiting(self) -> int:
        return len(self._buffer) - self._under_way

    def close(self) -> None:
        """Take no more events: a task that the analysis left behind does not hold up the end of its attempt."""
        self._closed = True

    async def flush(self) -> None:
        """Wait until the log has every event, or the writer is broken. Raises nothing."""
        while self._appending:
            await asyncio.wait({self._appending})

    async def _append(self) -> None:
        try:
            while self._buffer:
                group, size = first_group(self._buffer)
                self._under_way = len(group)
                self._waiting_bytes -= size
                await self._store.append(self._job, self.written + 1, group)
                del self._buffer[: len(group)]
                self._under_way = 0
                self.written += len(group)
        except LogFull:
            self.broken = OutputTooLarge("The job's log is full.")
        except Exception as error:
            self.broken = error
            if self.on_lost:
                self.on_lost()
        finally:
            self._appending = None


def first_group(events: list[Event]) -> tuple[list[Event], int]:
    """As many of the events as make one call of a bounded size, and their size in bytes."""
    size = 0
    for count, (_, data) in enumerate(events, 1):
        size += len(data)
        if size >= GROUP_BYTES:
            return events[:count], size
    return list(events), size
