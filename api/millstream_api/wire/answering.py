"""The ASGI extension `millstream.answer`: a whole response in one message.

A server that offers it takes `{"type": ANSWER, "answer": …, "file": …, "on_sent": …}` in place of a start and bodies:
an Answer of known length, the descriptor that its spans are read from, and a callback for each number of bytes of the
file that went out. The head is written as the app keeps it; small spans leave in the same write, large ones by
sendfile.

After `http.response.start` the head of the answer is not sent again.
"""

from starlette.types import Message

from millstream_api.wire.answers import Answer
from millstream_api.wire.backpressure import wait_until_sent
from millstream_api.wire.connection import Connection
from millstream_api.wire.pagecache import FileTruncated, read
from millstream_api.wire.zerocopy import send_span

ANSWER = "millstream.answer"
SMALL = 32 * 1024  # up to this size, reading a span and writing it with the head is cheaper than sendfile


async def write_answer(connection: Connection, message: Message, stall_s: float) -> None:
    """Write the whole response. Raises ClientGone and FileTruncated, after aborting the connection."""
    answer: Answer = message["answer"]
    if connection.write_paused:
        await wait_until_sent(connection, stall_s)
    connection.start_response(answer.status, answer.head)
    for part in answer.parts:
        if isinstance(part, bytes):
            connection.write(part)
        elif part.length > SMALL:
            await send_span(connection, message["file"], part, message["on_sent"], stall_s)
        else:
            try:
                connection.write(await read(message["file"], part))
            except FileTruncated:
                connection.abort()
                raise
            message["on_sent"](part.length)
        if connection.write_paused:
            await wait_until_sent(connection, stall_s)
    connection.end_response()
