"""The file tier: `/files/…`, and `/stream/file`, which sends the same. An ASGI app of its own, beside FastAPI's.

A request goes: path → descriptor (confined_fs.py) → validators and preconditions (conditions.py) → ranges (ranges.py)
→ headers (representations.py) → bytes (sending.py). The descriptor is opened once and passed on, so what was checked is
what is sent.
"""

import asyncio
import math
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import islice

import structlog
from pydantic_core import to_json
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from millstream.apikeys import Keys, Principal
from millstream.confined_fs import NotServed, Opened, ServedDirectory, without_dots
from millstream.protocol.errors import Problem
from millstream.protocol.events import rfc3339
from millstream_api.files.conditions import State, Validators, evaluate_preconditions, range_applies
from millstream_api.files.digests import Digests, field, wants_sha256
from millstream_api.files.ranges import Unsatisfiable, spans
from millstream_api.files.representations import (
    CODINGS,
    Representation,
    accepted_codings,
    content_type,
    representation,
    restrictions,
    supersedes,
)
from millstream_api.files.requests import Refused, Request, check_room, read_headers, read_path, read_query
from millstream_api.files.sending import Traffic, send_answer, while_connected
from millstream_api.files.threads import Threads, close, finished
from millstream_api.files.uploads import Uploads
from millstream_api.negotiation import most_wanted
from millstream_api.problems import plain_problem, problem_response
from millstream_api.settings import ApiSettings
from millstream_api.wire.answers import Answer
from millstream_api.wire.backpressure import wait_for_disconnect
from millstream_api.wire.connection import ClientGone, connection_of
from millstream_api.wire.pagecache import FileTruncated

log = structlog.get_logger("millstream.api")

PREFIX = "/files/"
STREAM = "/stream/file"
SETTLE_NS = 20_000_000  # two changes closer together than this may leave the same timestamp
LISTINGS = ("application/json", "application/jsonl", "application/x-ndjson")


