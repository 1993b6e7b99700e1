"""Zero-copy under uvicorn: the ASGI extension `http.response.pathsend`, answered with sendfile(2).

An ASGI server that offers the extension takes `{"type": "http.response.pathsend", "path": …}` in place of a body.
uvicorn offers none; connections.py does for it, for connections that are plain TCP. `copy` waits until the headers have
left the transport, and has the kernel copy the file to the socket. Beside a path it takes `file` (a descriptor),
`offset` and `count`, `sent` (called with each number of bytes that went out), and `more_body` as a body does.
"""

import asyncio
import fcntl
import os
import sys
import termios
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from starlette.types import Message
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

EXTENSION = "http.response.pathsend"
WINDOW = 1024 * 1024  # what one stream sends before the others have their turn
PROBE = 128 * 1024  # a window counts as cached when one byte in every so many is


class ClientGone(Exception):
    """The client left, or read nothing for too long, or the file is shorter than was promised: the connection is
    ended.
    """


async def copy(cycle: RequestResponseCycle, message: Message, stall_s: float) -> None:
    """Answer `http.response.pathsend` in place of uvicorn. Raises ClientGone, after ending the connection."""
    opened = os.open(message["path"], os.O_RDONLY | os.O_CLOEXEC) if "file" not in message else None
    file: int = message["file"] if opened is None else opened
    try:
        offset = message.get("offset", 0)
        count = message.get("count", os.fstat(file).st_size - offset)
        if count and not cycle.transport.is_closing() and cycle.scope["method"] != "HEAD":
            async with in_time(cycle.transport, stall_s):
                await _flushed(cycle)
            await _send_file(cycle, file, offset, count, message.get("sent"), stall_s)
            cycle.expected_content_length -= count
    finally:
        if opened is not None:
            os.close(opened)
    await cycle.send({"type": "http.response.body", "body": b"", "more_body": message.get("more_body", False)})


async def _send_file(
    cycle: RequestResponseCycle,
    file: int,
    offset: int,
    count: int,
    told: Callable[[int], None] | None,
    stall_s: float,
) -> None:
    """Copy `count` bytes to the socket. Raises ClientGone, after ending the connection."""
    loop = asyncio.get_running_loop()
    if cycle.transport.is_closing():
        raise ClientGone("the client left")
    # A dup: uvloop lets nobody watch a transport's own descriptor, and a number that is reused is never written to.
    out = os.dup(cycle.transport.get_extra_info("socket").fileno())
    try:
        end = offset + count
        while offset < end:
            if cycle.transport.is_closing():
                raise ClientGone("the client left")
            window = min(WINDOW, end - offset)
            if not cached(file, offset, window):
                await loop.run_in_executor(None, read_ahead, file, offset, window)
            sent = await _send_window(loop, out, file, offset, window, stall_s)
            if sent == 0:
                raise ClientGone("the file was cut short")
            offset += sent
            if told:
                told(sent)
            if offset < end:
                await asyncio.sleep(0)
    except (ClientGone, OSError) as error:
        cycle.transport.abort()
        raise ClientGone(str(error)) from None
    finally:
        os.close(out)


async def _send_window(
    loop: asyncio.AbstractEventLoop, out: int, file: int, offset: int, count: int, stall_s: float
) -> int:
    while True:
        try:
            return os.sendfile(out, file, offset, count)
        except BlockingIOError:
            await _writable(loop, out, stall_s)


async def _flushed(cycle: RequestResponseCycle) -> None:
    """Wait until what the transport holds, the headers, has gone to the socket."""
    transport = cycle.transport
    if not transport.get_write_buffer_size():
        return
    await asyncio.sleep(0)  # uvloop writes at the end of the tick
    if not transport.get_write_buffer_size():
        return
    low, high = transport.get_write_buffer_limits()
    transport.set_write_buffer_limits(0)
    try:
        while transport.get_write_buffer_size() and not transport.is_closing():
            await asyncio.sleep(0.001)
            await cycle.flow.drain()
    finally:
        transport.set_write_buffer_limits(high, low)


@asynccontextmanager
async def in_time(transport: asyncio.Transport, timeout_s: float) -> AsyncIterator[None]:
    """End the connection when what is done here takes longer; whatever waits for the client then goes on."""
    timer = asyncio.get_running_loop().call_later(timeout_s, transport.abort)
    try:
        yield
    finally:
        timer.cancel()


async def _writable(loop: asyncio.AbstractEventLoop, out: int, timeout_s: float) -> None:
    """Wait until the socket takes more. Raises ClientGone when the client takes nothing for so long.

    A large buffer counts as writable only when a third of it is free, which a slow client may not reach in time: so
    what it has acknowledged counts too.
    """
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_writer(out, _resolve, ready)
    queued = _queued(out)
    try:
        while not (await asyncio.wait({ready}, timeout=timeout_s))[0]:
            before, queued = queued, _queued(out)
            if queued >= before:
                raise ClientGone("the client reads nothing")
    finally:
        loop.remove_writer(out)


def _queued(out: int) -> int:
    """The bytes that the kernel holds for the other side, sent or not, that it has not acknowledged."""
    return int.from_bytes(fcntl.ioctl(out, termios.TIOCOUTQ, bytes(4)), sys.byteorder)


def _resolve(ready: "asyncio.Future[None]") -> None:
    if not ready.done():
        ready.set_result(None)


def cached(file: int, offset: int, count: int) -> bool:
    """Are these bytes in the page cache, as far as one in every PROBE tells? True where the file system cannot say."""
    byte = bytearray(1)
    last = offset + count - 1
    for place in (*range(offset, last, PROBE), last):
        try:
            os.preadv(file, [byte], place, _NOWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True
    return True


def read_ahead(file: int, offset: int, count: int) -> None:
    """Bring these bytes into the page cache; for a thread."""
    scratch = bytearray(min(count, 256 * 1024))
    end = offset + count
    while offset < end:
        read = os.preadv(file, [scratch], offset)
        if not read:
            return
        offset += read


_NOWAIT: int = getattr(os, "RWF_NOWAIT", 0)
