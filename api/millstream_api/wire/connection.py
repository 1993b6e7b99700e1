"""What an app may do with the connection that its request came on. `http_connection.py` is the one there is.

Apps find it in the ASGI scope.
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


class Upgrade(Protocol):
    """A connection whose request is the handshake of a WebSocket."""

    def accept(self, subprotocol: str | None, listener: "Listener") -> "Socket":
        """The connection is a WebSocket from now on."""


class Listener(Protocol):
    """Who is told what comes on a WebSocket. Each is called in the event loop, and never waits."""

    def on_text(self, text: str) -> None: ...

    def on_binary(self, data: bytes) -> None: ...

    def on_writable(self) -> None:
        """`write_paused` was true, and is no more."""

    def on_lost(self) -> None:
        """The last call: the client is gone, or the socket is closed."""


class Socket(Protocol):
    """A WebSocket. What is sent after its end goes nowhere."""

    @property
    def write_paused(self) -> bool: ...

    def send(self, text: str) -> None:
        """Send a message; it leaves at the end of this tick of the event loop, or with `flush`."""

    def flush(self) -> None: ...

    def pause(self) -> None:
        """Tell the listener of no more messages, and soon read no more of them."""

    def resume(self) -> None: ...

    def close(self, code: int, reason: str = "") -> None:
        """Send what was written, then the code to close with, and wait a little for the client's."""


def connection_of(scope: Scope) -> Connection | None:
    """The connection of a request, or None under a server that does not offer it."""
    found: Connection | None = scope.get("extensions", {}).get(CONNECTION)
    return found


def upgrade_of(scope: Scope) -> Upgrade:
    """The connection of a handshake. Only our own server offers it."""
    found: Upgrade = scope["extensions"][CONNECTION]
    return found
