"""Resumable uploads: the tus protocol 1.0.0 at `/uploads`, with its extensions creation, creation-with-upload,
checksum, expiration and termination. (Why tus and not the IETF draft: docs/decisions/0009.)

What an upload is on the disk: unfinished.py. A request to an upload ends an earlier one to the same, which may wait for
a client that is gone; in another process it is refused, and that one ends soon.
"""

import asyncio
import hashlib
import os
import re
import secrets
import time
from base64 import b64decode
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from millstream.apikeys import Keys
from millstream.confined_fs import NotServed, ServedDirectory, parts, without_dots
from millstream.protocol.errors import Problem
from millstream_api.files.requests import Refused, content_length, read_headers
from millstream_api.files.threads import Arguments, T
from millstream_api.files.unfinished import UnfinishedUploads, Upload
from millstream_api.files.uploads import DiskFull, UploadAborted, Uploads, body_blocks, disk_errors, write_all
from millstream_api.problems import plain_problem, problem_response
from millstream_api.settings import ApiSettings
from millstream_api.wire.connection import ClientGone

PREFIX = "/uploads"
VERSION = {"Tus-Resumable": "1.0.0"}
EXTENSIONS = "creation,creation-with-upload,checksum,expiration,termination"
CHECKSUMS = {"sha1", "sha256", "sha512"}
CONTENT_TYPE = "application/offset+octet-stream"
SWEEP_INTERVAL_S = 60  # between two looks for expired uploads: each reads all that are unfinished
WANTED_INTERVAL_S = 0.5  # between two looks whether another process wants to go on with an upload
NOT_SUPPORTED = {"upload-concat": "concatenation", "upload-defer-length": "creation-defer-length"}


@dataclass(slots=True)
class Turn:
    """A request's turn at an upload. `over`: another one came, and its client is to be waited for no longer."""

    task: "asyncio.Task[Any]"
    left: asyncio.Event = field(default_factory=asyncio.Event)
    receiving: bool = False
    over: bool = False

    def end(self) -> None:
        self.over = True
        if self.receiving:
            self.task.cancel()

    def until_over(self, receive: Receive) -> Receive:
        """Receive from a client that counts as gone when the turn is over."""

        async def received() -> Message:
            if self.over:
                return {"type": "http.disconnect"}
            self.receiving = True
            try:
                return await receive()
            except asyncio.CancelledError:
                if not self.over or self.task.uncancel():
                    raise
                return {"type": "http.disconnect"}
            finally:
                self.receiving = False

        return received


