"""HTTP/1.1 requests out of bytes (RFC 9112): bytes in; requests, their bodies and refusals out. No I/O.

    reader.receive(data)                   any cut of the bytes into packets gives the same requests
    reader.next_request() → Request        None: its head is not there yet. Raises Refused
    reader.read_body()    → bytes          what is there of its body, until `body_complete`

A request is read only when the one before it has been, body and all. So nothing behind an error is ever executed, and
what a client sends ahead stays bytes, which the caller stops reading when there are too many.

Where the RFC leaves a choice this reader is strict: what two servers might read differently is refused.
"""

import re
from dataclasses import dataclass
from http import HTTPStatus
from typing import cast

Headers = list[tuple[bytes, bytes]]

TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"  # RFC 9110 §5.6.2
_BLANK_LINES = re.compile(rb"(?:\r\n)*+")
_TOKEN_BYTE = re.compile(TOKEN)
_HOST = rb"(?:\[[0-9A-Fa-f:.]+\]|[0-9A-Za-z\-._~%]*)(?::[0-9]*)?"  # RFC 3986 §3.2.2, without what no name of a host has
_REQUEST_LINE = re.compile(rb"(%b{1,40}) ([!-~]+) HTTP/([0-9])\.([0-9])" % TOKEN)
_FIELDS = re.compile(rb"(?:%b++:[^\x00-\x08\x0a-\x1f\x7f]*+\r\n)*+" % TOKEN)  # any number of whole field lines
_ORIGIN_FORM = re.compile(rb"/[^#]*")
_ABSOLUTE_FORM = re.compile(rb"https?://(%b)(/[^#]*|\?[^#]*)?" % _HOST, re.IGNORECASE)
_AUTHORITY = re.compile(_HOST)
_LENGTH = re.compile(rb"[0-9]{1,18}")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\x00-\x08\x0a-\x1f\x7f]*)?")

MAX_CHUNK_LINE = 1024  # bytes of a chunk's size and extensions
REMEMBERED = 2048  # bytes of a head that is kept for the case that it comes again
CHUNKS_AT_ONCE = 500  # decoded in one call, which takes well under a millisecond
# The fields that say where a request ends and what becomes of its connection.
FRAMING = frozenset({b"host", b"content-length", b"transfer-encoding", b"connection", b"expect", b"upgrade"})


