"""The file tier: `/files/…`, and `/stream/file`, which is the same stream. An ASGI app of its own, beside FastAPI's.

A request goes: path → descriptor (shared/beneath.py) → validators and conditions (conditions.py) → ranges (ranges.py)
→ headers → bytes (sending.py). The descriptor is opened once and passed on, so what was checked is what is sent.
"""

import asyncio
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import islice
from urllib.parse import parse_qs, unquote

import structlog
from pydantic_core import to_json
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api.conditions import State, Validators, range_applies, refused
from api.digests import Digests, field, wants_sha256
from api.negotiation import most_wanted, weights
from api.problems import plain_problem, problem_response
from api.ranges import Unsatisfiable, spans
from api.representations import Answer, Representation, media_type, raw, representation
from api.sending import Cut, Traffic, connection, patient, send_part, until_left
from api.settings import ApiSettings
from api.uploads import Uploads
from api.zerocopy import ClientGone
from shared.apikeys import Keys
from shared.beneath import Directory, NotServed, Opened
from shared.errors import Problem
from shared.events import rfc3339

log = structlog.get_logger("millstream.api")

PREFIX = "/files/"
STREAM = "/stream/file"
SETTLE_NS = 20_000_000  # a change within this time of another one may leave the same time stamp behind
DATE_LAG_S = 2  # the server's Date is that of its last tick, up to 1.1 s ago
CODINGS = {"zstd": ".zst", "br": ".br", "gzip": ".gz"}  # the best first
LISTINGS = ("application/json", "application/jsonl", "application/x-ndjson")


