"""uvicorn's protocol classes for HTTP and WebSocket, with the limits and error responses that they lack."""

import re
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.http11 import Request as Handshake

from millstream_api.problems import plain_problem

NON_TOKEN_CHAR = re.compile(r"[^!#$%&'*+\-.^_`|~0-9A-Za-z]")  # RFC 9110 §5.6.2
SUBPROTOCOLS = "Sec-WebSocket-Protocol"


class HeadTooLarge(Exception):
    """A request's request line and headers exceed the limit."""


class HttpProtocol(HttpToolsProtocol):
    """Limits the size of a request's head, and answers malformed requests with a problem document: uvicorn accepts
    headers of any size, and answers in plain text.

    The parser reports a header only when it is complete, so the bytes received for an incomplete head are counted.
    uvicorn creates `scope` when a head begins, and sets its "method" when the head is complete.
    """

    def __init__(self, *args: Any, head_bytes: int, **options: Any) -> None:
        super().__init__(*args, **options)
        self._head_limit = head_bytes
        self._scope_before: Any = None  # the scope before the data that is being parsed
        self._data_size = 0  # bytes of the data that is being parsed
        self._head_size = 0  # bytes received for an incomplete head, those that came with its beginning excepted

    def data_received(self, data: bytes) -> None:
        self._scope_before, self._data_size = self.scope, len(data)
        super().data_received(data)
        if self.scope is not self._scope_before or not self.scope or "method" in self.scope:
            self._head_size = 0
            return
        self._head_size += len(data)
        if self._head_size > self._head_limit:
            self.send_400_response("")

    def on_headers_complete(self) -> None:
        # Only a head that came in several pieces, or among data over the limit, can be over the limit.
        if self._data_size > self._head_limit or self.scope is self._scope_before:
            size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
            if size > self._head_limit:
                self._head_size = size
                raise HeadTooLarge  # the parser turns it into an error of its own: see send_400_response
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """Say what is wrong with the request (431: RFC 6585 §5), and close the connection."""
        if self.transport.is_closing():
            return
        status = HTTPStatus.BAD_REQUEST
        detail = "Malformed HTTP/1.1 request."
        if self._head_size > self._head_limit:
            status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            detail = f"The request line and headers exceed {self._head_limit} bytes."
        answer = plain_problem(status, status.phrase, "", detail, {"Connection": "close"})
        lines = [b"%b: %b\r\n" % line for line in (*self.server_state.default_headers, *answer.raw_headers)]
        self.transport.write(b"".join((STATUS_LINE[status], *lines, b"\r\n", answer.body)))
        self.transport.close()


class SocketProtocol(WebSocketsSansIOProtocol):
    """Removes characters that a subprotocol may not contain from Sec-WebSocket-Protocol before uvicorn parses it. For a
    malformed list uvicorn echoes the whole header in its error, and with it a key that is padded with `=`.
    """

    def handle_connect(self, event: Handshake) -> None:
        offered = ",".join(event.headers.get_all(SUBPROTOCOLS)).split(",")
        tokens = [token for item in offered if (token := NON_TOKEN_CHAR.sub("", item))]
        if SUBPROTOCOLS in event.headers:
            del event.headers[SUBPROTOCOLS]
        if tokens:
            event.headers[SUBPROTOCOLS] = ", ".join(tokens)
        super().handle_connect(event)
