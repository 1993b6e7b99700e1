"""A job's events as an HTTP stream: server-sent events (WHATWG HTML §9.2) or JSON Lines.

A `Stream` has a session, as a socket has, for one job. What it needs to be refused for is found before the response
begins; after that it can only end early, and the client goes on from its last cursor.
"""

import asyncio
import random
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass

from fastapi.sse import format_sse_event
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from millstream.apikeys import ANONYMOUS, Principal
from millstream.protocol.events import Event
from millstream.protocol.jobs import Page
from millstream.protocol.messages import Attach, Submit
from millstream.store.store import Submitted
from millstream_api.jobs.commands import Commands
from millstream_api.jobs.hub import State
from millstream_api.jobs.session import Bounds, Command
from millstream_api.jobs.stream_session import Gap, StreamSession
from millstream_api.wire.backpressure import wait_for_disconnect
from millstream_api.wire.connection import ClientGone, connection_of


@dataclass(frozen=True, slots=True)
class Format:
    """How a stream is written. `heartbeat` is what a quiet one has now and then: proxies close those that have none."""

    media_type: str
    event: Callable[[Event], bytes]
    gap: Callable[[Gap], bytes]
    heartbeat: bytes
    goodbye: Callable[[int], bytes]


def _sse_event(event: Event) -> bytes:
    return format_sse_event(data_str=event.as_json(), event=event.type, id=str(event.cursor))


def _sse_gap(gap: Gap) -> bytes:
    return format_sse_event(data_str=gap.as_json().decode(), event="gap", id=gap.replay_from)


SSE = Format(
    "text/event-stream", _sse_event, _sse_gap, b": still here\n\n", lambda wait_ms: format_sse_event(retry=wait_ms)
)
JSON_LINES = Format(
    "application/jsonl",
    lambda event: event.as_json().encode() + b"\n",
    lambda gap: gap.as_json() + b"\n",
    b"\n",
    lambda _: b"",
)


class Stream:
    """One job's events for one response. `submit` or `attach` first, then iterate over `written`."""

    def __init__(self, commands: Commands) -> None:
        bounds = Bounds(events=commands.settings.reader_events, bytes=commands.settings.reader_bytes)
        self._commands = commands
        self._wake = asyncio.Event()
        self._session = StreamSession(commands.relay.hub, bounds, self._wake.set)
        self._who = ANONYMOUS
        self._following = True

    async def submit(self, who: Principal, request: Submit) -> Submitted:
        """Submit a job; its events follow, from its first. Raises Problem."""
        who.require("read")
        self._who = who
        command = Command("job.submit", request, self._commands.stores.new_job_id(request))
        self._session.submitting(command)
        try:
            submitted = await self._commands.submit(who, request, command.job)
        except BaseException:
            self._session.abandon(command)
            raise
        self._session.submitted(command, submitted)
        return submitted

    async def attach(self, who: Principal, request: Attach) -> Page:
        """Follow a job from a cursor on. Raises Problem."""
        self._who = who
        command = Command("job.attach", request, "")
        self._session.attaching(command)
        try:
            page = await self._commands.attach(who, request)
        except BaseException:
            self._session.abandon(command)
            raise
        self._session.attached(command, page)
        return page

    def stop_following(self) -> None:
        """Let the stream end with what is there now."""
        self._following = False
        self._wake.set()

    async def written(self, format: Format) -> AsyncGenerator[bytes]:
        """The stream, in blocks; it ends after the terminal event, after `stop_following`, or when the reader's key is
        no longer good.
        """
        session, follower = self._session, self._session.follower
        assert follower is not None
        draining = asyncio.ensure_future(self._commands.draining.wait())
        draining.add_done_callback(lambda _: self._wake.set())
        try:
            while self._commands.keys.is_still_valid(self._who):
                self._wake.clear()
                if follower.state is State.BEHIND:
                    await self._commands.catch_up(follower)
                    session.log_read(follower)
                if held := session.take():
                    yield b"".join([format.gap(item) if isinstance(item, Gap) else format.event(item) for item in held])
                elif follower.state is State.DONE or (not self._following and follower.state is State.LIVE):
                    return
                elif draining.done():
                    settings = self._commands.settings
                    yield format.goodbye(random.randint(0, settings.reconnect_ms))
                    return
                elif follower.state is State.LIVE and not await self._woken():
                    yield format.heartbeat
        finally:
            draining.cancel()

    async def end(self) -> None:
        """Wait for the end of the stream; what it holds is of no interest."""
        async for _ in self.written(JSON_LINES):
            pass

    async def _woken(self) -> bool:
        try:
            async with asyncio.timeout(self._commands.settings.heartbeat_s):
                await self._wake.wait()
        except TimeoutError:
            return False
        return True

    async def close(self, *, left: bool) -> None:
        """The stream is no longer read; `left`: because the client left, unless the job has ended."""
        for job in self._session.leave():
            if left:
                await self._commands.cancel_after_disconnect(self._who, job)


class StreamResponse(Response):
    """A response that ends its stream's following, whether or not it was ever iterated.

    A client may close its side of the connection and go on reading (RFC 9293 §3.6): it is sent what is there already.
    """

    def __init__(self, stream: Stream, format: Format, headers: dict[str, str] | None = None) -> None:
        self.status_code, self.media_type, self.background = 200, format.media_type, None
        self.init_headers({"Cache-Control": "no-cache", "Vary": "Accept", "X-Accel-Buffering": "no", **(headers or {})})
        self._stream = stream
        self._format = format

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        leaving = asyncio.ensure_future(wait_for_disconnect(receive))
        leaving.add_done_callback(lambda _: self._stream.stop_following())
        try:
            with suppress(OSError, ClientGone):
                await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                async with aclosing(self._stream.written(self._format)) as blocks:
                    async for block in blocks:
                        if leaving.done() and reads_no_more(scope):
                            return
                        await send({"type": "http.response.body", "body": block, "more_body": True})
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            leaving.cancel()
            await self._stream.close(left=True)


def reads_no_more(scope: Scope) -> bool:
    """Of a client that has disconnected: is the connection closed, or was only its side of it?"""
    connection = connection_of(scope)
    return connection is None or connection.is_closing()