class Files:
    """The app. `traffic` is for the operator; when `draining` is set, nobody follows a file any longer."""

    def __init__(
        self, settings: ApiSettings, keys: Keys, directory: Directory, traffic: Traffic, draining: asyncio.Event
    ) -> None:
        self._settings = settings
        self._keys = keys
        self._directory = directory
        self._digests = Digests()
        self._uploads = Uploads(settings, directory)
        self.traffic = traffic
        self._draining = draining

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = read_headers(scope)
        send = patient(scope, send, self._settings.send_timeout_s)
        method, path = scope["method"], scope["path"]
        query = read_query(scope["query_string"]) if scope["query_string"] else {}
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
        name = query.get("path", ["large_file.txt"])[0] if legacy else read_path(scope).removeprefix(PREFIX)
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
        opened, coding = await self._open_for(name, headers.get("accept-encoding"))
        try:
            # Never told later than Date (RFC 9110 §8.8.2.1); what conditions look at is the true time.
            modified = min(opened.found.st_mtime_ns // 1_000_000_000, int(time.time()) - DATE_LAG_S)
            shown = representation(name.rpartition("/")[2], coding, State.of(opened.found), modified)
            return await self._send(opened.file, shown, headers, scope, receive, send)
        finally:
            os.close(opened.file)

    async def _send(
        self,
        file: int,
        shown: Representation,
        headers: Mapping[str, str],
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> Response | None:
        status = refused(scope["method"], headers, shown.validators)
        if status == 412:
            return plain_problem(412, "Precondition Failed", scope["path"])
        answer = shown.unchanged if status == 304 else self._wanted(shown, headers, scope["method"])
        told = answer.headers
        if answer.parts and wants_sha256(headers.get("want-repr-digest")):
            digest = await self._digests.sha256(file, shown.validators.etag)
            told = [*told, (b"repr-digest", field(digest).encode())]
        await send({"type": "http.response.start", "status": answer.status, "headers": told})
        if not answer.parts or scope["method"] == "HEAD":
            await send({"type": "http.response.body", "body": b""})
            return None
        self.traffic.streams += 1
        for number, part in enumerate(answer.parts, 1):
            more = number < len(answer.parts)
            if isinstance(part, bytes):
                await send({"type": "http.response.body", "body": part, "more_body": more})
            else:
                stall_s = self._settings.send_timeout_s
                await send_part(scope, receive, send, file, part, self.traffic, more=more, stall_s=stall_s)
        return None

    def _wanted(self, shown: Representation, headers: Mapping[str, str], method: str) -> Answer:
        """All of it, or the parts that are asked for. Raises Unsatisfiable, with the size."""
        if method != "GET" or not range_applies(headers.get("if-range"), shown.validators, time.time()):
            return shown.whole
        try:
            wanted = spans(headers.get("range"), shown.size, most=self._settings.ranges)
        except Unsatisfiable:
            raise Unsatisfiable(shown.size) from None
        if wanted is None:
            return shown.whole
        return shown.one(wanted[0]) if len(wanted) == 1 else shown.several(wanted)

    async def _open_for(self, name: str, accepted: str | None) -> tuple[Opened, str | None]:
        """Open the file itself, or a sibling that is compressed already, if the client takes it and it is not older.
        Returns its coding too.
        """
        plain = await self._open(name)
        for coding in accepted_codings(accepted):
            try:
                packed = await self._open(name + CODINGS[coding])
            except NotServed:
                continue
            older = packed.found.st_mtime_ns < plain.found.st_mtime_ns
            os.close(packed.file if older else plain.file)
            if not older:
                return packed, coding
        return plain, None

    async def _open(self, name: str) -> Opened:
        """Open a file: here when the kernel can do so without a disk, else in a thread."""
        opened = self._directory.open_cached(name)
        if opened is None:
            opened = await asyncio.to_thread(self._directory.open, name)
        if time.time_ns() - opened.found.st_ctime_ns < SETTLE_NS:
            await asyncio.sleep(SETTLE_NS / 1e9)
            return opened._replace(found=os.fstat(opened.file))
        return opened

    async def _follow(
        self, name: str, query: Mapping[str, list[str]], scope: Scope, receive: Receive, send: Send
    ) -> Response | None:
        """Like tail -f: from an offset on, once the file has grown so far, and then what is appended, until the client
        leaves, the file is deleted, or the server drains. Raises Cut when the file is smaller than it was.
        """
        try:
            offset = int(query.get("offset", ["0"])[0])
        except ValueError:
            offset = -1
        if offset < 0:
            wrong = "it must be a number of bytes, 0 or more"
            raise Problem("invalid_params", f"offset: {wrong}.", [{"pointer": "/offset", "detail": wrong}])
        file, found = await self._open(name)
        self.traffic.streams += 1
        transport = connection(scope)
        leaving = asyncio.ensure_future(until_left(receive))
        try:
            headers = {
                "Content-Type": media_type(name.rpartition("/")[2]),
                "Cache-Control": "no-store",
                "X-Content-Type-Options": "nosniff",
            }
            await send({"type": "http.response.start", "status": 200, "headers": raw(headers)})
            while scope["method"] == "GET" and not (
                self._draining.is_set() or leaving.done() or (transport and transport.is_closing())
            ):
                seen, found = found.st_size, os.fstat(file)
                if found.st_size < seen:
                    raise Cut
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
        """The files whose paths begin with a prefix, as JSON or as JSON Lines."""
        prefix = query.get("prefix", [""])[0]
        kind = most_wanted(headers.get("accept"), LISTINGS) or LISTINGS[0]
        lines = kind != LISTINGS[0]
        told = raw({"Content-Type": kind, "Vary": "Accept"})
        await send({"type": "http.response.start", "status": 200, "headers": told})
        found = self._directory.walk(prefix)
        first = True
        while method == "GET" and (some := await asyncio.to_thread(_some_entries, found)):
            text = (b"" if lines else b"[" if first else b",") + (b"\n" if lines else b",").join(some)
            first = False
            await send({"type": "http.response.body", "body": text + (b"\n" if lines else b""), "more_body": True})
        end = b"" if lines or method == "HEAD" else b"[]" if first else b"]"
        await send({"type": "http.response.body", "body": end})
        return None


def read_headers(scope: Scope) -> dict[str, str]:
    """The request's headers by name, in lower case; what is repeated is joined (RFC 9110 §5.3)."""
    found: dict[str, str] = {}
    for name, value in scope["headers"]:
        key, text = name.decode("latin-1"), value.decode("latin-1")
        found[key] = f"{found[key]}, {text}" if key in found else text
    return found


def read_path(scope: Scope) -> str:
    """The path, percent-decoded. The server puts U+FFFD for what is not UTF-8: that is NotServed, but for one that the
    client itself wrote.
    """
    path: str = scope["path"]
    if "\N{REPLACEMENT CHARACTER}" not in path:
        return path
    try:
        return unquote(scope["raw_path"].decode(), errors="strict")
    except UnicodeDecodeError:
        raise NotServed(path) from None


def read_query(query: bytes) -> dict[str, list[str]]:
    """The parameters by name. What is not UTF-8 becomes lone surrogates, which no name has that is served."""
    return parse_qs(query.decode(errors="surrogateescape"), errors="surrogateescape")


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
                "etag": Validators.of(State.of(entry)).etag,
            }
        )
        for path, entry in islice(found, 500)
    ]
