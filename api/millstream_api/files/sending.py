"""Sending a response with (parts of) a file: the one place that chooses between the ASGI extension `millstream.answer`,
where the server offers it (wire/answering.py), and plain ASGI with blocks that aiofiles reads.
"""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, TypeVar

from starlette.types import Receive, Scope, Send

from millstream_api.wire.answering import ANSWER
from millstream_api.wire.answers import Answer
from millstream_api.wire.backpressure import wait_for_disconnect
from millstream_api.wire.connection import ClientGone
from millstream_api.wire.pagecache import blocks

T = TypeVar("T")


@dataclass(slots=True)
class Traffic:
    """Counters of the file tier: streams open now, streams and bytes since the start, and the recent rate."""

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


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client disconnects. Raises ClientGone."""
    working, disconnected = asyncio.ensure_future(work), asyncio.ensure_future(wait_for_disconnect(receive))
    try:
        await asyncio.wait({working, disconnected}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone("the client left")
        return working.result()
    finally:
        working.cancel()
        disconnected.cancel()
        await asyncio.gather(working, disconnected, return_exceptions=True)


async def send_answer(
    scope: Scope,
    receive: Receive,
    send: Send,
    answer: Answer,
    file: int,
    traffic: Traffic,
    *,
    stall_s: float,
    start_separately: bool,
) -> None:
    """Send a response, its spans from `file`. `start_separately`: also send `http.response.start`, for middleware that
    adds headers to it. Raises FileTruncated, ClientGone.
    """
    offered = ANSWER in scope.get("extensions", {})
    if start_separately or not offered:
        await send({"type": "http.response.start", "status": answer.status, "headers": answer.headers})
    if offered:
        await send({"type": ANSWER, "answer": answer, "file": file, "on_sent": traffic.sent})
        return
    disconnected = asyncio.ensure_future(wait_for_disconnect(receive))
    try:
        for part in answer.parts:
            if isinstance(part, bytes):
                await send({"type": "http.response.body", "body": part, "more_body": True})
                continue
            async for block in blocks(file, part):
                async with asyncio.timeout(stall_s):
                    await send({"type": "http.response.body", "body": block, "more_body": True})
                traffic.sent(len(block))
                if disconnected.done():
                    raise ClientGone("the client left")
        await send({"type": "http.response.body", "body": b""})
    except TimeoutError:
        raise ClientGone("the client reads nothing") from None
    finally:
        disconnected.cancel()
