"""What is said and sent of one state of a file: whole, in one part or several, or not again. No I/O."""

import mimetypes
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import quote

from millstream_api.files.conditions import State, Validators
from millstream_api.wire.answers import Answer, Span, http_date

CODINGS = {"zstd": ".zst", "br": ".br", "gzip": ".gz"}  # of siblings that are compressed already; the best first
ACTIVE = ("text/html", "application/xhtml+xml", "image/svg+xml", "text/xml", "application/xml", "text/javascript")


@dataclass(frozen=True, slots=True)
class Representation:
    """One state of what is sent for a name, and its answers that are always the same. `size` in bytes."""

    size: int
    media_type: str
    validators: Validators
    head: bytes  # of every answer with content, whole or in parts
    of_part: bytes  # of an answer with one part
    whole: Answer
    unchanged: Answer

    def one(self, span: Span) -> Answer:
        told = f"content-length: {span.length}\r\ncontent-range: {span.content_range(self.size)}\r\n"
        return Answer(206, self.head + self.of_part + told.encode(), (span,))

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
    """Of a file of this name (its compressed sibling, when there is a `coding`) in this state. `modified`: the Unix
    second to be told as Last-Modified.
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
    """Is this compressed sibling sent in place of the plain file? Not when it is older."""
    return sibling.st_mtime_ns >= plain.st_mtime_ns


def media_type(name: str) -> str:
    kind, packed = mimetypes.guess_type(name)
    return "application/octet-stream" if kind is None or packed else kind


def disposition(name: str) -> str:
    """Content-Disposition (RFC 6266): what a browser would run is offered for download instead."""
    kind = "attachment" if media_type(name) in ACTIVE else "inline"
    plain = "".join(c if c.isascii() and c.isprintable() and c not in '"\\%' else "_" for c in name)
    extended = f"; filename*=UTF-8''{quote(name, safe='')}" if plain != name else ""
    return f'{kind}; filename="{plain}"{extended}'


def lines(headers: Mapping[str, str]) -> bytes:
    return "".join(f"{name.lower()}: {value}\r\n" for name, value in headers.items()).encode("latin-1")
