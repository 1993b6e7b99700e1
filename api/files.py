"""The file tier: `/files/…`, and `/stream/file`, which is the same stream. An ASGI app of its own, beside FastAPI's.

A request goes: path → descriptor (shared/beneath.py) → validators and conditions (conditions.py) → ranges (ranges.py)
→ headers → bytes (sending.py). The descriptor is opened once and passed on, so what was checked is what is sent.
"""

import asyncio
import mimetypes
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from urllib.parse import parse_qs, quote

import structlog
from pydantic_core import to_json
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api.conditions import Validators, range_applies, refused
from api.digests import Digests, field, wants_sha256
from api.negotiation import weights
from api.problems import plain_problem, problem_response
from api.ranges import Span, Unsatisfiable, spans
from api.sending import Cut, Traffic, connection, patient, send_part, until_left
from api.settings import ApiSettings
from api.uploads import Uploads
from api.zerocopy import ClientGone
from shared.apikeys import Keys
from shared.beneath import Directory, NotServed
from shared.errors import Problem
from shared.events import rfc3339

log = structlog.get_logger("millstream.api")

PREFIX = "/files/"
STREAM = "/stream/file"
SETTLE_NS = 20_000_000  # a change within this time of another one may leave the same time stamp behind
CODINGS = {"zstd": ".zst", "br": ".br", "gzip": ".gz"}  # the best first
ACTIVE = ("text/html", "application/xhtml+xml", "image/svg+xml", "text/xml", "application/xml", "text/javascript")


@dataclass(slots=True)
class Representation:
    """An open file and what is said of it."""

    file: int
    size: int
    validators: Validators
    name: str
    coding: str | None = None

    @classmethod
    def of(cls, file: int, name: str, coding: str | None = None) -> "Representation":
        found = os.fstat(file)
        return cls(file, found.st_size, Validators.of(found), name, coding)

    @property
    def media_type(self) -> str:
        return media_type(self.name)


@lru_cache(maxsize=4096)
def media_type(name: str) -> str:
    kind, packed = mimetypes.guess_type(name)
    return "application/octet-stream" if kind is None or packed else kind


@lru_cache(maxsize=4096)
def disposition(name: str) -> str:
    """Content-Disposition (RFC 6266): what a browser would run is offered for download instead."""
    kind = "attachment" if media_type(name) in ACTIVE else "inline"
    plain = "".join(c if c.isascii() and c.isprintable() and c not in '"\\%' else "_" for c in name)
    extended = f"; filename*=UTF-8''{quote(name, safe='')}" if plain != name else ""
    return f'{kind}; filename="{plain}"{extended}'


