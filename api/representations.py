"""What is said and sent of one state of a file: whole, in one part or several, or not again. No I/O."""

import mimetypes
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import quote

from api.conditions import State, Validators, http_date
from api.ranges import Span

RawHeaders = list[tuple[bytes, bytes]]  # as ASGI has them: names in lower case
ACTIVE = ("text/html", "application/xhtml+xml", "image/svg+xml", "text/xml", "application/xml", "text/javascript")


@dataclass(frozen=True, slots=True)
class Answer:
    """What is sent of a file: `parts` are bytes as they are, or spans of the file."""

    status: int
    headers: RawHeaders
    parts: Sequence[bytes | Span] = ()


@dataclass(frozen=True, slots=True)
class Representation:
    """One state of what is sent for a name, and its answers that are always the same. `size` in bytes."""

    size: int
    media_type: str
    validators: Validators
    headers: RawHeaders  # of every answer with content, whole or in parts
    whole: Answer
    unchanged: Answer

    def one(self, span: Span) -> Answer:
        headers = [
            (b"content-type", self.media_type.encode()),
            (b"content-length", b"%d" % span.count),
            (b"content-range", span.content_range(self.size).encode()),
        ]
        return Answer(206, self.headers + headers, [span])

    def several(self, wanted: Sequence[Span]) -> Answer:
        """A multipart/byteranges (RFC 9110 §14.6)."""
        boundary = secrets.token_hex(16)
        parts: list[bytes | Span] = []
        for span in wanted:
            begin = "\r\n" if parts else ""
            about = f"Content-Type: {self.media_type}\r\nContent-Range: {span.content_range(self.size)}"
            parts += [f"{begin}--{boundary}\r\n{about}\r\n\r\n".encode(), span]
        parts.append(f"\r\n--{boundary}--\r\n".encode())
        length = sum(part.count if isinstance(part, Span) else len(part) for part in parts)
        kind = f"multipart/byteranges; boundary={boundary}"
        headers = raw({"Content-Type": kind, "Content-Length": str(length)})
        return Answer(206, self.headers + headers, parts)


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
        raw(content),
        whole=Answer(200, raw(whole), [Span(0, state.size)]),
        unchanged=Answer(304, raw(always)),
    )


def media_type(name: str) -> str:
    kind, packed = mimetypes.guess_type(name)
    return "application/octet-stream" if kind is None or packed else kind


def disposition(name: str) -> str:
    """Content-Disposition (RFC 6266): what a browser would run is offered for download instead."""
    kind = "attachment" if media_type(name) in ACTIVE else "inline"
    plain = "".join(c if c.isascii() and c.isprintable() and c not in '"\\%' else "_" for c in name)
    extended = f"; filename*=UTF-8''{quote(name, safe='')}" if plain != name else ""
    return f'{kind}; filename="{plain}"{extended}'


def raw(headers: Mapping[str, str]) -> RawHeaders:
    return [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
