"""Sending a file, or parts of it: the one place that chooses between zero-copy and reading.

Small parts are read, in one call when the page cache has them; large ones go by the server's `http.response.pathsend`
where it offers that (see zerocopy.py), else in blocks that aiofiles reads. A cold disk never stalls the loop.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from time import monotonic

import aiofiles
from starlette.types import Message, Receive, Scope, Send

from api.connections import TRANSPORT
from api.ranges import Span
from api.zerocopy import EXTENSION, ClientGone

SMALL = 64 * 1024  # up to here one read and one write, with the headers, beat sendfile
BLOCK = 256 * 1024


@dataclass(slots=True)
class Traffic:
    """What the operator wants to know of streams: how many are open, what was sent since the start, and the rate of
    late.
    """

    open: int = 0
    streams: int = 0
    bytes_sent: int = 0
    _marks: list[tuple[float, int]] = field(default_factory=lambda: [(monotonic(), 0)])

    def sent(self, count: int) -> None:
        self.bytes_sent += count
        now = monotonic()
        if now - self._marks[-1][0] >= 1:
            self._marks = [*self._marks[-10:], (now, self.bytes_sent)]

    def as_dict(self) -> dict[str, int]:
        since, before = self._marks[0]
        rate = (self.bytes_sent - before) / max(1e-3, monotonic() - since)
        return {"open": self.open, "streams": self.streams, "bytes_sent": self.bytes_sent, "bytes_per_s": round(rate)}


class Cut(Exception):
    """The file is shorter than it was: the connection must end, so that the client sees a short body."""


def patient(scope: Scope, send: Send, stall_s: float) -> Send:
    """A `send` that ends the connection of a client that reads nothing for so long, and raises ClientGone when it has
    ended.
    """
    transport = connection(scope)
    if transport is None:
        return send
    loop = asyncio.get_running_loop()

    async def send_in_time(message: Message) -> None:
        if transport.is_closing():
            raise ClientGone("the client left")
        if message["type"] == EXTENSION or not transport.get_write_buffer_size():
            await send(message)  # looks after itself, or has nothing to wait for
            return
        timer = loop.call_later(stall_s, transport.abort)
        try:
            await send(message)
        except RuntimeError:  # uvloop's, for a transport that was closed meanwhile
            if not transport.is_closing():
                raise
            raise ClientGone("the client left, or read nothing") from None
        finally:
            timer.cancel()

    return send_in_time


def connection(scope: Scope) -> asyncio.Transport | None:
    """The transport of a request, where the server shows it (see connections.py)."""
    transport: asyncio.Transport | None = scope.get("extensions", {}).get(TRANSPORT)
    return transport


async def send_part(
    scope: Scope, receive: Receive, send: Send, file: int, span: Span, traffic: Traffic, *, more: bool, stall_s: float
) -> None:
    """Send these bytes as (a part of) the body; the headers were sent. Raises Cut, ClientGone."""
    if span.count <= SMALL:
        data = await _read(file, span.start, span.count)
        if len(data) < span.count:
            raise Cut
        await send({"type": "http.response.body", "body": data, "more_body": more})
        traffic.sent(len(data))
    elif EXTENSION in scope.get("extensions", {}):
        message = {"type": EXTENSION, "path": f"/proc/self/fd/{file}", "file": file, "more_body": more}
        await send({**message, "offset": span.start, "count": span.count, "sent": traffic.sent})
    else:
        leaving = asyncio.ensure_future(until_left(receive))
        try:
            left = span.count
            async for block in _blocks(file, span):
                async with asyncio.timeout(stall_s):
                    await send({"type": "http.response.body", "body": block, "more_body": more or left > len(block)})
                left -= len(block)
                traffic.sent(len(block))
                if leaving.done():
                    raise ClientGone("the client left")
        except TimeoutError:
            raise ClientGone("the client reads nothing") from None
        finally:
            leaving.cancel()


async def _blocks(file: int, span: Span) -> AsyncIterator[bytes | bytearray]:
    """The bytes in blocks: straight from the page cache, or through a thread. Raises Cut."""
    offset, end = span.start, span.start + span.count
    async with aiofiles.open(os.dup(file), "rb", buffering=0) as handle:
        while offset < end:
            count = min(BLOCK, end - offset)
            data = _read_cached(file, offset, count)
            if len(data) < count:
                await handle.seek(offset)
                data = await handle.read(count)
            if not data:
                raise Cut
            yield data
            offset += len(data)


async def _read(file: int, offset: int, count: int) -> bytes | bytearray:
    data = _read_cached(file, offset, count)
    if len(data) < count:
        data = await asyncio.to_thread(os.pread, file, count, offset)
    return data


def _read_cached(file: int, offset: int, count: int) -> bytes | bytearray:
    """These bytes if the page cache has them all; else fewer."""
    buffer = bytearray(count)
    try:
        read = os.preadv(file, [buffer], offset, getattr(os, "RWF_NOWAIT", 0))
    except OSError:
        return b""
    return buffer if read == count else b""


async def until_left(receive: Receive) -> None:
    """Returns when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass
