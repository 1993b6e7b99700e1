"""Sending an answer with (parts of) a file: the one place that chooses between the server's `millstream.answer`, where
it is offered (see answering.py), and plain ASGI, with blocks that aiofiles reads.
"""

import asyncio
from dataclasses import dataclass, field
from time import monotonic

from starlette.types import Receive, Scope, Send

from millstream_api.wire.answering import ANSWER
from millstream_api.wire.answers import Answer
from millstream_api.wire.backpressure import ClientGone, wait_for_disconnect
from millstream_api.wire.connections import CONNECTION
from millstream_api.wire.corked import Corked
from millstream_api.wire.pagecache import blocks


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


def connection(scope: Scope) -> Corked | None:
    """The connection of a request, where the server shows it (see connections.py)."""
    shown: Corked | None = scope.get("extensions", {}).get(CONNECTION)
    return shown


async def send_answer(
    scope: Scope,
    receive: Receive,
    send: Send,
    answer: Answer,
    file: int,
    traffic: Traffic,
    *,
    stall_s: float,
    start_apart: bool,
) -> None:
    """Send an answer, its spans from this file. `start_apart`: with a message of its own, where middleware looks for
    that. Raises Cut, ClientGone.
    """
    offered = ANSWER in scope.get("extensions", {})
    if start_apart or not offered:
        await send({"type": "http.response.start", "status": answer.status, "headers": answer.headers})
    if offered:
        await send({"type": ANSWER, "answer": answer, "file": file, "sent": traffic.sent})
        return
    leaving = asyncio.ensure_future(wait_for_disconnect(receive))
    try:
        for part in answer.parts:
            if isinstance(part, bytes):
                await send({"type": "http.response.body", "body": part, "more_body": True})
                continue
            async for block in blocks(file, part):
                async with asyncio.timeout(stall_s):
                    await send({"type": "http.response.body", "body": block, "more_body": True})
                traffic.sent(len(block))
                if leaving.done():
                    raise ClientGone("the client left")
        await send({"type": "http.response.body", "body": b""})
    except TimeoutError:
        raise ClientGone("the client reads nothing") from None
    finally:
        leaving.cancel()
