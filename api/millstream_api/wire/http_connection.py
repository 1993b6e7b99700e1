"""One client's connection: an asyncio protocol around `RequestReader`, which runs the app for one request at a time.

    bytes ──▶ RequestReader (http1.py) ──▶ Exchange (exchange.py) ──▶ the ASGI app
                    └── a handshake that the app accepts ──▶ WebSocket (websocket.py)

- The next request is read when the answer to the last one is complete. What comes ahead stays bytes, and beyond
  READ_AHEAD of them nothing is read.
- What is written in one tick of the event loop leaves as one write: a system call, a packet and a wake-up of the
  client for all of it.
- A client that has said everything may go: what came in full is carried out, and answered as long as it listens.
- `deadline` is when the client must have done what it is waited for; population.py looks at it once a second.
"""

import asyncio
import socket
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from math import inf
from time import monotonic, time
from typing import Any, cast

from starlette.responses import Response
from uvicorn.config import Config
from uvicorn.server import ServerState

from millstream_api.problems import plain_problem
from millstream_api.wire.answers import date_line, status_line
from millstream_api.wire.connection import Listener
from millstream_api.wire.exchange import Exchange
from millstream_api.wire.handshake import accept_value
from millstream_api.wire.http1 import Refused, Request, RequestReader
from millstream_api.wire.population import Population
from millstream_api.wire.websocket import WebSocket

READ_AHEAD = 64 * 1024  # bytes that may come before the app asks for them
MAX_BUFFERED_BYTES = 64 * 1024  # written in one tick; more is passed on at once
MAX_DISCARDED = 16 * 1024 * 1024  # bytes read only so that the client hears its answer
KEEPALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 4}  # a peer that vanished is found in two minutes


@dataclass(frozen=True, slots=True)
class Limits:
    """What a client may take of a connection: bytes, and seconds."""

    head_bytes: int = 64 * 1024
    fields: int = 1000
    message_bytes: int = 1024 * 1024
    fragments: int = 4096
    head_s: float = 20
    body_s: float = 60
    idle_s: float = 75
    linger_s: float = 5
    stall_s: float = 60


