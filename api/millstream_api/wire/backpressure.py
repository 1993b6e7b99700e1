"""Waiting for a client that takes its time, and knowing the one that takes nothing any more.

A client is slow, not gone, as long as it takes something in each time limit, however little: what the kernel holds for
it gets less with each byte that it acknowledges.
"""

import asyncio
import fcntl
import os
import sys
import termios
from collections.abc import Callable

from starlette.types import Receive
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle


class ClientGone(Exception):
    """The client left, or read nothing for too long, or the file is shorter than was promised: the connection is
    ended.
    """


async def drained(cycle: RequestResponseCycle, stall_s: float) -> None:
    """Wait until what the transport holds has gone to the socket. Raises ClientGone, after ending the connection, when
    the client takes nothing for so long.
    """
    transport = cycle.transport
    if transport.is_closing():
        raise ClientGone("the client left")
    out: int = transport.get_extra_info("socket").fileno()
    low, high = transport.get_write_buffer_limits()
    transport.set_write_buffer_limits(0)  # now it says that it is full, until it holds nothing
    emptied = asyncio.ensure_future(cycle.flow.drain())

    def left() -> int:
        return 0 if transport.is_closing() else transport.get_write_buffer_size() + _queued(out)

    try:
        await _while_it_takes(emptied, left, stall_s)
    except ClientGone:
        transport.abort()
        raise
    finally:
        emptied.cancel()
    if transport.is_closing():
        raise ClientGone("the client left")
    transport.set_write_buffer_limits(high, low)


async def writable(out: int, stall_s: float) -> None:
    """Wait until the socket takes more. Raises ClientGone when the client takes nothing for so long.

    A large buffer counts as writable only when a third of it is free, which a slow client may not reach in time.
    """
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    out = os.dup(out)  # uvloop lets nobody watch a transport's own
    loop.add_writer(out, _resolve, ready)
    try:
        await _while_it_takes(ready, lambda: _queued(out), stall_s)
    finally:
        loop.remove_writer(out)
        os.close(out)


async def wait_for_disconnect(receive: Receive) -> None:
    """Returns when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _while_it_takes(done: asyncio.Future[None], left: Callable[[], int], stall_s: float) -> None:
    """Wait until it is done, as long as what is left for the client gets less. Raises ClientGone."""
    now = left()
    while not (await asyncio.wait({done}, timeout=stall_s))[0]:
        before, now = now, left()
        if now >= before:
            raise ClientGone("the client reads nothing")


def _queued(out: int) -> int:
    """The bytes that the kernel holds for the other side, sent or not, that it has not acknowledged."""
    return int.from_bytes(fcntl.ioctl(out, termios.TIOCOUTQ, bytes(4)), sys.byteorder)


def _resolve(ready: "asyncio.Future[None]") -> None:
    if not ready.done():
        ready.set_result(None)
