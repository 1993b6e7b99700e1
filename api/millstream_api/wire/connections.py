"""What uvicorn's connections lack, put around the app: the outermost one.

It finds uvicorn's request cycle, or WebSocket protocol, behind the `send` that it is given, and then
- what is written in one tick of the loop leaves as one write (corked.py);
- where the connection is plain TCP, a whole answer is taken in one message, and files are sent by the kernel
  (answering.py, zerocopy.py);
- the app is shown the connection, as CONNECTION: when it sets `timed` there, a client that reads nothing for too long
  is dropped, and sending to a client that has left raises ClientGone (uvicorn has no time limit for sending, and of
  several requests on one connection it tells only the last that the client has left);
- a client that speaks HTTP/1.0 gets no chunks;
- Date is that of the answer (uvicorn's is up to 1.1 s old), so that no Last-Modified is later.

Under any other server it does nothing. What it touches of uvicorn and uvloop is held by
tests/integration/test_zerocopy.py and test_corked.py, and uvicorn's minor version is pinned.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from millstream_api.wire.answering import ANSWER, answer
from millstream_api.wire.answers import http_date
from millstream_api.wire.backpressure import ClientGone
from millstream_api.wire.corked import Corked

CONNECTION = "millstream.connection"


class Connections:
    """Wraps an app. `stall_s`: where an app says that it is timed, and where the kernel sends a file, a client that
    reads nothing for so long is dropped.
    """

    def __init__(self, app: ASGIApp, *, stall_s: float) -> None:
        self._app = app
        self._stall_s = stall_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        cycle = getattr(send, "__self__", None)
        if isinstance(cycle, WebSocketsSansIOProtocol):
            cycle.transport = _corked(cycle.transport)  # type: ignore[assignment]
        if not isinstance(cycle, RequestResponseCycle):
            await self._app(scope, receive, send)
            return
        protocol: Any = cycle.on_response.__self__  # type: ignore[attr-defined]
        protocol.transport = cycle.transport = corked = _corked(protocol.transport)  # type: ignore[assignment]
        transport = corked.transport
        corked.timed = False
        scope["extensions"] = {CONNECTION: corked, ANSWER: {}} if corked.plain else {CONNECTION: corked}
        until_close = False

        async def send_or_answer(message: Message) -> None:
            nonlocal until_close
            kind = message["type"]
            if not cycle.response_started:
                cycle.default_headers = _dated(cycle.default_headers)
            if kind == ANSWER:
                await answer(cycle, message, self._stall_s)
                return
            if until_close:
                cycle.expected_content_length = len(message.get("body", b""))
            elif kind == "http.response.start" and scope["http_version"] == "1.0":
                until_close = not any(name.lower() == b"content-length" for name, _ in message.get("headers", ()))
                if until_close:  # HTTP/1.0 knows no chunks (RFC 9112 §6.1)
                    cycle.chunked_encoding = False
            if not corked.timed:
                await send(message)
            elif transport.is_closing():
                raise ClientGone("the client left")
            elif transport.get_write_buffer_size():
                async with _in_time(transport, self._stall_s):
                    await send(message)
                if transport.is_closing():
                    raise ClientGone("the client left, or read nothing")
            else:
                await send(message)

        try:
            await self._app(scope, receive, send_or_answer)
        except ClientGone:
            pass  # nobody is left to tell
        finally:
            if transport.is_closing():
                cycle.disconnected = True


def _dated(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """uvicorn's headers, with a Date (RFC 9110 §6.6.1) of now."""
    date = (b"date", http_date(int(time.time())).encode())
    return [date if name == b"date" else (name, value) for name, value in headers]


def _corked(transport: Any) -> Corked:
    return transport if isinstance(transport, Corked) else Corked(transport)


@asynccontextmanager
async def _in_time(transport: asyncio.Transport, timeout_s: float) -> AsyncIterator[None]:
    """End the connection when what is done here takes longer; whatever waits for the client then goes on."""
    timer = asyncio.get_running_loop().call_later(timeout_s, transport.abort)
    try:
        yield
    finally:
        timer.cancel()
