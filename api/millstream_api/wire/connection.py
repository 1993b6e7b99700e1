"""What writing a response needs of the server's connection to a client, whichever server it is.

`uvicorn_adapter.py` implements it on uvicorn. Apps find theirs in the ASGI scope, where the server offers it.
"""

from typing import Protocol

from starlette.types import Scope

CONNECTION = "millstream.connection"  # its key in the scope's `extensions`


class ClientGone(Exception):
    """The client disconnected, or read nothing for too long and was disconnected."""


class Connection(Protocol):
    """One connection, which answers one request at a time. Methods that asyncio.Transport has too do the same here."""

    timed: bool
    """Set by the app, for the current request: a client that reads nothing for too long is disconnected."""

    @property
    def write_paused(self) -> bool:
        """The write buffer is full: wait before writing more."""

    def write(self, data: bytes | bytearray) -> None: ...

    def flush(self) -> None:
        """Pass on what was written in this tick of the event loop, instead of at its end."""

    def get_write_buffer_size(self) -> int:
        """Bytes that were flushed and that the socket has not taken yet."""

    async def wait_until_empty(self) -> None:
        """Return when the socket has taken all that was written, or the connection is closed."""

    def fileno(self) -> int:
        """The socket's descriptor. Only valid while `is_closing()` is false: its number may be reused after that."""

    def is_closing(self) -> bool: ...

    def close(self) -> None: ...

    def abort(self) -> None: ...

    def start_response(self, status: int, head: bytes) -> None:
        """Write status line and headers, the server's own ones included, unless they have been written already."""

    def end_response(self) -> None:
        """The response is complete: go on with the next request, or close."""


def connection_of(scope: Scope) -> Connection | None:
    """The connection of a request, or None under a server that does not offer it."""
    found: Connection | None = scope.get("extensions", {}).get(CONNECTION)
    return found
