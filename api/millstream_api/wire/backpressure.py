"""Waiting for a slow client, and giving up on one that has stopped reading.

A client counts as slow, not gone, as long as it takes something within each time limit, however little: the bytes that
the kernel holds for it become fewer with each byte that it acknowledges.
"""

import asyncio
import fcntl
import os
import sys
import termios
from collections.abc import Callable

from starlette.types import Receive

from millstream_api.wire.connection import ClientGone, Connection


async def wait_until_sent(connection: Connection, stall_s: float) -> None:
    """Wait until the socket has taken all that was written. Raises ClientGone, after aborting the connection, when the
    client takes nothing for `stall_s`.
    """
    if connection.is_closing():
        raise ClientGone("the client left")
    fd = connection.fileno()
    empty = asyncio.ensure_future(connection.wait_until_empty())

    def pending() -> int:
        return 0 if connection.is_closing() else connection.get_write_buffer_size() + _unacknowledged(fd)

    try:
        await _wait_while_read(empty, pending, stall_s)
    except ClientGone:
        connection.abort()
        raise
    finally:
        empty.cancel()
    if connection.is_closing():
        raise ClientGone("the client left")


async def wait_until_writable(fd: int, stall_s: float) -> None:
    """Wait until the socket takes more. Raises ClientGone when the client takes nothing for `stall_s`.

    A large buffer counts as writable only when a third of it is free, which a slow client may not reach in time.
    """
    loop = asyncio.get_running_loop()
    writable: asyncio.Future[None] = loop.create_future()
    fd = os.dup(fd)  # uvloop refuses to watch the descriptor of one of its transports
    loop.add_writer(fd, _resolve, writable)
    try:
        await _wait_while_read(writable, lambda: _unacknowledged(fd), stall_s)
    finally:
        loop.remove_writer(fd)
        os.close(fd)


async def wait_for_disconnect(receive: Receive) -> None:
    """Returns when the client has disconnected."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _wait_while_read(done: asyncio.Future[None], pending: Callable[[], int], stall_s: float) -> None:
    """Wait for `done` as long as the bytes pending for the client become fewer every `stall_s`. Raises ClientGone."""
    now = pending()
    while not (await asyncio.wait({done}, timeout=stall_s))[0]:
        before, now = now, pending()
        if now >= before:
            raise ClientGone("the client reads nothing")


def _unacknowledged(fd: int) -> int:
    """The bytes that the kernel holds for the client, sent or not, that it has not acknowledged."""
    return int.from_bytes(fcntl.ioctl(fd, termios.TIOCOUTQ, bytes(4)), sys.byteorder)


def _resolve(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)
