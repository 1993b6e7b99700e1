"""A job's events as an HTTP stream: server-sent events (WHATWG HTML §9.2) or JSON Lines.

A `Stream` is a reader of the hub, like a socket's session, with one follower. What it needs to be refused for is
found before the response begins; after that it can only end early, and the client goes on from its last cursor.
"""

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from fastapi.sse import format_sse_event
from pydantic_core import to_json
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from millstream.apikeys import ANONYMOUS, Principal
from millstream.protocol.events import START, Event
from millstream.protocol.jobs import Page, Snapshot
from millstream.protocol.messages import Attach, Submit, read_cursor
from millstream.store.store import Submitted
from millstream_api.jobs.commands import Commands, cancels_on_disconnect
from millstream_api.jobs.hub import Follower, State

HEARTBEAT_S = 15
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Gap:
    """The store has lost events after `after`; it goes on after `replay_from`. `snapshot` None: the job is gone."""

    job: str
    after: str
    snapshot: Snapshot | None
    replay_from: str

    def as_dict(self) -> dict[str, Any]:
        return {"type": "gap", **asdict(self)}


@dataclass(frozen=True, slots=True)
class Format:
    """How a stream is written."""

    media_type: str
    event: Callable[[Event], bytes]
    gap: Callable[[Gap], bytes]
    heartbeat: bytes
    goodbye: Callable[[int], bytes]


def _sse_event(event: Event) -> bytes:
    return format_sse_event(data_str=event.as_json(), event=event.type, id=str(event.cursor))


def _sse_gap(gap: Gap) -> bytes:
    return format_sse_event(data_str=to_json(gap.as_dict()).decode(), event="gap", id=gap.replay_from)


SSE = Format(
    "text/event-stream", _sse_event, _sse_gap, b": still here\n\n", lambda wait_ms: format_sse_event(retry=wait_ms)
)
JSON_LINES = Format(
    "application/jsonl",
    lambda event: event.as_json().encode() + b"\n",
    lambda gap: to_json(gap.as_dict()) + b"\n",
    b"",
    lambda _: b"",
)


class Stream:
    """One job's events for one response. `submit` or `attach` first, then iterate over `written`."""

    def __init__(self, commands: Commands) -> None:
        self._commands = commands
        self._hub = commands.relay.hub
        self._held: deque[Event | Gap] = deque()
        self._bytes = 0
        self._wake = asyncio.Event()
        self._follower: Follower | None = None
        self._who = ANONYMOUS
        self._cancel_on_disconnect = False

    async def submit(self, who: Principal, request: Submit) -> Submitted:
        """Submit a job; its events follow, from its first. Raises Problem."""
        who.require("read")
        self._who = who
        job = self._commands.stores.new_job_id(request)
        self._follower = self._hub.follow(job, self, terminal_only=request.events == "terminal")
        submitted = await self._or_drop(self._commands.submit(who, request, job))
        if submitted.duplicate:
            self._hub.drop(self._follower, forget=False)
            self._follower = self._hub.follow(submitted.job, self, terminal_only=request.events == "terminal")
        self._cancel_on_disconnect = cancels_on_disconnect(request, submitted)
        self._follower.start(START, behind=True)
        return submitted

    async def attach(self, who: Principal, request: Attach) -> Page:
        """Follow a job from a cursor on. Raises Problem."""
        after = read_cursor(request.after)
        self._who = who
        self._follower = self._hub.follow(request.job, self, terminal_only=request.events == "terminal")
        page = await self._or_drop(self._commands.attach(who, request))
        self._follower.start(after, behind=True)
        return page

    async def _or_drop(self, doing: Awaitable[T]) -> T:
        try:
            return await doing
        except BaseException:
            assert self._follower is not None
            self._hub.drop(self._follower, forget=False)
            raise

    async def written(self, format: Format, *, follow: bool = True) -> AsyncIterator[bytes]:
        """The stream, in blocks; it ends after the terminal event, or (not `follow`) with what is there now, or when
        the reader's key is no longer good.
        """
        follower = self._follower
        assert follower is not None
        draining = asyncio.ensure_future(self._commands.draining.wait())
        draining.add_done_callback(lambda _: self._wake.set())
        try:
            while self._commands.keys.is_still_valid(self._who):
                self._wake.clear()
                if follower.state is State.BEHIND:
                    await self._commands.catch_up(follower)
                if block := self._taken(format):
                    yield block
                elif follower.state is State.DONE or (not follow and follower.state is State.LIVE):
                    return
                elif draining.done():
                    settings = self._commands.settings
                    yield format.goodbye(random.randint(0, settings.reconnect_ms))
                    return
                elif follower.state is State.LIVE and not await self._woken() and format.heartbeat:
                    yield format.heartbeat
        finally:
            draining.cancel()

    async def end(self) -> None:
        """Wait for the end of the stream; what it holds is of no interest."""
        async for _ in self.written(JSON_LINES):
            pass

    def _taken(self, format: Format) -> bytes:
        """Everything that is held, written."""
        parts = [format.gap(item) if isinstance(item, Gap) else format.event(item) for item in self._held]
        self._held.clear()
        self._bytes = 0
        return b"".join(parts)

    async def _woken(self) -> bool:
        try:
            async with asyncio.timeout(HEARTBEAT_S):
                await self._wake.wait()
        except TimeoutError:
            return False
        return True

    async def close(self, *, left: bool) -> None:
        """Nobody reads on; `left`: unless the job has ended, that is because the client left."""
        if follower := self._follower:
            ended = follower.state is State.DONE
            self._hub.drop(follower)
            if left and not ended and self._cancel_on_disconnect:
                await self._commands.cancel_after_disconnect(self._who, follower.job)

    # The hub's reader.

    def offer(self, follower: Follower, event: Event) -> bool:
        settings = self._commands.settings
        full = len(self._held) >= settings.reader_events or self._bytes + len(event.data) > settings.reader_bytes
        if full and self._held:
            return False
        self._held.append(event)
        self._bytes += len(event.data)
        self._wake.set()
        return True

    def gap(self, follower: Follower, snapshot: Snapshot | None, replay_from: str) -> None:
        self._held.append(Gap(follower.job, str(follower.cursor), snapshot, replay_from))
        self._wake.set()

    def fell_behind(self, follower: Follower) -> None:
        self._wake.set()


class StreamResponse(StreamingResponse):
    """A response that ends its stream's following, whether or not it was ever iterated."""

    def __init__(
        self, stream: Stream, format: Format, *, follow: bool = True, headers: dict[str, str] | None = None
    ) -> None:
        headers = {"Cache-Control": "no-cache", "Vary": "Accept", "X-Accel-Buffering": "no", **(headers or {})}
        super().__init__(stream.written(format, follow=follow), headers=headers, media_type=format.media_type)
        self._stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._stream.close(left=True)
