"""What uvicorn's connections lack: a limit on a request's head and problems as answers (HttpProtocol), a look at the
protocols that a socket offers (SocketProtocol), and what Connections, put around the app as the outermost one, does.

That finds uvicorn's request cycle, or WebSocket protocol, behind the `send` that it is given, and then
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
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.http11 import Request as Handshake

from api.answering import ANSWER, answer
from api.backpressure import ClientGone
from api.conditions import http_date
from api.corked import Corked
from api.problems import plain_problem

CONNECTION = "millstream.connection"
NO_TOKEN = re.compile(r"[^!#$%&'*+\-.^_`|~0-9A-Za-z]")  # RFC 9110 §5.6.2
PROTOCOLS = "Sec-WebSocket-Protocol"


class SocketProtocol(WebSocketsSansIOProtocol):
    """uvicorn's, which would answer a malformed list of protocols, and so a key with `=` in it, with all of its text:
    what no protocol may contain is taken out first.
    """

    def handle_connect(self, event: Handshake) -> None:
        offered = ",".join(event.headers.get_all(PROTOCOLS)).split(",")
        tokens = [token for item in offered if (token := NO_TOKEN.sub("", item))]
        if PROTOCOLS in event.headers:
            del event.headers[PROTOCOLS]
        if tokens:
            event.headers[PROTOCOLS] = ", ".join(tokens)
        super().handle_connect(event)


class HeadTooLarge(Exception):
    """A request's first line and headers are over the limit."""


class HttpProtocol(HttpToolsProtocol):
    """uvicorn's, which would take headers of any size, and whose answer to what is no HTTP is plain text.

    The parser tells of a header when it has all of it: so of a head that has not ended, the pieces are counted.
    """

    def __init__(self, *args: Any, head_bytes: int, **options: Any) -> None:
        super().__init__(*args, **options)
        self._most = head_bytes
        self._in_head = False
        self._held = 0  # bytes that came for a head that has not ended, but for those of its first piece
        self._piece = 0  # bytes that have come now
        self._of_head = False  # they are all of a head that began before, as far as is known

    def data_received(self, data: bytes) -> None:
        self._piece, self._of_head = len(data), self._in_head
        super().data_received(data)
        self._held = self._held + len(data) if self._of_head and self._in_head else 0
        if self._held > self._most:
            self.send_400_response("")

    def on_message_begin(self) -> None:
        self._in_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        if self._of_head or self._piece > self._most:
            size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
            if size > self._most:
                self._held = size
                raise HeadTooLarge  # the parser stops, and says that it did
        self._in_head = self._of_head = False
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """The end of the connection, and why (RFC 6585 §5)."""
        if self.transport.is_closing():
            return
        status = HTTPStatus.BAD_REQUEST
        detail = "This is no request of HTTP/1.1."
        if self._held > self._most:
            status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            detail = f"The first line and the headers of a request may have {self._most} bytes."
        answer = plain_problem(status, status.phrase, "", detail, {"Connection": "close"})
        lines = [b"%b: %b\r\n" % line for line in (*self.server_state.default_headers, *answer.raw_headers)]
        self.transport.write(b"".join((STATUS_LINE[status], *lines, b"\r\n", answer.body)))
        self.transport.close()


class Connections:
    """Wraps an app. `stall_s`: where an app says that it is timed, and where the kernel sends a file, a client that
    reads nothing for so long is dropped.
    """

    def __init__(self, app: ASGIApp, *, stall_s: float) -> None:
        self._app = app
        self._stall_s = stall_s
        self._second = 0
        self._from: list[tuple[bytes, bytes]] = []
        self._headers = self._from

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
                cycle.default_headers = self._dated(cycle.default_headers)
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
            if kind == "http.response.body":
                corked.flush()

        try:
            await self._app(scope, receive, send_or_answer)
        except ClientGone:
            pass  # nobody is left to tell
        finally:
            if transport.is_closing():
                cycle.disconnected = True

    def _dated(self, headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        """uvicorn's headers, with a Date (RFC 9110 §6.6.1) of now; they are made once a second."""
        now = int(time.time())
        if now != self._second or headers is not self._from:
            date = (b"date", http_date(now).encode())
            self._second, self._from = now, headers
            self._headers = [date if name == b"date" else (name, value) for name, value in headers]
        return self._headers


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
