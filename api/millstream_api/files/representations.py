"""The responses for one state of a file: whole, one range, several ranges, or not modified. No I/O."""

import mimetypes
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePosixPath
from urllib.parse import quote

from millstream_api.files.conditions import State, Validators
from millstream_api.negotiation import weights
from millstream_api.wire.answers import Answer, Span, http_date

CODINGS = {"zstd": ".zst", "br": ".br", "gzip": ".gz"}  # of compressed siblings; the best first
# What a browser may show. Everything else is downloaded, so that nothing of an uploader's runs in our origin.
INLINE = frozenset({
    "application/json", "application/pdf", "text/plain",
    "image/avif", "image/bmp", "image/gif", "image/jpeg", "image/png", "image/webp",
})  # fmt: skip
INLINE_KINDS = ("audio/", "video/")
# Types that Python knows only where the system has a table of them.
MORE_TYPES = {".webp": "image/webp", ".ogg": "audio/ogg", ".flac": "audio/flac", ".m4a": "audio/mp4"}


@dataclass(frozen=True, slots=True)
class Representation:
    """One state of a file, or of its compressed sibling, with its precomputed responses. `size` in bytes."""

    size: int
    content_type: str
    validators: Validators
    head: bytes  # header lines of every response with content
    one_range_head: bytes  # further ones of a response with one range
    whole: Answer
    described: Answer  # to HEAD
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
            about = f"Content-Type: {self.content_type}\r\nContent-Range: {span.content_range(self.size)}"
            parts += [f"{begin}--{boundary}\r\n{about}\r\n\r\n".encode(), span]
        parts.append(f"\r\n--{boundary}--\r\n".encode())
        length = sum(part.length if isinstance(part, Span) else len(part) for part in parts)
        kind = f"multipart/byteranges; boundary={boundary}"
        return Answer(206, self.head + lines({"Content-Type": kind, "Content-Length": str(length)}), parts)


@lru_cache(maxsize=1024)
def representation(name: str, charset: str, coding: str | None, state: State, modified: int) -> Representation:
    """The representation of a file of this name (with a `coding`: of its compressed sibling) in this state. `charset`:
    that of text files, "" for none that is told. `modified`: Last-Modified in Unix seconds.

    A compressed sibling is chosen only for requests without Range, so Vary names both. Its length is not told to HEAD
    (RFC 9110 §9.3.2 lets it be): clients would ask for so many bytes of the file.
    """
    validators, kind = Validators.of(state), content_type(name, charset)
    always = {
        "ETag": validators.etag,
        "Last-Modified": http_date(modified),
        "Accept-Ranges": "bytes",
        "Vary": "Accept-Encoding, Range" if coding else "Accept-Encoding",
    }
    content = {**always, **restrictions(name)}
    if coding:
        content["Content-Encoding"] = coding
    whole = {**content, "Content-Type": kind, "Content-Length": str(state.size)}
    described = {**content, "Content-Type": kind} if coding else whole
    return Representation(
        state.size,
        kind,
        validators,
        lines(content),
        lines({"Content-Type": kind}),
        whole=Answer(200, lines(whole), (Span(0, state.size),)),
        described=Answer(200, lines(described)),
        unchanged=Answer(304, lines(always)),
    )


def accepted_codings(header: str | None) -> list[str]:
    """The codings in CODINGS that an Accept-Encoding (RFC 9110 §12.5.3) prefers to the plain file, or weights equally;
    the highest weight first.
    """
    if not header:
        return []
    wanted = weights(header)
    anything, plain = wanted.get("*", 0.0), wanted.get("identity", 0.0)
    weight = {coding: wanted.get(coding, anything) for coding in CODINGS}
    return sorted((c for c in CODINGS if weight[c] > 0 and weight[c] >= plain), key=lambda c: -weight[c])


def supersedes(sibling: os.stat_result, plain: os.stat_result) -> bool:
    """Whether this compressed sibling is sent instead of the plain file: not when it is older."""
    return sibling.st_mtime_ns >= plain.st_mtime_ns


def media_type(name: str) -> str:
    kind, compression = mimetypes.guess_type(name)
    kind = kind or MORE_TYPES.get(PurePosixPath(name).suffix.lower())
    return "application/octet-stream" if kind is None or compression else kind


def content_type(name: str, charset: str) -> str:
    """Content-Type. Text has the charset that the operator says text files are in; XML says its own (RFC 7303 §3), and
    JSON needs none (RFC 8259 §11).
    """
    kind = media_type(name)
    return f"{kind}; charset={charset}" if charset and kind.startswith("text/") and kind != "text/xml" else kind


def restrictions(name: str) -> dict[str, str]:
    """What a browser may do with a file of this name: show it or only download it (RFC 6266), and run nothing of it."""
    kind = media_type(name)
    shown = "inline" if kind in INLINE or kind.startswith(INLINE_KINDS) else "attachment"
    plain = "".join(c if c.isascii() and c.isprintable() and c not in '"\\%' else "_" for c in name)
    extended = f"; filename*=UTF-8''{quote(name, safe='')}" if plain != name else ""
    return {
        "Content-Disposition": f'{shown}; filename="{plain}"{extended}',
        "Content-Security-Policy": "sandbox",
        "X-Content-Type-Options": "nosniff",
    }


def lines(headers: Mapping[str, str]) -> bytes:
    return "".join(f"{name.lower()}: {value}\r\n" for name, value in headers.items()).encode("latin-1")