class Files:
    """The app. It counts in `traffic`; when `draining` is set, responses that follow a file end."""

    def __init__(
        self,
        settings: ApiSettings,
        keys: Keys,
        directory: ServedDirectory,
        uploads: Uploads,
        traffic: Traffic,
        draining: asyncio.Event,
    ) -> None:
        self._settings = settings
        self._keys = keys
        self._directory = directory
        self._digests = Digests(settings.digest_threads)
        self._uploads = uploads
        self._listings = 0  # open now
        self._listing = Threads("listing", settings.listing_threads)
        self.traffic = traffic
        self._draining = draining
        self._start_separately = bool(settings.cors_origins)  # CORSMiddleware adds its headers to the start

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (connection := connection_of(scope)) is not None:
            connection.timed = True
        path, most = scope["path"], self._settings.field_bytes
        try:
            request = Request(scope, receive, send, read_query(scope, most), read_headers(scope, most))
            response = await self._answer(request)
        except Problem as problem:
            response = problem_response(problem, path)
        except Refused as refused:
            response = plain_problem(refused.status, refused.title, path, str(refused), refused.headers)
        except NotServed:
            response = plain_problem(404, "Not Found", path)
        except Unsatisfiable as error:
            response = plain_problem(
                416, "Range Not Satisfiable", path, headers={"Content-Range": f"bytes */{error.args[0]}"}
            )
        except (ClientGone, FileTruncated) as error:
            log.info("a stream ended early", path=path, reason=str(error))
            if connection is not None:
                connection.close()
            return
        if response is not None:
            with suppress(ClientGone):
                await response(scope, receive, send)

    async def _answer(self, request: Request) -> Response | None:
        """Send the response, or return one that is still to be sent. Raises Problem, Refused, NotServed,
        Unsatisfiable, ClientGone, FileTruncated.
        """
        who = self._keys.authenticate(request.headers.get("authorization"))
        method, path = request.scope["method"], request.scope["path"]
        legacy = path == STREAM
        asked = request.query.get("path", ["large_file.txt"])[0] if legacy else read_path(request.scope)[len(PREFIX) :]
        name = without_dots(asked)
        reading = method in ("GET", "HEAD")
        if not reading and (legacy or not name or method not in ("PUT", "DELETE")):
            allowed = "GET, HEAD" if legacy or not name else "GET, HEAD, PUT, DELETE"
            return plain_problem(405, "Method Not Allowed", path, headers={"Allow": allowed})
        who.require("files:read" if reading else "files:write")
        if method == "PUT":
            return await self._uploads.put(name, request.headers, request.receive)
        if method == "DELETE":
            return await self._uploads.delete(name, request.headers)
        if not name and not legacy:
            return await self._list(request)
        check_room("streams", self.traffic.open, self._settings.streams)
        self.traffic.open += 1
        try:
            if request.query and request.query.get("follow", [""])[0].lower() in ("true", "1"):
                return await self._follow(name, request, who)
            return await self._get(name, request)
        finally:
            self.traffic.open -= 1

    async def _get(self, name: str, request: Request) -> Response | None:
        opened, coding = await self._open(name), None
        try:
            # Clients that ask for ranges want those of the file, even where they say that they take a coding.
            if "range" not in request.headers and (codings := accepted_codings(request.headers.get("accept-encoding"))):
                opened, coding = await self._precompressed(name, opened, codings)
            # Last-Modified is never later than Date (RFC 9110 §8.8.2.1). Preconditions use the real time.
            modified = min(opened.found.st_mtime_ns // 1_000_000_000, int(time.time()))
            charset, state = self._settings.text_charset, State.of(opened.found)
            shown = representation(name.rpartition("/")[2], charset, coding, state, modified)
            return await self._send(opened.file, state, shown, request)
        finally:
            close(opened.file, opened.found.st_size)

    async def _send(self, file: int, state: State, shown: Representation, request: Request) -> Response | None:
        method, headers = request.scope["method"], request.headers
        status = evaluate_preconditions(method, headers, shown.validators)
        if status == 412:
            return plain_problem(412, "Precondition Failed", request.scope["path"])
        answer = shown.unchanged if status == 304 else self._wanted(shown, headers, method)
        if answer.status != 304 and wants_sha256(headers.get("want-repr-digest")):
            digest = await while_connected(request.receive, self._digests.sha256(file, state))
            if digest is not None:
                answer = answer._replace(head=answer.head + b"repr-digest: %b\r\n" % field(digest).encode())
        self.traffic.streams += bool(answer.parts)
        await send_answer(
            request.scope,
            request.receive,
            request.send,
            answer,
            file,
            self.traffic,
            stall_s=self._settings.send_timeout_s,
            start_separately=self._start_separately,
        )
        return None

    def _wanted(self, shown: Representation, headers: Mapping[str, str], method: str) -> Answer:
        """The whole file, or the ranges that the request asks for. Raises Unsatisfiable, with the size."""
        if method == "HEAD":
            return shown.described
        if not range_applies(headers.get("if-range"), shown.validators, time.time()):
            return shown.whole
        try:
            wanted = spans(headers.get("range"), shown.size, most=self._settings.ranges)
        except Unsatisfiable:
            raise Unsatisfiable(shown.size) from None
        if wanted is None:
            return shown.whole
        return shown.one(wanted[0]) if len(wanted) == 1 else shown.several(wanted)

    async def _precompressed(self, name: str, plain: Opened, codings: list[str]) -> tuple[Opened, str | None]:
        """The file's compressed sibling and its coding, or the plain file when there is none that is up to date. The
        descriptor that is not returned is closed.
        """
        for coding in codings:
            try:
                compressed = await self._open(name + CODINGS[coding])
            except NotServed:
                continue
            better = supersedes(compressed.found, plain.found)
            os.close(plain.file if better else compressed.file)
            if better:
                return compressed, coding
        return plain, None

    async def _open(self, name: str) -> Opened:
        """Open a file: at once when that needs no disk, else in a thread."""
        opened = self._directory.open_cached(name)
        if opened is None:
            opening = asyncio.to_thread(self._directory.open, name)
            opened = await finished(opening, undo=lambda late: os.close(late.file))
        if time.time_ns() - opened.found.st_ctime_ns < SETTLE_NS:
            try:
                await asyncio.sleep(SETTLE_NS / 1e9)
            except asyncio.CancelledError:
                os.close(opened.file)
                raise
            return opened._replace(found=os.fstat(opened.file))
        return opened

    async def _follow(self, name: str, request: Request, who: Principal) -> Response | None:
        """Like tail -f: send the file from an offset on, as soon as it is that long, and then what is appended, until
        the client says that it has heard enough, its key is revoked, the file is deleted, or the server drains. After
        `heartbeat` seconds without news, where a line has ended, a blank one. Raises FileTruncated.
        """
        offset = _number(request, "offset", 0)
        heartbeat_s = _number(request, "heartbeat", 0) or math.inf
        file, found = await self._open(name)
        self.traffic.streams += 1
        send, connection = request.send, connection_of(request.scope)
        disconnected = asyncio.ensure_future(wait_for_disconnect(request.receive))
        try:
            last = name.rpartition("/")[2]
            headers = {
                "Content-Type": content_type(last, self._settings.text_charset),
                "Cache-Control": "no-store",
                "X-Accel-Buffering": "no",
                **restrictions(last),
            }
            await send({"type": "http.response.start", "status": 200, "headers": raw(headers)})
            at_line_end, sent_at = True, time.monotonic()
            while request.scope["method"] == "GET" and not (
                self._draining.is_set()
                or (connection is not None and connection.is_closing())
                or not self._keys.is_still_valid(who)
            ):
                seen, found = found.st_size, os.fstat(file)
                if found.st_size < seen:
                    raise FileTruncated
                if found.st_size > offset:
                    data = await asyncio.to_thread(os.pread, file, min(found.st_size - offset, 256 * 1024), offset)
                    offset += len(data)
                    await send({"type": "http.response.body", "body": data, "more_body": True})
                    self.traffic.sent(len(data))
                    at_line_end, sent_at = data.endswith(b"\n"), time.monotonic()
                elif found.st_nlink == 0 or disconnected.done():
                    break
                elif at_line_end and time.monotonic() - sent_at >= heartbeat_s:
                    await send({"type": "http.response.body", "body": b"\n", "more_body": True})
                    sent_at = time.monotonic()
                else:
                    await asyncio.wait({disconnected}, timeout=self._settings.follow_s)
            await send({"type": "http.response.body", "body": b""})
        finally:
            disconnected.cancel()
            close(file, found.st_size)
        return None

    async def _list(self, request: Request) -> Response | None:
        """The files whose paths begin with a prefix, as JSON or as JSON Lines. Raises Refused, ClientGone."""
        send, method = request.send, request.scope["method"]
        prefix = request.query.get("prefix", [""])[0]
        kind = most_wanted(request.headers.get("accept"), LISTINGS) or LISTINGS[0]
        lines = kind != LISTINGS[0]
        check_room("listings", self._listings, self._settings.listings)
        self._listings += 1
        try:
            headers = {"Content-Type": kind, "Vary": "Accept", "X-Accel-Buffering": "no"}
            await send({"type": "http.response.start", "status": 200, "headers": raw(headers)})
            found = self._directory.walk(prefix)
            first = True
            while method == "GET" and (entries := await self._listing.run(_next_entries, found)):
                text = (b"" if lines else b"[" if first else b",") + (b"\n" if lines else b",").join(entries)
                first = False
                await send({"type": "http.response.body", "body": text + (b"\n" if lines else b""), "more_body": True})
            end = b"" if lines or method == "HEAD" else b"[]" if first else b"]"
            await send({"type": "http.response.body", "body": end})
        finally:
            self._listings -= 1
        return None


def _number(request: Request, name: str, default: int) -> int:
    """A whole number in the query. Raises Problem."""
    text = request.query.get(name, [str(default)])[0]
    if not re.fullmatch(r"[0-9]{1,18}", text, re.ASCII):
        wrong = "it must be a whole number, 0 or more"
        raise Problem("invalid_params", f"{name}: {wrong}.", [{"pointer": f"/{name}", "detail": wrong}])
    return int(text)


def raw(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    """Headers as ASGI pairs."""
    return [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]


def _next_entries(found: Iterator[tuple[str, os.stat_result]]) -> list[bytes]:
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
