"""One WebSocket: what comes is told to its listener, what is sent goes out in frames (frames.py)."""

import asyncio
from time import monotonic
from typing import TYPE_CHECKING

import structlog

from millstream_api.wire.connection import Listener
from millstream_api.wire.frames import Close, FrameReader, Message, Opcode, Violation, close_code, close_frame, frame

if TYPE_CHECKING:
    from millstream_api.wire.http_connection import HttpConnection

log = structlog.get_logger("millstream.api")

PING_S = 20  # between two signs of life, so that proxies keep the connection
CLOSE_S = 10  # how long a client may take to answer a close
TURN_S = 0.005  # how long the messages of one client may hold the event loop at once
READ_AHEAD = 64 * 1024  # bytes that may come while the listener takes no messages


class WebSocket:
    """A `Socket` on a connection that was an HTTP connection until now.

    Of several pings the last is answered (RFC 6455 §5.5.3), and none before the client has read what it was sent.
    A client is never closed for not answering ours: one that reads slowly, or whose messages are not read for now,
    cannot. The system reports those that are gone.
    """

    __slots__ = (
        "_closing", "_connection", "_listener", "_loop", "_lost", "_paused", "_pong", "_reader", "_scheduled",
    )  # fmt: skip

    def __init__(self, connection: "HttpConnection", listener: Listener, loop: asyncio.AbstractEventLoop) -> None:
        limits = connection.limits
        self._connection = connection
        self._listener = listener
        self._loop = loop
        self._reader = FrameReader(max_bytes=limits.message_bytes, max_fragments=limits.fragments)
        self._pong: bytes | None = None
        self._paused = self._scheduled = self._closing = self._lost = False
        connection.deadline = monotonic() + PING_S

    # What comes.

    def data_received(self, data: bytes) -> None:
        self._reader.receive(data)
        if not self._scheduled:
            self._read()
        if self._reader.held > READ_AHEAD and (self._paused or self._scheduled):
            self._connection.pause_reading()

    def _read(self) -> None:
        """Hand on what has come, for one turn."""
        self._scheduled = False
        until = monotonic() + TURN_S
        try:
            while not self._paused and (message := self._reader.next_message()) is not None:
                self._take(message)
                if monotonic() > until:
                    self._schedule()
                    return
        except Violation as violation:
            self._fail(violation.code, violation.reason)
        except Exception:
            log.exception("socket failed")
            self._fail(Close.INTERNAL_ERROR, "something went wrong here; it has been logged")
        self._send_pong()
        if not self._paused:
            self._connection.resume_reading()

    def _schedule(self) -> None:
        self._scheduled = True
        self._loop.call_soon(self._read)

    def _take(self, message: Message) -> None:
        match message.opcode:
            case Opcode.TEXT if not self._closing:
                self._listener.on_text(message.text)
            case Opcode.BINARY if not self._closing:
                self._listener.on_binary(message.data)
            case Opcode.PING:
                self._pong = message.data
            case Opcode.CLOSE:
                self._answer_close(message.data)

    def _send_pong(self) -> None:
        if self._pong is not None and not self._closing and not self.write_paused:
            self._connection.write(frame(Opcode.PONG, self._pong))
            self._pong = None

    def _answer_close(self, payload: bytes) -> None:
        """Both have said that it is over, or it is said now."""
        code = close_code(payload)
        if not self._closing:
            self._connection.write(close_frame(Close.NORMAL if code == Close.NO_CODE else code))
        self._end()

    def _fail(self, code: Close, reason: str) -> None:
        if not self._closing:
            self._connection.write(close_frame(code, reason))
        self._end()

    def _end(self) -> None:
        """Nothing more is read or sent."""
        self._paused = self._closing = True
        self._connection.linger()
        self._tell_lost()

    # What is sent: a `Socket`.

    @property
    def write_paused(self) -> bool:
        return self._connection.write_paused

    def send(self, text: str) -> None:
        if not self._closing:
            self._connection.write(frame(Opcode.TEXT, text.encode()))

    def flush(self) -> None:
        self._connection.flush()

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        if self._paused and not self._lost:
            self._paused = False
            if not self._scheduled:
                self._schedule()

    def close(self, code: int, reason: str = "") -> None:
        if self._closing:
            return
        self._closing = True
        self._connection.write(close_frame(code, reason))
        self._connection.deadline = monotonic() + CLOSE_S
        self.resume()

    # What its connection tells.

    def resume_writing(self) -> None:
        self._send_pong()
        self._listener.on_writable()

    def connection_lost(self) -> None:
        self._paused = self._closing = True
        self._tell_lost()

    def _tell_lost(self) -> None:
        if not self._lost:
            self._lost = True
            self._listener.on_lost()

    def time_out(self) -> None:
        if self._closing:
            self._connection.abort()
            return
        if not self.write_paused:
            self._connection.write(frame(Opcode.PING, b""))
        self._connection.deadline = monotonic() + PING_S

    def shutdown(self) -> None:
        """The server stops."""
        self.close(Close.RESTARTING)
        self._end()
