"""Fewer, fuller packets: what is written to a connection in one tick of the event loop leaves as one write.

uvicorn writes headers and body of an answer, and each WebSocket message, by themselves, and uvloop sends each at once:
a system call, a packet and a wake-up of the client for each.
"""

import asyncio
from typing import Any

MAX_BUFFERED_BYTES = 64 * 1024  # bytes that are held


class Corked:
    """Stands in for a transport where a protocol of uvicorn keeps its own. `plain`: it is TCP with nothing on top;
    `timed`: for the request that is answered now (see connections.py).
    """

    __slots__ = ("_held", "_loop", "_size", "get_write_buffer_size", "is_closing", "plain", "timed", "transport")

    def __init__(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        self.get_write_buffer_size = transport.get_write_buffer_size
        self.is_closing = transport.is_closing
        self.plain = transport.get_extra_info("sslcontext") is None and transport.get_extra_info("socket") is not None
        self.timed = False
        self._loop = asyncio.get_running_loop()
        self._held: list[bytes | bytearray] = []
        self._size = 0

    def write(self, data: bytes | bytearray) -> None:
        if not data:
            return
        if len(data) > MAX_BUFFERED_BYTES:
            self.flush()
            self._send(data)
            return
        if not self._held:
            self._loop.call_soon(self.flush)
        self._held.append(data)
        self._size += len(data)
        if self._size > MAX_BUFFERED_BYTES:  # at once, so that the transport can say that it is full
            self.flush()

    def flush(self) -> None:
        if self._held:
            held, self._held, self._size = self._held, [], 0
            self._send(held[0] if len(held) == 1 else b"".join(held))

    def _send(self, data: bytes | bytearray) -> None:
        if not self.is_closing():  # uvloop raises for one that is closed
            self.transport.write(data)

    def close(self) -> None:
        self.flush()
        self.transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.transport, name)
