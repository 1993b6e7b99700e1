"""uvicorn's protocols, with the limits and the answers that they lack: how bytes become requests and sockets."""

import re
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.http11 import Request as Handshake

from millstream_api.problems import plain_problem

NON_TOKEN_CHAR = re.compile(r"[^!#$%&'*+\-.^_`|~0-9A-Za-z]")  # RFC 9110 §5.6.2
PROTOCOLS = "Sec-WebSocket-Protocol"


class HeadTooLarge(Exception):
    """A request's first line and headers are over the limit."""


class HttpProtocol(HttpToolsProtocol):
    """uvicorn's, which would take headers of any size, and whose answer to what is no HTTP is plain text.

    The parser tells of a header when it has all of it: so of a head that has not ended, the pieces are counted. uvicorn
    makes a scope when a head begins, and writes its method when it has ended.
    """

    def __init__(self, *args: Any, head_bytes: int, **options: Any) -> None:
        super().__init__(*args, **options)
        self._most = head_bytes
        self._before: Any = None  # the scope as it was before what comes now
        self._piece = 0  # bytes that come now
        self._held = 0  # bytes that came for a head that has not ended, but for those of its first piece

    def data_received(self, data: bytes) -> None:
        self._before, self._piece = self.scope, len(data)
        super().data_received(data)
        if self.scope is not self._before or not self.scope or "method" in self.scope:
            self._held = 0
            return
        self._held += len(data)
        if self._held > self._most:
            self.send_400_response("")

    def on_headers_complete(self) -> None:
        if (
            self._piece > self._most or self.scope is self._before
        ):  # else it came whole, in a piece that is small enough
            size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
            if size > self._most:
                self._held = size
                raise HeadTooLarge  # the parser stops, and says that it did
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


class SocketProtocol(WebSocketsSansIOProtocol):
    """uvicorn's, which would answer a malformed list of protocols, and so a key with `=` in it, with all of its text:
    what no protocol may contain is taken out first.
    """

    def handle_connect(self, event: Handshake) -> None:
        offered = ",".join(event.headers.get_all(PROTOCOLS)).split(",")
        tokens = [token for item in offered if (token := NON_TOKEN_CHAR.sub("", item))]
        if PROTOCOLS in event.headers:
            del event.headers[PROTOCOLS]
        if tokens:
            event.headers[PROTOCOLS] = ", ".join(tokens)
        super().handle_connect(event)
