"""Zero-copy: the kernel sends (a part of) a file to the socket of one of uvicorn's connections, with sendfile(2)."""

import asyncio
import os
from collections.abc import Callable

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from millstream_api.wire.answers import Span
from millstream_api.wire.backpressure import ClientGone, drained, writable
from millstream_api.wire.pagecache import cached, read_ahead

WINDOW = 512 * 1024  # what one stream sends before the others have their turn; the client finds it in a CPU's cache


async def send_span(
    cycle: RequestResponseCycle, file: int, span: Span, told: Callable[[int], None], stall_s: float
) -> None:
    """Send these bytes behind what was written. Raises ClientGone, after ending the connection."""
    transport = cycle.transport
    await asyncio.sleep(0)  # requests that came together are answered together: the client is woken less often
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
                await writable(out, stall_s)
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
