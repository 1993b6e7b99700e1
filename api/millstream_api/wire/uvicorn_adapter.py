"""What uvicorn's connections lack, as a wrapper around the whole app, and the only module that knows uvicorn's requests
from inside.

It finds uvicorn's request cycle, or WebSocket protocol, behind the `send` that it is given. Then
- what is written in one tick of the event loop leaves as one write (corked.py);
- the app is offered the connection, as CONNECTION. When it sets `timed`, a client that reads nothing for too long is
  disconnected, and sending to a client that has left raises ClientGone (uvicorn has no time limit for sending, and of
  several requests on one connection it reports a disconnect only to the last);
- on plain TCP the app is also offered ANSWER: a whole response in one message, files sent by the kernel (answering.py);
- a response to HTTP/1.0 is not chunked;
- Date is that of the response (uvicorn's is up to 1.1 s old), so that no Last-Modified is later.

Under any other server it does nothing. tests/integration/test_zerocopy.py and test_corked.py check what is used of
uvicorn and uvloop, and uvicorn's minor version is pinned.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from millstream_api.wire.answering import ANSWER, write_answer
from millstream_api.wire.answers import http_date
from millstream_api.wire.connection import CONNECTION, ClientGone, Connection
from millstream_api.wire.corked import Corked
from millstream_api.wire.pagecache import FileTruncated


class UvicornConnection(Corked):
    """A `Connection` of uvicorn. It takes the place of the transport that uvicorn keeps, from the first request on and
    for as long as the connection lasts.
    """

    __slots__ = ("_cycle", "_until_close", "plain_tcp", "timed")

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__(transport)
        socket, tls = transport.get_extra_info("socket"), transport.get_extra_info("sslcontext")
        self.plain_tcp = socket is not None and tls is None

    def begin_request(self, cycle: RequestResponseCycle) -> None:
        """Answer this request from now on. uvicorn starts it when the response before it is complete."""
        self._cycle = cycle
        self._until_close = False
        self.timed = False

    def end_request(self, cycle: RequestResponseCycle) -> None:
        """Forget the request, unless the next one has begun: no reference cycle is left to the garbage collector."""
        if self.is_closing():
            cycle.disconnected = True  # so that uvicorn does not report the response as incomplete
        if self._cycle is cycle:
            self._cycle = None  # type: ignore[assignment]

    @property
    def write_paused(self) -> bool:
        return self._cycle.flow.write_paused

    async def wait_until_empty(self) -> None:
        self.flush()
        if self.is_closing():
            return
        low, high = self.transport.get_write_buffer_limits()
        self.transport.set_write_buffer_limits(0)  # paused, from now on, until the buffer is empty
        await self._cycle.flow.drain()
        if not self.is_closing():  # uvloop raises for a closed transport
            self.transport.set_write_buffer_limits(high, low)

    def fileno(self) -> int:
        number: int = self.transport.get_extra_info("socket").fileno()
        return number

    def abort(self) -> None:
        self.transport.abort()

    def start_response(self, status: int, head: bytes) -> None:
        """As uvicorn's own `send` does."""
        cycle = self._cycle
        if cycle.response_started:
            return
        cycle.response_started = True
        cycle.waiting_for_100_continue = False
        always = [b"%b: %b\r\n" % header for header in cycle.default_headers]
        end = b"\r\n" if cycle.keep_alive else b"connection: close\r\n\r\n"
        self.write(b"".join((STATUS_LINE[status], *always, head, end)))

    def end_response(self) -> None:
        """As uvicorn's own `send` does."""
        cycle = self._cycle
        cycle.response_complete = True
        cycle.message_event.set()
        if not cycle.keep_alive:
            self.close()
        cycle.on_response()

    def avoid_chunks(self, message: Message) -> None:
        """Prepare uvicorn for a message to a client of HTTP/1.0, which does not know chunks (RFC 9112 §6.1): a body of
        unknown length ends with the connection.
        """
        if message["type"] == "http.response.start":
            self._until_close = not any(name.lower() == b"content-length" for name, _ in message.get("headers", ()))
            if self._until_close:
                self._cycle.chunked_encoding = False
        elif self._until_close:
            self._cycle.expected_content_length = len(message.get("body", b""))


class UvicornAdapter:
    """Wraps an app. `stall_s`: a client that reads nothing for so long is disconnected, where the app asks for it or
    the kernel sends a file.
    """

    def __init__(self, app: ASGIApp, *, stall_s: float) -> None:
        self._app = app
        self._stall_s = stall_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        cycle = getattr(send, "__self__", None)
        if isinstance(cycle, WebSocketsSansIOProtocol) and not isinstance(cycle.transport, Corked):
            cycle.transport = Corked(cycle.transport)  # type: ignore[assignment]
        if not isinstance(cycle, RequestResponseCycle):
            await self._app(scope, receive, send)
            return
        connection = _connection(cycle)
        connection.begin_request(cycle)
        scope["extensions"] = {CONNECTION: connection, ANSWER: {}} if connection.plain_tcp else {CONNECTION: connection}
        http_1_0 = scope["http_version"] == "1.0"

        async def send_or_answer(message: Message) -> None:
            if not cycle.response_started:
                cycle.default_headers = _with_date_of_now(cycle.default_headers)
            if message["type"] == ANSWER:
                await write_answer(connection, message, self._stall_s)
                return
            if http_1_0:
                connection.avoid_chunks(message)
            if connection.timed and connection.is_closing():
                raise ClientGone("the client left")
            if not (connection.timed and connection.get_write_buffer_size()):
                await send(message)
                return
            async with _aborting_after(self._stall_s, connection):
                await send(message)
            if connection.is_closing():
                raise ClientGone("the client left, or read nothing")

        try:
            await self._app(scope, receive, send_or_answer)
        except (ClientGone, FileTruncated):
            pass  # the connection is closed: there is no client left to tell
        finally:
            connection.end_request(cycle)


def _connection(cycle: RequestResponseCycle) -> UvicornConnection:
    """The connection of a request: one object for all requests of a connection."""
    protocol: Any = cycle.on_response.__self__  # type: ignore[attr-defined]
    connection = protocol.transport
    if not isinstance(connection, UvicornConnection):
        connection = protocol.transport = UvicornConnection(connection)
    cycle.transport = connection  # type: ignore[assignment]
    return connection


def _with_date_of_now(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """uvicorn's default headers, with a current Date (RFC 9110 §6.6.1)."""
    date = (b"date", http_date(int(time.time())).encode())
    return [date if name == b"date" else (name, value) for name, value in headers]


@asynccontextmanager
async def _aborting_after(timeout_s: float, connection: Connection) -> AsyncIterator[None]:
    """Abort the connection when what is done here takes longer; whatever waits for the client then goes on."""
    timer = asyncio.get_running_loop().call_later(timeout_s, connection.abort)
    try:
        yield
    finally:
        timer.cancel()