class Refused(Exception):
    """These bytes are no request that can be answered otherwise; nothing behind them is read."""

    def __init__(self, status: HTTPStatus, detail: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = headers or {}


def _malformed(detail: str) -> Refused:
    return Refused(HTTPStatus.BAD_REQUEST, f"Malformed HTTP/1.1 request: {detail}.")


@dataclass(slots=True)  # not frozen, which would make it four times as slow to make
class Request:
    """The head of a request. `target`: its path and query; `length` of its body in bytes, None: it comes in chunks;
    `handshake`: it asks for a WebSocket (RFC 6455 §4.1).
    """

    method: str
    target: bytes
    http_version: str
    headers: Headers
    length: int | None
    keep_alive: bool
    expects_continue: bool
    handshake: bool


class RequestReader:
    """`head_bytes` bounds a request's first line and fields, and its trailers; `fields` bounds how many."""

    __slots__ = (
        "_chunk_left", "_data", "_head_bytes", "_in_trailers", "_last", "_last_head", "_left", "_max_fields",
        "_searched", "body_complete",
    )  # fmt: skip

    def __init__(self, *, head_bytes: int, fields: int) -> None:
        self.body_complete = True
        self._head_bytes = head_bytes
        self._max_fields = fields
        self._data = bytearray()
        self._last_head, self._last = b"", cast(Request | None, None)
        self._searched = 0  # up to here there is no end of a head
        self._left: int | None = 0  # bytes of the body that are still to come; None: chunks
        self._chunk_left = -1  # bytes of a chunk, and the line's end behind it; -1: its size is still to come
        self._in_trailers = False

    @property
    def held(self) -> int:
        """Bytes that have come and were not read yet."""
        return len(self._data)

    def receive(self, data: bytes) -> None:
        self._data += data

    def take_rest(self) -> bytes:
        """What has come behind the request that was read: no HTTP any more."""
        rest = bytes(self._data)
        self._data.clear()
        return rest

    def next_request(self) -> Request | None:
        """The next request, or None where its head has not come in full. Raises Refused."""
        assert self.body_complete
        data = self._data
        if data.startswith(b"\r\n"):  # RFC 9112 §2.2
            del data[: _BLANK_LINES.match(data).end()]  # type: ignore[union-attr]  # it matches anything
            self._searched = 0
        if data and not _TOKEN_BYTE.match(data) and data != b"\r":
            raise _malformed("it does not begin with a method")  # said at once: a client of another protocol waits
        end = data.find(b"\r\n\r\n", self._searched)
        if (end if end >= 0 else len(data)) > self._head_bytes:
            raise self._too_large()
        if end < 0:
            self._searched = max(0, len(data) - 3)
            return None
        head = bytes(data[: end + 2])
        del data[: end + 4]
        self._searched = 0
        if self._last is not None and head == self._last_head:  # clients often ask for the same again
            request = self._last
        else:
            request = _parse(head, self._max_fields)
            self._last_head, self._last = (head, request) if len(head) <= REMEMBERED else (b"", None)
        self._left = request.length
        self._chunk_left, self._in_trailers = -1, False
        self.body_complete = request.length == 0
        return request

    def read_body(self) -> bytes:
        """What is there of the body; nothing may be there yet. Raises Refused."""
        if self._left is None:
            return self._read_chunks()
        data, left = self._data, self._left
        if len(data) <= left:
            body = bytes(data)
            data.clear()
        else:
            body = bytes(data[:left])
            del data[:left]
        self._left = left - len(body)
        self.body_complete = not self._left
        return body

    def _read_chunks(self) -> bytes:
        data, body = self._data, bytearray()
        for _ in range(CHUNKS_AT_ONCE):
            if self._in_trailers:
                self._skip_trailers()
                break
            if self._chunk_left < 0 and not self._read_chunk_size():
                break
            if self._chunk_left > 2:
                part = data[: self._chunk_left - 2]
                body += part
                del data[: len(part)]
                self._chunk_left -= len(part)
            if self._chunk_left > 2 or len(data) < 2:
                break
            if not data.startswith(b"\r\n"):
                raise _malformed("a chunk is longer than its size says")
            del data[:2]
            self._chunk_left = -1
        return bytes(body)

    def _read_chunk_size(self) -> bool:
        """Read the line before a chunk, if it has come in full."""
        data = self._data
        end = data.find(b"\r\n", 0, MAX_CHUNK_LINE + 2)
        if end < 0:
            if len(data) > MAX_CHUNK_LINE:
                raise _malformed(f"the line before a chunk has more than {MAX_CHUNK_LINE} bytes")
            return False
        found = _CHUNK.fullmatch(data, 0, end)
        if not found:
            raise _malformed("the size of a chunk is not a hexadecimal number")
        size = int(found[1], 16)
        del data[: end + 2]
        if size:
            self._chunk_left = size + 2
        else:
            self._in_trailers = True
            self._searched = 0
        return bool(size) or self._skip_trailers()

    def _skip_trailers(self) -> bool:
        """Drop the trailers, which are never headers (RFC 9110 §6.5.1), when they have come in full. Returns False:
        there is no chunk to read.
        """
        data = self._data
        if data.startswith(b"\r\n"):
            end = -2
        else:
            end = data.find(b"\r\n\r\n", self._searched)
            if (end if end >= 0 else len(data)) > self._head_bytes:
                raise self._too_large()
            if end < 0:
                self._searched = max(0, len(data) - 3)
                return False
        if not _FIELDS.fullmatch(data, 0, end + 2):
            raise _malformed("a trailer is not a name, a colon and a value")
        del data[: end + 4]
        self._searched = 0
        self._in_trailers = False
        self.body_complete = True
        return False

    def _too_large(self) -> Refused:
        detail = f"The request line and headers exceed {self._head_bytes} bytes."
        return Refused(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, detail)


def _parse(head: bytes, max_fields: int) -> Request:
    """A request from its first line and field lines. Raises Refused."""
    first, _, rest = head.partition(b"\r\n")
    line = _REQUEST_LINE.fullmatch(first)
    if not line:
        raise _malformed("its first line is not METHOD TARGET HTTP/1.1")
    if line[3] != b"1":
        raise Refused(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "This server speaks HTTP/1.1.")
    if not _FIELDS.fullmatch(rest):
        raise _malformed("a header is not a name, a colon and a value")
    lines = rest.split(b"\r\n")
    if len(lines) - 1 > max_fields:
        raise Refused(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"The request has more than {max_fields} headers.")
    headers = [(name.lower(), value.strip(b" \t")) for name, _, value in (item.partition(b":") for item in lines[:-1])]
    old = line[4] == b"0"
    method, said = line[1], [item for item in headers if item[0] in FRAMING]
    if len(said) == 1 and _is_plain(line[2], said[0]) and not old:
        return Request(method.decode(), line[2], "1.1", headers, 0, True, False, False)
    framing: dict[bytes, list[bytes]] = {}
    for name, value in said:
        framing.setdefault(name, []).append(value)
    target = _target(method, line[2], framing, headers, old=old)
    connection = _tokens(framing.get(b"connection"))
    length = _length(framing, old=old)
    handshake = not old and b"upgrade" in connection and b"websocket" in _tokens(framing.get(b"upgrade"))
    if handshake and (method != b"GET" or length != 0):
        raise _malformed("a WebSocket is asked for by GET, without a body")
    return Request(
        method.decode(), target, "1.0" if old else "1.1", headers, length,
        keep_alive=not old and b"close" not in connection,
        expects_continue=not old and b"100-continue" in _tokens(framing.get(b"expect")),
        handshake=handshake,
    )  # fmt: skip


def _is_plain(target: bytes, only: tuple[bytes, bytes]) -> bool:
    """Does a request for a path say nothing of its framing but its Host? Most are so."""
    return only[0] == b"host" and bool(_ORIGIN_FORM.fullmatch(target)) and bool(_AUTHORITY.fullmatch(only[1]))


def _tokens(values: list[bytes] | None) -> set[bytes]:
    """The members of a list, in lower case (RFC 9110 §5.6.1)."""
    return {token.strip().lower() for token in b",".join(values).split(b",")} if values else set()


def _target(method: bytes, target: bytes, framing: dict[bytes, list[bytes]], headers: Headers, *, old: bool) -> bytes:
    """Path and query. A whole URL is one too, and its host is the request's (RFC 9112 §3.2). Raises Refused."""
    hosts = framing.get(b"host", [])
    if len(hosts) > 1 or (not hosts and not old):
        raise _malformed("it must have one Host")
    if hosts and not _AUTHORITY.fullmatch(hosts[0]):
        raise _malformed("its Host is not a name or address with a port or without")
    if _ORIGIN_FORM.fullmatch(target) or (target == b"*" and method == b"OPTIONS"):
        return target
    if method == b"CONNECT":
        raise Refused(HTTPStatus.NOT_IMPLEMENTED, "This server is no proxy.")
    if absolute := _ABSOLUTE_FORM.fullmatch(target):
        headers[:] = [(b"host", absolute[1]), *((name, value) for name, value in headers if name != b"host")]
        path = absolute[2] or b"/"
        return path if path.startswith(b"/") else b"/" + path
    raise _malformed("its target is not a path that begins with / and has no #")


def _length(framing: dict[bytes, list[bytes]], *, old: bool) -> int | None:
    """The body's length in bytes; None: chunks (RFC 9112 §6). Raises Refused."""
    lengths, codings = framing.get(b"content-length"), framing.get(b"transfer-encoding")
    if codings is None:
        if lengths is None:
            return 0
        if len(lengths) > 1 or not _LENGTH.fullmatch(lengths[0]):
            raise _malformed("Content-Length must be one number")
        return int(lengths[0])
    if lengths is not None:
        raise _malformed("it has both Content-Length and Transfer-Encoding")
    if old:
        raise _malformed("HTTP/1.0 has no Transfer-Encoding")
    found = [coding.strip().lower() for coding in b",".join(codings).split(b",")]
    if found == [b"chunked"]:
        return None
    if found.count(b"chunked") == 1 and found[-1] == b"chunked":
        raise Refused(HTTPStatus.NOT_IMPLEMENTED, "The only Transfer-Encoding known here is chunked.")
    raise _malformed("Transfer-Encoding must end with chunked")