class Files:
    """The app. `traffic` is for the operator."""

    def __init__(self, settings: ApiSettings, keys: Keys, directory: Directory, traffic: Traffic) -> None:
        self._settings = settings
        self._keys = keys
        self._directory = directory
        self._digests = Digests()
        self._uploads = Uploads(settings, directory)
        self.traffic = traffic

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = read_headers(scope)
        send = patient(scope, send, self._settings.send_timeout_s)
        method, path = scope["method"], scope["path"]
        query = parse_qs(scope["query_string"].decode("latin-1")) if scope["query_string"] else {}
        try:
            response = await self._answer(method, path, query, headers, scope, receive, send)
        except Problem as problem:
            response = problem_response(problem, path)
        except NotServed:
            response = plain_problem(404, "Not Found", path)
        except Unsatisfiable as error:
            response = plain_problem(
                416, "Range Not Satisfiable", path, headers={"Content-Range": f"bytes */{error.args[0]}"}
            )
        except (ClientGone, Cut) as error:
            log.info("a stream ended early", path=path, reason=str(error) or "the file was cut short")
            return
        if response is not None:
            with suppress(ClientGone):
                await response(scope, receive, send)

    async def _answer(
        self,
        method: str,
        path: str,
        query: Mapping[str, list[str]],
        headers: Mapping[str, str],
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> Response | None:
        """Answer, or return what is to be answered. Raises Problem, NotServed, Unsatisfiable, ClientGone, Cut."""
        who = self._keys.who(headers.get("authorization"))
        legacy = path == STREAM
        name = query.get("path", ["large_file.txt"])[0] if legacy else path.removeprefix(PREFIX)
        allowed = ("GET", "HEAD") if legacy or not name else ("GET", "HEAD", "PUT", "DELETE")
        if method not in allowed:
            return plain_problem(405, "Method Not Allowed", path, headers={"Allow": ", ".join(allowed)})
        who.need("files:read" if method in ("GET", "HEAD") else "files:write")
        if method == "PUT":
            return await self._uploads.put(name, headers, receive)
        if method == "DELETE":
            return await self._uploads.delete(name, headers)
        if not name:
            return await self._list(query, headers, method, send)
        if self.traffic.open >= self._settings.streams:
            detail = (
                f"{self.traffic.open} streams are open, the limit is {self._settings.streams}. Try again in a moment."
            )
            return plain_problem(503, "Too many streams", path, detail, {"Retry-After": "1"})
        self.traffic.open += 1
        try:
            if query.get("follow", [""])[0].lower() in ("true", "1"):
                return await self._follow(name, query, scope, receive, send)
            return await self._get(name, headers, scope, receive, send)
        finally:
            self.traffic.open -= 1

    async def _get(
        self, name: str, headers: Mapping[str, str], scope: Scope, receive: Receive, send: Send
    ) -> Response | None:
        file = await self._open(name)
        try:
            shown = await self._represent(file, name, headers.get("accept-encoding"))
            try:
                return await self._send(shown, headers, scope, receive, send)
            finally:
                if shown.file != file:
                    os.close(shown.file)
        finally:
            os.close(file)

    async def _send(
        self, shown: Representation, headers: Mapping[str, str], scope: Scope, receive: Receive, send: Send
    ) -> Response | None:
        method = scope["method"]
        common = {
            "ETag": shown.validators.etag,
            "Last-Modified": shown.validators.last_modified,
            "Accept-Ranges": "bytes",
            "Vary": "Accept-Encoding",
        }
        status = refused(method, headers, shown.validators)
        if status == 304:
            return Response(status_code=304, headers=common)
        if status is not None:
            return plain_problem(status, "Precondition Failed", scope["path"])
        wanted = None
        if method == "GET" and range_applies(headers.get("if-range"), shown.validators, time.time()):
            try:
                wanted = spans(headers.get("range"), shown.size, most=self._settings.ranges)
            except Unsatisfiable:
                raise Unsatisfiable(shown.size) from None
        if wants_sha256(headers.get("want-repr-digest")):
            common["Repr-Digest"] = field(await self._digests.sha256(shown.file, shown.validators.etag))
        if shown.coding:
            common["Content-Encoding"] = shown.coding
        common["Content-Disposition"] = disposition(shown.name)
        common["X-Content-Type-Options"] = "nosniff"
        body = Body(shown, wanted)
        start = {"type": "http.response.start", "status": body.status, "headers": _raw({**common, **body.headers})}
        self.traffic.streams += 1
        await send(start)
        if method == "HEAD":
            await send({"type": "http.response.body", "body": b""})
            return None
        parts = list(body.parts())
        for number, part in enumerate(parts, 1):
            more = number < len(parts)
            if isinstance(part, bytes):
                await send({"type": "http.response.body", "body": part, "more_body": more})
            else:
                stall_s = self._settings.send_timeout_s
                await send_part(scope, receive, send, shown.file, part, self.traffic, more=more, stall_s=stall_s)
        return None

    async def _open(self, name: str) -> int:
        """Open a file: here when the kernel can do so without a disk, else in a thread."""
        file = self._directory.open_cached(name)
        if file is None:
            file = await asyncio.to_thread(self._directory.open, name)
        if time.time_ns() - os.fstat(file).st_mtime_ns < SETTLE_NS:
            await asyncio.sleep(SETTLE_NS / 1e9)
        return file

    async def _represent(self, file: int, name: str, accepted: str | None) -> Representation:
        """The file itself, or a sibling that is compressed already, if the client takes it and it is not older."""
        plain = Representation.of(file, name.rpartition("/")[2])
        for coding in accepted_codings(accepted):
            try:
                packed = self._directory.open(name + CODINGS[coding])
            except NotServed:
                continue
            if os.fstat(packed).st_mtime_ns >= os.fstat(file).st_mtime_ns:
                return Representation.of(packed, plain.name, coding)
            os.close(packed)
        return plain

    async def _follow(
        self, name: str, query: Mapping[str, list[str]], scope: Scope, receive: Receive, send: Send
    ) -> Response | None:
        """Like tail -f: from an offset on, then what is appended, until the client leaves or the file is cut short."""
        try:
            offset = int(query.get("offset", ["0"])[0])
        except ValueError:
            offset = -1
        if offset < 0:
            wrong = "it must be a number of bytes, 0 or more"
            raise Problem("invalid_params", f"offset: {wrong}.", [{"pointer": "/offset", "detail": wrong}])
        file = await self._open(name)
        self.traffic.streams += 1
        transport = connection(scope)
        leaving = asyncio.ensure_future(until_left(receive))
        try:
            shown = Representation.of(file, name.rpartition("/")[2])
            headers = {
                "Content-Type": shown.media_type,
                "Cache-Control": "no-store",
                "X-Content-Type-Options": "nosniff",
            }
            await send({"type": "http.response.start", "status": 200, "headers": _raw(headers)})
            while scope["method"] == "GET" and not (leaving.done() or (transport and transport.is_closing())):
                found = os.fstat(file)
                if found.st_size < offset:
                    break
                if found.st_size > offset:
                    data = await asyncio.to_thread(os.pread, file, min(found.st_size - offset, 256 * 1024), offset)
                    offset += len(data)
                    await send({"type": "http.response.body", "body": data, "more_body": True})
                    self.traffic.sent(len(data))
                elif found.st_nlink == 0:
                    break
                else:
                    await asyncio.wait({leaving}, timeout=self._settings.follow_s)
            await send({"type": "http.response.body", "body": b""})
        finally:
            leaving.cancel()
            os.close(file)
        return None

    async def _list(
        self, query: Mapping[str, list[str]], headers: Mapping[str, str], method: str, send: Send
    ) -> Response | None:
        """The files whose paths begin with a prefix, as JSON or, streamed, as JSON Lines."""
        prefix = query.get("prefix", [""])[0]
        wanted = weights(headers.get("accept"))
        lines = any(wanted.get(kind, 0) > 0 for kind in ("application/jsonl", "application/x-ndjson"))
        media_type = "application/jsonl" if lines else "application/json"
        await send({"type": "http.response.start", "status": 200, "headers": _raw({"Content-Type": media_type})})
        found = self._directory.walk(prefix)
        first = True
        while method == "GET" and (some := await asyncio.to_thread(_some_entries, found)):
            text = (b"" if lines else b"[" if first else b",") + (b"\n" if lines else b",").join(some)
            first = False
            await send({"type": "http.response.body", "body": text + (b"\n" if lines else b""), "more_body": True})
        end = b"" if lines or method == "HEAD" else b"[]" if first else b"]"
        await send({"type": "http.response.body", "body": end})
        return None


class Body:
    """What of a representation is sent: all of it, one part, or several (multipart/byteranges, RFC 9110 §14.6)."""

    def __init__(self, shown: Representation, wanted: list[Span] | None) -> None:
        self.status = 200 if wanted is None else 206
        self._spans = [Span(0, shown.size)] if wanted is None else wanted
        self._heads: list[bytes] = []
        self._end = b""
        self.headers = {"Content-Type": shown.media_type}
        if len(self._spans) == 1:
            length = self._spans[0].count
            if wanted is not None:
                self.headers["Content-Range"] = self._spans[0].content_range(shown.size)
        else:
            boundary = secrets.token_hex(16)
            for number, span in enumerate(self._spans):
                begin = "" if number == 0 else "\r\n"
                about = f"Content-Type: {shown.media_type}\r\nContent-Range: {span.content_range(shown.size)}"
                self._heads.append(f"{begin}--{boundary}\r\n{about}\r\n\r\n".encode())
            self._end = f"\r\n--{boundary}--\r\n".encode()
            self.headers["Content-Type"] = f"multipart/byteranges; boundary={boundary}"
            length = sum(span.count for span in self._spans) + sum(map(len, self._heads)) + len(self._end)
        self.headers["Content-Length"] = str(length)

    def parts(self) -> Iterator[bytes | Span]:
        if not self._heads:
            yield self._spans[0]
            return
        for head, span in zip(self._heads, self._spans, strict=True):
            yield head
            yield span
        yield self._end


def read_headers(scope: Scope) -> dict[str, str]:
    """The request's headers by name, in lower case; what is repeated is joined (RFC 9110 §5.3)."""
    found: dict[str, str] = {}
    for name, value in scope["headers"]:
        key, text = name.decode("latin-1"), value.decode("latin-1")
        found[key] = f"{found[key]}, {text}" if key in found else text
    return found


def accepted_codings(header: str | None) -> list[str]:
    """The content codings of ours that an Accept-Encoding (RFC 9110 §12.5.3) wants no less than the plain file, the
    most wanted first.
    """
    if not header:
        return []
    wanted = weights(header)
    anything, plain = wanted.get("*", 0.0), wanted.get("identity", 0.0)
    taken = {coding: wanted.get(coding, anything) for coding in CODINGS}
    return sorted((c for c, weight in taken.items() if weight > 0 and weight >= plain), key=lambda c: -taken[c])


def _some_entries(found: Iterator[tuple[str, os.stat_result]]) -> list[bytes]:
    return [
        to_json(
            {
                "path": path,
                "size": entry.st_size,
                "modified": rfc3339(entry.st_mtime_ns // 1_000_000),
                "etag": Validators.of(entry).etag,
            }
        )
        for path, entry in islice(found, 500)
    ]


def _raw(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
