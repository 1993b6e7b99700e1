"""What a request for a file says: its path, query and headers, within limits."""

from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import parse_qs, unquote

from starlette.types import Receive, Scope, Send

from millstream.confined_fs import NotServed


class Refused(Exception):
    """A request that is answered with an error status of HTTP or tus, and what is wrong with it."""

    def __init__(self, status: int, title: str, detail: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status, self.title, self.headers = status, title, headers


class Request(NamedTuple):
    """An HTTP request: its ASGI scope and channels, and its parsed query and headers."""

    scope: Scope
    receive: Receive
    send: Send
    query: Mapping[str, list[str]]
    headers: Mapping[str, str]


def read_headers(scope: Scope, most: int) -> dict[str, str]:
    """The request's headers by lower-case name; repeated ones are joined with commas (RFC 9110 §5.3). Raises Refused
    when one has more than `most` bytes: parsing a long list would hold up other requests.
    """
    found: dict[str, str] = {}
    for name, value in scope["headers"]:
        key, text = name.decode("latin-1"), value.decode("latin-1")
        found[key] = text = f"{found[key]}, {text}" if key in found else text
        if len(text) > most:
            detail = f"{key[:40]} has more than {most} bytes (MILLSTREAM_FIELD_BYTES)."
            raise Refused(431, "Request Header Fields Too Large", detail)
    return found


def read_path(scope: Scope) -> str:
    """The path, percent-decoded. The server decodes invalid UTF-8 as U+FFFD; such a path is NotServed, unless the
    client sent U+FFFD itself.
    """
    path: str = scope["path"]
    if "\N{REPLACEMENT CHARACTER}" not in path:
        return path
    try:
        return unquote(scope["raw_path"].decode(), errors="strict")
    except UnicodeDecodeError:
        raise NotServed(path) from None


def read_query(scope: Scope, most: int) -> dict[str, list[str]]:
    """The parameters by name. Invalid UTF-8 becomes lone surrogates, which are in no name that is served. Raises
    Refused when the query has more than `most` bytes.
    """
    query: bytes = scope["query_string"]
    if not query:
        return {}
    if len(query) > most:
        raise Refused(414, "URI Too Long", f"The query has more than {most} bytes (MILLSTREAM_FIELD_BYTES).")
    return parse_qs(query.decode(errors="surrogateescape"), errors="surrogateescape")


def content_length(headers: Mapping[str, str]) -> int | None:
    """Content-Length (RFC 9110 §8.6), or None where the body says itself where it ends. Raises Refused."""
    value = headers.get("content-length")
    if value is None or "transfer-encoding" in headers:
        return None
    if not (value.isascii() and value.isdigit() and len(value) <= 18):
        raise Refused(400, "Bad Request", "Content-Length must be a number of bytes.")
    return int(value)


def check_room(what: str, number: int, most: int) -> None:
    """Raises Refused when as many are open as may be."""
    if number >= most:
        detail = f"{number} {what} are open, the limit is {most}. Try again in a moment."
        raise Refused(503, f"Too many {what}", detail, {"Retry-After": "1"})
