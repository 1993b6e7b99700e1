"""Zero-copy: the kernel sends (a part of) a file to a connection's socket, with sendfile(2)."""

import asyncio
import os
from collections.abc import Callable

from millstream_api.wire.answers import Span
from millstream_api.wire.backpressure import wait_until_sent, wait_until_writable
from millstream_api.wire.connection import ClientGone, Connection
from millstream_api.wire.pagecache import FileTruncated, cached, read_ahead

WINDOW = 512 * 1024  # sent before other streams have their turn; small enough that a CPU's cache still holds it


async def send_span(
    connection: Connection, file: int, span: Span, on_sent: Callable[[int], None], stall_s: float
) -> None:
    """Send a span of a file behind what was written; `on_sent` is called with each number of bytes sent. Raises
    ClientGone and FileTruncated, after aborting the connection.
    """
    await asyncio.sleep(0)  # requests that came together are answered together: the client is woken less often
    connection.flush()
    if connection.get_write_buffer_size():
        await wait_until_sent(connection, stall_s)
    fd = connection.fileno()
    offset, end = span.start, span.start + span.length
    try:
        while True:
            window = min(WINDOW, end - offset)
            if not cached(file, offset, window):
                await asyncio.to_thread(read_ahead, file, offset, window)
            if connection.is_closing():  # checked right before each use: a closed descriptor's number may be reused
                raise ClientGone("the client left")
            try:
                sent = os.sendfile(fd, file, offset, window)
            except BlockingIOError:
                await wait_until_writable(fd, stall_s)
                continue
            if sent == 0:
                raise FileTruncated
            on_sent(sent)
            offset += sent
            if offset == end:
                return
            await asyncio.sleep(0)
    except OSError as error:
        connection.abort()
        raise ClientGone(str(error)) from None
    except (ClientGone, FileTruncated):
        connection.abort()
        raise
