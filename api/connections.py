"""What uvicorn's connections lack, put around the app: the outermost one.

It finds uvicorn's request cycle, or WebSocket protocol, behind the `send` that it is given, and then
- what is written in one tick of the loop leaves as one write (corked.py);
- where the connection is plain TCP, files are sent by the kernel (zerocopy.py);
- the app is shown the connection's transport, as TRANSPORT: uvicorn has no time limit for sending, and of several
  requests on one connection it tells only the last that the client has left;
- a client that speaks HTTP/1.0 gets no chunks.

Under any other server it does nothing. What it touches of uvicorn and uvloop is held by
tests/integration/test_zerocopy.py and test_corked.py, and uvicorn's minor version is pinned.
"""

from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from api.corked import Corked
from api.zerocopy import EXTENSION, ClientGone, copy

TRANSPORT = "millstream.transport"


class Connections:
    """Wraps an app. `stall_s`: a client that reads nothing for so long is dropped."""

    def __init__(self, app: ASGIApp, *, stall_s: float) -> None:
        self._app = app
        self._stall_s = stall_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        cycle = getattr(send, "__self__", None)
        if isinstance(cycle, WebSocketsSansIOProtocol):
            cycle.transport = Corked(cycle.transport)  # type: ignore[assignment]
        if not isinstance(cycle, RequestResponseCycle):
            await self._app(scope, receive, send)
            return
        transport = cycle.transport
        scope["extensions"] = {**scope.get("extensions", {}), TRANSPORT: transport}
        if _plain(transport):
            scope["extensions"][EXTENSION] = {}
        corked = Corked(transport)
        cycle.transport = corked  # type: ignore[assignment]

        until_close = False

        async def send_or_copy(message: Message) -> None:
            nonlocal until_close
            if message["type"] == EXTENSION:
                corked.flush()
                await copy(cycle, message, self._stall_s)
                return
            if until_close:
                cycle.expected_content_length = len(message.get("body", b""))
            elif scope["http_version"] == "1.0" and message["type"] == "http.response.start":
                until_close = not any(name.lower() == b"content-length" for name, _ in message.get("headers", ()))
                if until_close:  # HTTP/1.0 knows no chunks (RFC 9112 §6.1)
                    cycle.chunked_encoding = False
            await send(message)
            if message["type"] == "http.response.body":
                corked.flush()

        try:
            await self._app(scope, receive, send_or_copy)
        except ClientGone:
            pass  # nobody is left to tell
        finally:
            if transport.is_closing():
                cycle.disconnected = True


def _plain(transport: Any) -> bool:
    return transport.get_extra_info("sslcontext") is None and transport.get_extra_info("socket") is not None
