"""Fewer, fuller packets: what is written to a connection in one tick of the event loop leaves as one write.

uvicorn writes the headers and the body of a response, and each WebSocket message, separately, and uvloop sends each at
once: a system call, a packet and a wake-up of the client for each.
"""

import asyncio
from typing import Any

MAX_BUFFERED_BYTES = 64 * 1024


class Corked:
    """A transport that collects what is written in one tick. Everything else is the transport's own."""

    __slots__ = ("_buffered", "_loop", "_size", "get_write_buffer_size", "is_closing", "transport")

    def __init__(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        self.get_write_buffer_size = transport.get_write_buffer_size
        self.is_closing = transport.is_closing
        self._loop = asyncio.get_running_loop()
        self._buffered: list[bytes | bytearray] = []
        self._size = 0

    def write(self, data: bytes | bytearray) -> None:
        if not data:
            return
        if len(data) > MAX_BUFFERED_BYTES:
            self.flush()
            self._send(data)
            return
        if not self._buffered:
            self._loop.call_soon(self.flush)
        self._buffered.append(data)
        self._size += len(data)
        if self._size > MAX_BUFFERED_BYTES:  # at once, so that the transport's flow control counts it
            self.flush()

    def flush(self) -> None:
        if self._buffered:
            buffered, self._buffered, self._size = self._buffered, [], 0
            self._send(buffered[0] if len(buffered) == 1 else b"".join(buffered))

    def _send(self, data: bytes | bytearray) -> None:
        if not self.is_closing():  # uvloop raises for a closed transport
            self.transport.write(data)

    def close(self) -> None:
        self.flush()
        self.transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.transport, name)
