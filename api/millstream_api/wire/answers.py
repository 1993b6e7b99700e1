"""A whole response as data: a head, and parts that are bytes or spans of one file. No I/O."""

from collections.abc import Sequence
from datetime import UTC, datetime
from email.utils import format_datetime
from functools import lru_cache
from http import HTTPStatus
from typing import NamedTuple


class Span(NamedTuple):
    """`length` bytes of a file from offset `start` on."""

    start: int
    length: int

    def content_range(self, size: int) -> str:
        return f"bytes {self.start}-{self.start + self.length - 1}/{size}"


class Answer(NamedTuple):
    """A response. `head`: the header lines as they are sent, names in lower case; `parts` of the body: literal bytes or
    spans of a file.
    """

    status: int
    head: bytes
    parts: Sequence[bytes | Span] = ()

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """The head as ASGI headers."""
        pairs = (line.partition(b": ") for line in self.head.split(b"\r\n")[:-1])
        return [(name, value) for name, _, value in pairs]


@lru_cache(maxsize=1024)
def http_date(seconds: int) -> str:
    """Unix seconds as an HTTP date (RFC 9110 §5.6.7)."""
    return format_datetime(datetime.fromtimestamp(seconds, UTC), usegmt=True)


@lru_cache(maxsize=8)
def date_line(seconds: int) -> bytes:
    return b"date: %b\r\n" % http_date(seconds).encode()


@lru_cache(maxsize=128)
def status_line(status: int) -> bytes:
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = ""
    return f"HTTP/1.1 {status} {phrase}\r\n".encode()
