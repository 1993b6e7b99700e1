"""Resumable uploads: the tus protocol 1.0.0 at `/uploads`, with its extensions creation, creation-with-upload,
checksum, expiration and termination. (Why tus and not the IETF draft: docs/decisions/0009.)

An upload is two hidden files below the data directory: `.uploads/<id>` holds the bytes received so far,
`.uploads/<id>.json` the target path and length. So it survives a restart, and any API process on the same directory can
continue it. When it is complete, it is renamed to its path.
"""

import fcntl
import hashlib
import os
import re
import secrets
import time
from base64 import b64decode
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path

from pydantic_core import from_json, to_json
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from millstream.apikeys import Keys
from millstream.confined_fs import NotServed, ServedDirectory, parts, without_dots
from millstream.protocol.errors import Problem
from millstream_api.files.requests import Refused, content_length, read_headers
from millstream_api.files.uploads import (
    DiskFull,
    Temporary,
    UploadAborted,
    Uploads,
    body_blocks,
    disk_errors,
    locked,
    validators_of,
    write_all,
)
from millstream_api.problems import plain_problem, problem_response
from millstream_api.settings import ApiSettings
from millstream_api.wire.connection import ClientGone

PREFIX = "/uploads"
VERSION = {"Tus-Resumable": "1.0.0"}
EXTENSIONS = "creation,creation-with-upload,checksum,expiration,termination"
CHECKSUMS = {"sha1", "sha256", "sha512"}
CONTENT_TYPE = "application/offset+octet-stream"
EXPIRE_INTERVAL_S = 60  # between two looks for expired uploads: each reads all there are


@dataclass(frozen=True, slots=True)
class Upload:
    """An upload in progress, to become the file at `path`. `length` in bytes; `expires` in Unix seconds; `metadata` as
    the client sent it.
    """

    id: str
    path: str
    length: int
    owner: str
    expires: int
    metadata: str = ""


class Tus:
    """The ASGI app at `/uploads`."""

    def __init__(self, settings: ApiSettings, keys: Keys, directory: ServedDirectory, uploads: Uploads) -> None:
        self._settings = settings
        self._keys = keys
        self._directory = directory
        self._home = directory.path / ".uploads"
        self._receiving = uploads.receiving
        self._run = uploads.threads.run
        self._expire_after = 0.0  # in Unix seconds

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
        upload = await self._run(self._load, id, who.owner)
        match method:
            case "HEAD":
                offset = await self._run(self._offset, upload)
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
                await self._run(self._remove, upload)
                return Response(status_code=204)
            case _:
                return plain_problem(
                    405, "Method Not Allowed", path, headers={"Allow": "POST, HEAD, PATCH, DELETE, OPTIONS"}
                )

    async def _create(self, headers: Mapping[str, str], owner: str, receive: Receive) -> Response:
        length = _number(headers, "upload-length")
        if length > self._settings.upload_bytes:
            raise Refused(413, "Content Too Large", f"A file may have at most {self._settings.upload_bytes} bytes.")
        metadata = headers.get("upload-metadata", "")
        path = without_dots(_metadata(metadata).get("path", ""))
        try:
            parts(path)
        except NotServed:
            raise Refused(400, "Bad Request", "Upload-Metadata must name the file: path <base64 of a path>.") from None
        await self._run(self._expire)
        expires = int(time.time() + self._settings.upload_life_s)
        upload = Upload(secrets.token_hex(16), path, length, owner, expires, metadata)
        with disk_errors():
            await self._run(self._begin, upload)
        offset = 0
        if length == 0 or headers.get("content-type", "").lower() == CONTENT_TYPE:
            try:
                with self._receiving():
                    offset = await self._append(upload, headers, receive, at=0)
            except BaseException:  # the client will never learn its URL
                await self._run(self._remove, upload)
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
        checksum, body = _checksum(headers.get("upload-checksum")), body_blocks(receive, content_length(headers))
        flags = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC
        try:
            file = await self._run(os.open, self._data(upload), flags, undo=os.close)
        except FileNotFoundError:  # complete, and published
            if at == upload.length and not await anext(body, b""):
                return at
            raise Refused(409, "Conflict", f"The upload is complete, at {upload.length}.") from None
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Refused(423, "Locked", "Another request writes to this upload.") from None
            offset = os.fstat(file).st_size
            if offset != at:
                raise Refused(409, "Conflict", f"The upload is at {offset}, not {at}.")
            whole = False
            try:
                async for block in body:
                    if offset + len(block) > upload.length:
                        raise Refused(
                            413, "Content Too Large", f"The upload is larger than the {upload.length} bytes announced."
                        )
                    with disk_errors():
                        await self._run(_write, file, block, checksum)
                    offset += len(block)
                whole = True
            finally:
                if checksum and not (whole and checksum[0].digest() == checksum[1]):
                    await self._run(os.ftruncate, file, at)
            if checksum and checksum[0].digest() != checksum[1]:
                raise Refused(460, "Checksum Mismatch", "The content does not match the announced checksum.")
            if offset == upload.length:
                with disk_errors():
                    await self._run(self._publish, upload, file)
            return offset
        finally:
            os.close(file)

    def _progress(self, upload: Upload, offset: int) -> dict[str, str]:
        expires = format_datetime(datetime.fromtimestamp(upload.expires, UTC), usegmt=True)
        return {"Upload-Offset": str(offset), "Upload-Expires": expires}

    # Blocking: call these in a thread.

    def _data(self, upload: Upload) -> Path:
        return self._home / upload.id

    def _begin(self, upload: Upload) -> None:
        self._home.mkdir(exist_ok=True)
        self._data(upload).touch(0o644, exist_ok=False)
        (self._home / f"{upload.id}.json").write_bytes(to_json(asdict(upload)))

    def _load(self, id: str, owner: str) -> Upload:
        """Raises NotServed when the upload does not exist, has expired, or belongs to another owner."""
        if not re.fullmatch(r"[0-9a-f]{32}", id):
            raise NotServed(id)
        try:
            upload = Upload(**from_json((self._home / f"{id}.json").read_bytes()))
        except OSError:
            raise NotServed(id) from None
        if upload.owner != owner or upload.expires < time.time():
            raise NotServed(id)
        return upload

    def _offset(self, upload: Upload) -> int:
        try:
            return self._data(upload).stat().st_size
        except FileNotFoundError:
            return upload.length  # complete, and published

    def _publish(self, upload: Upload, file: int) -> None:
        os.fsync(file)
        temporary = Temporary(self._directory, upload.path)  # keeps the target's directory from being removed
        try:
            with locked(temporary.directory):
                validators_of(temporary.directory, temporary.target)  # raises NotServed if it may not be replaced
                os.rename(self._data(upload), temporary.target, dst_dir_fd=temporary.directory)
                os.fsync(temporary.directory)
        finally:
            temporary.discard()

    def _remove(self, upload: Upload) -> None:
        for path in (self._data(upload), self._home / f"{upload.id}.json"):
            path.unlink(missing_ok=True)

    def _expire(self) -> None:
        """Remove the expired uploads, unless that was done a moment ago."""
        if time.time() < self._expire_after or not self._home.is_dir():
            return
        self._expire_after = time.time() + EXPIRE_INTERVAL_S
        for info in self._home.glob("*.json"):
            try:
                upload = Upload(**from_json(info.read_bytes()))
            except (OSError, ValueError, TypeError):
                continue
            if upload.expires < time.time():
                self._remove(upload)


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
