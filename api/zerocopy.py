"""Zero-copy: the kernel sends (a part of) a file to the socket of one of uvicorn's connections, with sendfile(2)."""

import asyncio
import fcntl
import os
import sys
import termios
from collections.abc import Callable

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from api.pagecache import cached, read_ahead
from api.ranges import Span

WINDOW = 1024 * 1024  # what one stream sends before the others have their turn


class ClientGone(Exception):
    """The client left, or read nothing for too long, or the file is shorter than was promised: the connection is
    ended.
    """


async def copy(cycle: RequestResponseCycle, file: int, span: Span, told: Callable[[int], None], stall_s: float) -> None:
    """Send these bytes behind what was written. Raises ClientGone, after ending the connection."""
    transport = cycle.transport
    transport.flush()  # type: ignore[attr-defined]  # a Corked
    if transport.get_write_buffer_size():
        await drained(cycle, stall_s)
    out: int = transport.get_extra_info("socket").fileno()
    offset, end = span.start, span.start + span.length
    try:
        while True:
            window = min(WINDOW, end - offset)
            if not cached(file, offset, window):
                await asyncio.to_thread(read_ahead, file, offset, window)
            if transport.is_closing():  # looked at right before: the descriptor's number may be another's later
                raise ClientGone("the client left")
            try:
                sent = os.sendfile(out, file, offset, window)
            except BlockingIOError:
                await _writable(out, stall_s)
                continue
            if sent == 0:
                raise ClientGone("the file was cut short")
            told(sent)
            offset += sent
            if offset == end:
                return
            await asyncio.sleep(0)
    except (ClientGone, OSError) as error:
        transport.abort()
        raise ClientGone(str(error)) from None


async def drained(cycle: RequestResponseCycle, stall_s: float) -> None:
    """Wait until what the transport holds has gone to the socket. Raises ClientGone, after ending the connection, when
    the client takes nothing for so long.
    """
    transport = cycle.transport
    if transport.is_closing():
        raise ClientGone("the client left")
    out: int = transport.get_extra_info("socket").fileno()
    low, high = transport.get_write_buffer_limits()
    transport.set_write_buffer_limits(0)
    left = transport.get_write_buffer_size() + _queued(out)
    while transport.get_write_buffer_size() and not transport.is_closing():
        try:
            async with asyncio.timeout(stall_s):
                await asyncio.sleep(0.001)
                await cycle.flow.drain()
        except TimeoutError:
            before, left = left, transport.get_write_buffer_size() + _queued(out)
            if left >= before:
                transport.abort()
    if transport.is_closing():
        raise ClientGone("the client left, or read nothing")
    transport.set_write_buffer_limits(high, low)


async def _writable(out: int, timeout_s: float) -> None:
    """Wait until the socket takes more. Raises ClientGone when the client takes nothing for so long.

    A large buffer counts as writable only when a third of it is free, which a slow client may not reach in time: so
    what it has acknowledged counts too.
    """
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    out = os.dup(out)  # uvloop lets nobody watch a transport's own
    loop.add_writer(out, _resolve, ready)
    queued = _queued(out)
    try:
        while not (await asyncio.wait({ready}, timeout=timeout_s))[0]:
            before, queued = queued, _queued(out)
            if queued >= before:
                raise ClientGone("the client reads nothing")
    finally:
        loop.remove_writer(out)
        os.close(out)


def _queued(out: int) -> int:
    """The bytes that the kernel holds for the other side, sent or not, that it has not acknowledged."""
    return int.from_bytes(fcntl.ioctl(out, termios.TIOCOUTQ, bytes(4)), sys.byteorder)


def _resolve(ready: "asyncio.Future[None]") -> None:
    if not ready.done():
        ready.set_result(None)