class Tus:
    """The ASGI app at `/uploads`."""

    def __init__(self, settings: ApiSettings, keys: Keys, directory: ServedDirectory, uploads: Uploads) -> None:
        self._settings = settings
        self._keys = keys
        self._disk = UnfinishedUploads(directory, settings.upload_life_s)
        self._receiving = uploads.receiving
        self._threads = uploads.threads
        self._turns: dict[str, Turn] = {}  # by upload
        self._lengths: dict[str, dict[str, int]] = {}  # of unfinished uploads, by owner and id
        self.sweep_interval_s = min(SWEEP_INTERVAL_S, settings.upload_life_s)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        try:
            headers = read_headers(scope, self._settings.field_bytes)
            method: str = headers.get("x-http-method-override") or scope["method"]
            response = await self._answer(method, path, headers, receive)
        except Problem as problem:
            response = problem_response(problem, path)
        except NotServed:
            response = plain_problem(404, "Not Found", path)
        except DiskFull:
            response = plain_problem(
                507, "Insufficient Storage", path, "There is not enough space; what was received before is kept."
            )
        except Refused as refused:
            response = plain_problem(refused.status, refused.title, path, str(refused), refused.headers)
        except UploadAborted as error:
            response = plain_problem(400, "Bad Request", path, str(error))
        response.headers.update(VERSION)
        with suppress(ClientGone):
            await response(scope, receive, send)

    async def _answer(self, method: str, path: str, headers: Mapping[str, str], receive: Receive) -> Response:
        if method == "OPTIONS":
            limit = str(self._settings.upload_bytes)
            server = {"Tus-Version": "1.0.0", "Tus-Extension": EXTENSIONS, "Tus-Max-Size": limit}
            return Response(status_code=204, headers={**server, "Tus-Checksum-Algorithm": ",".join(sorted(CHECKSUMS))})
        who = self._keys.authenticate(headers.get("authorization"))
        who.require("files:write")
        if headers.get("tus-resumable") != "1.0.0":
            raise Refused(412, "Precondition Failed", "Send Tus-Resumable: 1.0.0.", {"Tus-Version": "1.0.0"})
        id = path.removeprefix(PREFIX).strip("/")
        if method == "POST" and not id:
            return await self._create(headers, who.owner, receive)
        upload = await self._run(self._disk.load, id, who.owner)
        async with self._turn(upload) as turn:
            try:
                return await self._answer_about(upload, method, path, headers, turn.until_over(receive))
            except UploadAborted:
                if turn.over:
                    raise Refused(423, "Locked", "Another request to this upload came.") from None
                raise

    async def _answer_about(
        self, upload: Upload, method: str, path: str, headers: Mapping[str, str], receive: Receive
    ) -> Response:
        match method:
            case "HEAD":
                offset = await self._run(self._disk.offset, upload)
                about = {
                    "Upload-Length": str(upload.length),
                    "Upload-Metadata": upload.metadata,
                    "Cache-Control": "no-store",
                }
                return Response(status_code=200, headers={**about, **self._progress(upload, offset)})
            case "PATCH":
                with self._receiving():
                    offset = await self._append(upload, headers, receive)
                return Response(status_code=204, headers=self._progress(upload, offset))
            case "DELETE":
                await self._remove(upload)
                return Response(status_code=204)
            case _:
                return plain_problem(
                    405, "Method Not Allowed", path, headers={"Allow": "POST, HEAD, PATCH, DELETE, OPTIONS"}
                )

    async def _run(
        self,
        function: Callable[[*Arguments], T],
        *arguments: *Arguments,
        undo: Callable[[T], object] = lambda result: None,
    ) -> T:
        """Call a function in a thread. Raises DiskFull, NotServed, Refused where the disk refuses."""
        with disk_errors():
            return await self._threads.run(function, *arguments, undo=undo)

    @asynccontextmanager
    async def _turn(self, upload: Upload) -> AsyncIterator[Turn]:
        """Be the only request to this upload in this process."""
        while earlier := self._turns.get(upload.id):
            earlier.end()
            await earlier.left.wait()
        task = asyncio.current_task()
        assert task is not None
        turn = self._turns[upload.id] = Turn(task)
        watching = asyncio.create_task(self._end_when_wanted(turn, upload))
        try:
            yield turn
        finally:
            watching.cancel()
            del self._turns[upload.id]
            turn.left.set()

    async def _end_when_wanted(self, turn: Turn, upload: Upload) -> None:
        """Another process has no other way to say so."""
        while not turn.over:
            await asyncio.sleep(WANTED_INTERVAL_S)
            if await self._run(self._disk.is_wanted, upload):
                turn.end()

    async def sweep(self) -> None:
        """Remove what has expired, publish what is complete, and count what is unfinished: other processes share it."""
        before = {id for mine in self._lengths.values() for id in mine}
        found = await self._run(self._disk.sweep)
        for owner, mine in self._lengths.items():  # those that began meanwhile
            found[owner].update((id, length) for id, length in mine.items() if id not in before)
        self._lengths = found

    def _check_owner_has_room(self, owner: str, length: int) -> None:
        settings, mine = self._settings, self._lengths.get(owner, {})
        if len(mine) >= settings.owner_uploads:
            detail = f"You have {len(mine)} unfinished uploads (MILLSTREAM_OWNER_UPLOADS): complete or delete some."
            raise Refused(429, "Too Many Requests", detail)
        if sum(mine.values()) + length > settings.owner_upload_bytes:
            most = settings.owner_upload_bytes
            detail = f"Your unfinished uploads may have {most} bytes together (MILLSTREAM_OWNER_UPLOAD_BYTES)."
            raise Refused(507, "Insufficient Storage", detail)

    def _is_over(self, upload: Upload) -> None:
        self._lengths.get(upload.owner, {}).pop(upload.id, None)

    async def _remove(self, upload: Upload) -> None:
        await self._run(self._disk.remove, upload)
        self._is_over(upload)

    async def _create(self, headers: Mapping[str, str], owner: str, receive: Receive) -> Response:
        for name, extension in NOT_SUPPORTED.items():
            if name in headers:
                detail = f"{name.title()} belongs to {extension}, which is not supported; Tus-Extension lists what is."
                raise Refused(400, "Bad Request", detail, {"Tus-Extension": EXTENSIONS})
        length = _number(headers, "upload-length")
        if length > self._settings.upload_bytes:
            raise Refused(413, "Content Too Large", f"A file may have at most {self._settings.upload_bytes} bytes.")
        metadata = headers.get("upload-metadata", "")
        path = without_dots(_metadata(metadata).get("path", ""))
        try:
            parts(path)
        except NotServed:
            raise Refused(400, "Bad Request", "Upload-Metadata must name the file: path <base64 of a path>.") from None
        self._check_owner_has_room(owner, length)
        expires = int(time.time() + self._settings.upload_life_s)
        upload = Upload(secrets.token_hex(16), path, length, owner, expires, metadata)
        self._lengths.setdefault(owner, {})[upload.id] = length
        try:
            await self._run(self._disk.begin, upload)
        except BaseException:
            self._is_over(upload)
            raise
        offset = 0
        if length == 0 or headers.get("content-type", "").lower() == CONTENT_TYPE:
            try:
                with self._receiving():
                    offset = await self._append(upload, headers, receive, at=0)
            except BaseException:  # the client will never learn its URL
                await self._remove(upload)
                raise
        location = {"Location": f"{PREFIX}/{upload.id}"}
        return Response(status_code=201, headers={**location, **self._progress(upload, offset)})

    async def _append(self, upload: Upload, headers: Mapping[str, str], receive: Receive, at: int | None = None) -> int:
        """Append the body to the upload; returns the new offset. With its last byte the file is published. Raises
        UploadAborted, Refused, NotServed, DiskFull.
        """
        if at is None:
            if headers.get("content-type", "").lower() != CONTENT_TYPE:
                raise Refused(415, "Unsupported Media Type", f"Send Content-Type: {CONTENT_TYPE}.")
            at = _number(headers, "upload-offset")
        announced = content_length(headers)
        checksum, body = _checksum(headers.get("upload-checksum")), body_blocks(receive, announced)
        file = await self._run(self._disk.open, upload, undo=close)
        if file is None:
            if at == upload.length and not await anext(body, b""):
                return at
            raise Refused(409, "Conflict", f"The upload is complete, at {upload.length}.")
        try:
            offset = os.fstat(file).st_size
            if offset != at:
                raise Refused(409, "Conflict", f"The upload is at {offset}, not {at}.")
            check_length(upload, offset + (announced or 0))
            if checksum:
                await self._run(self._disk.mark_unchecked, upload, at)
            async for block in body:
                check_length(upload, offset + len(block))
                await self._run(_write, file, block, checksum)
                offset += len(block)
            if checksum:
                if checksum[0].digest() != checksum[1]:
                    raise Refused(460, "Checksum Mismatch", "The content does not match the announced checksum.")
                await self._run(self._disk.mark_checked, upload)
            if offset == upload.length:
                await self._run(self._disk.publish, upload, file)
                self._is_over(upload)
            return offset
        finally:
            os.close(file)

    def _progress(self, upload: Upload, offset: int) -> dict[str, str]:
        expires = format_datetime(datetime.fromtimestamp(upload.expires, UTC), usegmt=True)
        return {"Upload-Offset": str(offset), "Upload-Expires": expires}


