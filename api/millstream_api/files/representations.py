"""The responses for one state of a file: whole, one range, several ranges, or not modified. No I/O."""

import mimetypes
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import quote

from millstream_api.files.conditions import State, Validators
from millstream_api.wire.answers import Answer, Span, http_date

CODINGS = {"zstd": ".zst", "br": ".br", "gzip": ".gz"}  # of compressed siblings; the best first
ACTIVE = ("text/html", "application/xhtml+xml", "image/svg+xml", "text/xml", "application/xml", "text/javascript")


@dataclass(frozen=True, slots=True)
class Representation:
    """One state of a file, or of its compressed sibling, with its precomputed responses. `size` in bytes."""

    size: int
    media_type: str
    validators: Validators
    head: bytes  # header lines of every response with content
    one_range_head: bytes  # further ones of a response with one range
    whole: Answer
    unchanged: Answer

    def one(self, span: Span) -> Answer:
        about_range = f"content-length: {span.length}\r\ncontent-range: {span.content_range(self.size)}\r\n"
        return Answer(206, self.head + self.one_range_head + about_range.encode(), (span,))

    def several(self, wanted: Sequence[Span]) -> Answer:
        """A multipart/byteranges (RFC 9110 §14.6)."""
        boundary = secrets.token_hex(16)
        parts: list[bytes | Span] = []
        for span in wanted:
            begin = "\r\n" if parts else ""
            about = f"Content-Type: {self.media_type}\r\nContent-Range: {span.content_range(self.size)}"
            parts += [f"{begin}--{boundary}\r\n{about}\r\n\r\n".encode(), span]
        parts.append(f"\r\n--{boundary}--\r\n".encode())
        length = sum(part.length if isinstance(part, Span) else len(part) for part in parts)
        kind = f"multipart/byteranges; boundary={boundary}"
        return Answer(206, self.head + lines({"Content-Type": kind, "Content-Length": str(length)}), parts)


@lru_cache(maxsize=1024)
def representation(name: str, coding: str | None, state: State, modified: int) -> Representation:
    """The representation of a file of this name (with a `coding`: of its compressed sibling) in this state. `modified`:
    Last-Modified in Unix seconds.
    """
    validators, kind = Validators.of(state), media_type(name)
    always = {
        "ETag": validators.etag,
        "Last-Modified": http_date(modified),
        "Accept-Ranges": "bytes",
        "Vary": "Accept-Encoding",
    }
    content = {**always, "Content-Disposition": disposition(name), "X-Content-Type-Options": "nosniff"}
    if coding:
        content["Content-Encoding"] = coding
    whole = {**content, "Content-Type": kind, "Content-Length": str(state.size)}
    return Representation(
        state.size,
        kind,
        validators,
        lines(content),
        lines({"Content-Type": kind}),
        whole=Answer(200, lines(whole), (Span(0, state.size),)),
        unchanged=Answer(304, lines(always)),
    )


def supersedes(sibling: os.stat_result, plain: os.stat_result) -> bool:
    """Whether this compressed sibling is sent instead of the plain file: not when it is older."""
    return sibling.st_mtime_ns >= plain.st_mtime_ns


def media_type(name: str) -> str:
    kind, compression = mimetypes.guess_type(name)
    return "application/octet-stream" if kind is None or compression else kind


def disposition(name: str) -> str:
    """Content-Disposition (RFC 6266): types that a browser would execute are downloaded instead of shown."""
    kind = "attachment" if media_type(name) in ACTIVE else "inline"
    plain = "".join(c if c.isascii() and c.isprintable() and c not in '"\\%' else "_" for c in name)
    extended = f"; filename*=UTF-8''{quote(name, safe='')}" if plain != name else ""
    return f'{kind}; filename="{plain}"{extended}'


def lines(headers: Mapping[str, str]) -> bytes:
    return "".join(f"{name.lower()}: {value}\r\n" for name, value in headers.items()).encode("latin-1")
