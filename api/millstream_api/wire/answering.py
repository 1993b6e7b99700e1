"""A whole answer in one message, under uvicorn: the ASGI extension `millstream.answer`.

A server that offers the extension takes `{"type": ANSWER, "answer": …, "file": …, "sent": …}` in place of a start and
bodies: an Answer of known length, the descriptor that its spans are read from, and who is called with each number of
bytes of the file that went out. connections.py offers it, for connections that are plain TCP. So a request costs one
look at its connection; the head is written as it was kept; small spans leave with it, large ones by zerocopy.py.

When `http.response.start` was sent before, the head of the answer is not sent again.
"""

from starlette.types import Message
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from millstream_api.wire.answers import Answer
from millstream_api.wire.backpressure import ClientGone, drained
from millstream_api.wire.pagecache import Cut, read
from millstream_api.wire.zerocopy import send_span

ANSWER = "millstream.answer"
SMALL = 32 * 1024  # up to here one read and one write, with the head, beat sendfile


async def answer(cycle: RequestResponseCycle, message: Message, stall_s: float) -> None:
    """Answer in place of uvicorn's `send`. Raises ClientGone, after ending the connection."""
    whole: Answer = message["answer"]
    transport = cycle.transport  # a Corked
    if cycle.flow.write_paused:
        await drained(cycle, stall_s)
    if not cycle.response_started:
        cycle.response_started = True
        cycle.waiting_for_100_continue = False
        always = [b"%b: %b\r\n" % header for header in cycle.default_headers]
        end = b"\r\n" if cycle.keep_alive else b"connection: close\r\n\r\n"
        transport.write(b"".join((STATUS_LINE[whole.status], *always, whole.head, end)))
    for part in whole.parts:
        if isinstance(part, bytes):
            transport.write(part)
        elif part.length > SMALL:
            await send_span(cycle, message["file"], part, message["sent"], stall_s)
        else:
            try:
                transport.write(await read(message["file"], part))
            except Cut:
                transport.abort()
                raise ClientGone("the file was cut short") from None
            message["sent"](part.length)
        if cycle.flow.write_paused:
            await drained(cycle, stall_s)
    cycle.response_complete = True
    cycle.message_event.set()
    if not cycle.keep_alive:
        transport.close()
    cycle.on_response()