class HttpConnection(asyncio.Protocol):
    """A `Connection`, made by uvicorn for each client."""

    __slots__ = (
        "_app_state", "_config", "_connections", "_discarded", "_exchange", "_in_head", "_lingering", "_loop",
        "_outgoing", "_outgoing_size", "_population", "_read_paused", "_shutting_down", "_waiters", "_write_paused",
        "client", "deadline", "eof", "get_write_buffer_size", "is_closing", "limits", "lost", "plain_tcp", "reader",
        "scheme", "server", "socket", "tasks", "timed", "transport",
    )  # fmt: skip

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        limits: Limits,
        population: Population,
    ) -> None:
        self.limits = limits
        self.reader = RequestReader(head_bytes=limits.head_bytes, fields=limits.fields)
        self.deadline = inf
        self.eof = False
        self.timed = False
        self.socket: WebSocket | None = None
        self._config = config
        self.tasks = server_state.tasks
        self._connections = server_state.connections
        self._app_state = app_state
        self._loop = _loop or asyncio.get_running_loop()
        self._population = population
        self._exchange: Exchange | None = None
        self._outgoing: list[bytes | bytearray] = []
        self._outgoing_size = 0
        self._waiters: list[asyncio.Future[None]] = []
        self._read_paused = self._write_paused = False
        self._in_head = self.lost = self._shutting_down = self._lingering = False
        self._discarded = 0

    # What the transport tells.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but its class
        self.get_write_buffer_size = self.transport.get_write_buffer_size
        self.is_closing = self.transport.is_closing
        self.client = _address(transport.get_extra_info("peername"))
        self.server = _address(transport.get_extra_info("sockname"))
        tls = transport.get_extra_info("sslcontext") is not None
        self.scheme = "https" if tls else "http"
        found = transport.get_extra_info("socket")
        self.plain_tcp = found is not None and not tls
        if found is not None and self.client is not None:
            _keep_alive(found)
        self._connections.add(self)  # type: ignore[arg-type]
        self.deadline = monotonic() + self.limits.head_s
        if not self._population.admit(self):
            self.refuse(Refused(HTTPStatus.TOO_MANY_REQUESTS, "Too many connections come from this address."))

    def data_received(self, data: bytes) -> None:
        if self._lingering:
            self._discard(len(data))
        elif self.socket is not None:
            self.socket.data_received(data)
        else:
            self.reader.receive(data)
            if self._exchange is None:
                self._read_on()
            else:
                self._exchange.came()
            if self.reader.held > READ_AHEAD:
                self.pause_reading()

    def eof_received(self) -> bool:
        """The client says nothing more. Returns True: it may still listen."""
        self.eof = True
        if self._lingering or self.socket is not None:
            return False
        if self._exchange is not None:
            self._exchange.came()
        else:
            self._read_on()
        return self.plain_tcp

    def connection_lost(self, exc: Exception | None) -> None:
        self.eof = self.lost = True
        self.deadline = inf
        self._connections.discard(self)
        self._population.leave(self)
        self._wake_waiters()
        if self.socket is not None:
            self.socket.connection_lost()
        elif self._exchange is not None:
            self._exchange.came()

    def pause_writing(self) -> None:
        self._write_paused = True

    def resume_writing(self) -> None:
        self._write_paused = False
        self._wake_waiters()
        if self.socket is not None:
            self.socket.resume_writing()

    # Requests.

    def _read_on(self) -> None:
        """Read what the app left of a body, then begin with the next request; where none has come, wait, or end."""
        reader = self.reader
        if self._exchange is not None or self._lingering:
            return
        try:
            if not reader.body_complete and self._skip_body():
                self._loop.call_soon(self._read_on)  # others have their turn
                return
            request = reader.next_request() if reader.body_complete else None
            if request is not None and request.handshake:
                accept_value(request.headers)
        except Refused as refused:
            self.refuse(refused)
            return
        if request is not None:
            self._begin(request)
        elif self.eof or self._shutting_down:
            self.close()
        else:
            if reader.held and reader.body_complete and not self._in_head:
                self._in_head = True
                self.deadline = monotonic() + self.limits.head_s
            self.resume_reading()

    def _skip_body(self) -> bool:
        """Read a part of the body, and drop it. Returns whether there may be more to read at once."""
        held = self.reader.held
        self.reader.read_body()
        self._discard(held - self.reader.held)
        return 0 < self.reader.held < held and not self.reader.body_complete

    def _begin(self, request: Request) -> None:
        if detail := self._population.refusal(self, request):
            self.refuse(Refused(HTTPStatus.SERVICE_UNAVAILABLE, detail, {"Retry-After": "1"}))
            return
        self.deadline = inf
        self.timed = self._in_head = False
        self._discarded = 0
        exchange = self._exchange = Exchange(self, request, self._app_state, self._config.loaded_app)
        self.tasks.add(exchange.task)
        if self._shutting_down or not self._population.keeps_alive(self):
            exchange.keep_alive = False

    def end_exchange(self, *, keep_alive: bool) -> None:
        """The answer is complete."""
        self._exchange = None
        reader = self.reader
        if keep_alive:
            self.deadline = monotonic() + (self.limits.idle_s if reader.body_complete else self.limits.body_s)
            if reader.held or self.eof or self._shutting_down or self._read_paused:
                self._read_on()
        elif reader.held or not reader.body_complete:
            self.linger()
        else:
            self.close()

    def refuse(self, refused: Refused) -> None:
        """Say what is wrong with what came, and end: nothing behind it is read."""
        self.break_off(plain_problem(refused.status, refused.status.phrase, "", refused.detail, refused.headers))

    def break_off(self, answer: Response) -> None:
        """Answer so, if nothing was answered yet, and end."""
        exchange, self._exchange = self._exchange, None
        if exchange is not None and exchange.abandon():  # it has begun to answer
            self._lingering = True
            self.abort()
            return
        lines = [b"%b: %b\r\n" % line for line in (*answer.raw_headers, (b"connection", b"close"))]
        self.write(b"".join((status_line(answer.status_code), self.date_line(), *lines, b"\r\n", bytes(answer.body))))
        self.linger()

    def linger(self) -> None:
        """Close, but read on for a little: else the system throws away the answer that the client has not read."""
        self._lingering = True
        self.reader.take_rest()
        self.flush()
        if self.eof or self.is_closing() or not self.transport.can_write_eof():
            self.transport.close()
            return
        self.transport.write_eof()
        self.deadline = monotonic() + self.limits.linger_s
        self.resume_reading()

    def _discard(self, size: int) -> None:
        self._discarded += size
        if self._discarded > MAX_DISCARDED:
            self.abort()

    def time_out(self) -> None:
        """The deadline has passed."""
        self.deadline = inf
        if self._lingering:
            self.abort()
        elif self.socket is not None:
            self.socket.time_out()
        elif self._exchange is not None:
            detail = f"No byte of the body came for {self.limits.body_s:g} s."
            self.refuse(Refused(HTTPStatus.REQUEST_TIMEOUT, detail))
        elif self._in_head:
            detail = f"The request line and headers took longer than {self.limits.head_s:g} s."
            self.refuse(Refused(HTTPStatus.REQUEST_TIMEOUT, detail))
        else:
            self.close()

    def wait_for_body(self) -> None:
        self.resume_reading()
        self.deadline = monotonic() + self.limits.body_s

    def shutdown(self) -> None:
        """The server stops: answer what is under way, and nothing more."""
        self._shutting_down = True
        if self.socket is not None:
            self.socket.shutdown()
        elif self._exchange is None:
            self.close()
        else:
            self._exchange.keep_alive = False

    def pause_reading(self) -> None:
        if not self._read_paused and not self.is_closing():
            self._read_paused = True
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        if self._read_paused and not self.is_closing():
            self._read_paused = False
            self.transport.resume_reading()

    # A `Connection`, for the app.

    @property
    def write_paused(self) -> bool:
        return self._write_paused

    def write(self, data: bytes | bytearray) -> None:
        if not data:
            return
        if len(data) > MAX_BUFFERED_BYTES:  # not worth a copy
            self.flush()
        elif not self._outgoing:
            self._loop.call_soon(self.flush)
        self._outgoing.append(data)
        self._outgoing_size += len(data)
        if self._outgoing_size > MAX_BUFFERED_BYTES:  # at once, so that the transport's flow control counts it
            self.flush()

    def flush(self) -> None:
        outgoing = self._outgoing
        if outgoing:
            self._outgoing, self._outgoing_size = [], 0
            if not self.is_closing():  # uvloop raises for a closed transport
                self.transport.write(outgoing[0] if len(outgoing) == 1 else b"".join(outgoing))

    async def writable(self) -> None:
        """Wait while the write buffer is full."""
        while self._write_paused and not self.is_closing():
            waiter = self._loop.create_future()
            self._waiters.append(waiter)
            await waiter

    async def wait_until_empty(self) -> None:
        self.flush()
        if self.is_closing():
            return
        low, high = self.transport.get_write_buffer_limits()
        self.transport.set_write_buffer_limits(0)  # paused, from now on, until the buffer is empty
        await self.writable()
        if not self.is_closing():  # uvloop raises for a closed transport
            self.transport.set_write_buffer_limits(high, low)

    def _wake_waiters(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def fileno(self) -> int:
        number: int = self.transport.get_extra_info("socket").fileno()
        return number

    def close(self) -> None:
        self.flush()
        self.transport.close()

    def abort(self) -> None:
        self.transport.abort()

    def start_response(self, status: int, head: bytes) -> None:
        assert self._exchange is not None
        self._exchange.start(status, head)

    def end_response(self) -> None:
        assert self._exchange is not None
        self._exchange.end()

    def accept(self, subprotocol: str | None, listener: Listener) -> WebSocket:
        exchange = self._exchange
        assert exchange is not None
        lines = [
            b"HTTP/1.1 101 Switching Protocols\r\n", self.date_line(),
            b"upgrade: websocket\r\nconnection: Upgrade\r\n",
            b"sec-websocket-accept: %b\r\n" % accept_value(exchange.request.headers),
        ]  # fmt: skip
        if subprotocol is not None:
            lines.append(b"sec-websocket-protocol: %b\r\n" % subprotocol.encode())
        exchange.abandon()
        self._exchange = None
        self.write(b"".join([*lines, b"\r\n"]))
        self.socket = WebSocket(self, listener, self._loop)
        self._loop.call_soon(self.socket.data_received, self.reader.take_rest())  # when the app has taken it
        return self.socket

    def date_line(self) -> bytes:
        """Date, which is that of the response, so that no Last-Modified is later (RFC 9110 §6.6.1)."""
        return date_line(int(time())) if self._config.date_header else b""


def _address(found: Any) -> tuple[str, int] | None:
    """Host and port; None where the connection has none (a UNIX socket)."""
    return (str(found[0]), int(found[1])) if isinstance(found, tuple) else None


def _keep_alive(found: socket.socket) -> None:
    with suppress(OSError):
        found.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in KEEPALIVE.items():
            if (option := getattr(socket, name, None)) is not None:  # not every system has them all
                found.setsockopt(socket.IPPROTO_TCP, option, value)