def check_length(upload: Upload, size: int) -> None:
    if size > upload.length:
        raise Refused(413, "Content Too Large", f"The upload is larger than the {upload.length} bytes announced.")


def close(file: int | None) -> None:
    if file is not None:
        os.close(file)


def _write(file: int, block: bytes, checksum: "tuple[hashlib._Hash, bytes] | None") -> None:
    write_all(file, block)
    if checksum:
        checksum[0].update(block)


def _number(headers: Mapping[str, str], name: str) -> int:
    value = headers.get(name, "")
    if not re.fullmatch(r"\d{1,18}", value, re.ASCII):
        raise Refused(400, "Bad Request", f"{name.title()} must be a number of bytes.")
    return int(value)


def _metadata(header: str) -> dict[str, str]:
    """Parse Upload-Metadata: `key base64, key base64`."""
    found = {}
    for item in header.split(","):
        key, _, value = item.strip().partition(" ")
        try:
            found[key] = b64decode(value, validate=True).decode()
        except ValueError:
            raise Refused(400, "Bad Request", f"Upload-Metadata: {key[:40]} must be base64 of UTF-8.") from None
    return found


def _checksum(header: str | None) -> "tuple[hashlib._Hash, bytes] | None":
    if header is None:
        return None
    name, _, value = header.partition(" ")
    if name not in CHECKSUMS:
        raise Refused(400, "Bad Request", f"Upload-Checksum: the algorithms are {', '.join(sorted(CHECKSUMS))}.")
    try:
        return hashlib.new(name), b64decode(value, validate=True)
    except ValueError:
        raise Refused(400, "Bad Request", "Upload-Checksum must contain base64.") from None
