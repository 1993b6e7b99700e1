"""Writing files: PUT and DELETE. An upload takes effect completely or not at all. (Resumable uploads: tus.py.)

The body is written to a hidden file in the target's directory, synced, and renamed over the target. So a reader sees
the old file or the new one, and a failed upload leaves nothing. Preconditions are checked again under a lock right
before the rename. Directories are made as needed, and removed when they become empty.
"""

import asyncio
import errno
import fcntl
import hashlib
import os
import secrets
import stat
import time
from base64 import b64decode
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import structlog
from pydantic_core import to_json
from starlette.responses import Response
from starlette.types import Receive

from millstream.confined_fs import Missing, NotServed, ServedDirectory, parts
from millstream.protocol.errors import Problem
from millstream_api.files.conditions import State, Validators, evaluate_preconditions
from millstream_api.files.representations import CODINGS, supersedes
from millstream_api.files.requests import Refused, check_room, content_length
from millstream_api.files.threads import Threads
from millstream_api.problems import plain_problem
from millstream_api.settings import ApiSettings

log = structlog.get_logger("millstream.api")

BLOCK = 1024 * 1024
TEMPORARY = ".upload-"  # prefix of the names of temporary files
ABANDONED_S = 60  # an older temporary file that no process has locked was left behind
ATTEMPTS = 100  # to create a file in a directory before another request removes the directory
ALGORITHMS = {"sha-256": "sha256", "sha-512": "sha512"}  # RFC 9530 §5


class UploadAborted(Exception):
    """The body did not arrive completely: the message says what did."""


class DiskFull(Exception):
    """The disk or a quota is full."""


class TooLarge(Exception):
    """The body is larger than an upload may be."""


@dataclass(slots=True)
class ExpectedDigests:
    """The digests that the client announced, as raw bytes by algorithm."""

    digests: dict[str, bytes]

    @classmethod
    def of(cls, headers: Mapping[str, str]) -> "ExpectedDigests":
        """From Repr-Digest and Content-Digest (RFC 9530). Raises Problem when one is malformed."""
        found: dict[str, bytes] = {}
        for header in ("repr-digest", "content-digest"):
            for item in headers.get(header, "").split(","):
                name, _, value = item.strip().partition("=")
                if name.lower() in ALGORITHMS:
                    try:
                        digest = b64decode(value.partition(";")[0].strip(" :"), validate=True)
                    except ValueError:
                        raise Problem("invalid_request", f"{header}: {name}=:…: must contain base64.") from None
                    if found.setdefault(name.lower(), digest) != digest:
                        raise Problem("invalid_request", f"Repr-Digest and Content-Digest differ in {name}.")
        return cls(found)


class Uploads:
    """PUT and DELETE. Every kind of upload runs in its `threads` and counts in `receiving`."""

    def __init__(self, settings: ApiSettings, directory: ServedDirectory) -> None:
        self._settings = settings
        self._directory = directory
        self._open = 0
        self.threads = Threads("upload", settings.upload_threads)

    @contextmanager
    def receiving(self) -> Iterator[None]:
        """Receive one upload: each may hold a block in memory. Raises Refused when there are as many as may be."""
        check_room("uploads", self._open, self._settings.uploads)
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1

    async def put(self, path: str, headers: Mapping[str, str], receive: Receive) -> Response:
        """Create or replace a file with the request's body: 201 or 204. Raises Problem, Refused, NotServed."""
        parts(path)
        instance = f"/files/{path}"
        if "content-range" in headers:
            return plain_problem(
                400, "Bad Request", instance, "PUT replaces the whole file: Content-Range is not supported."
            )
        if headers.get("content-encoding", "identity").lower() != "identity":
            return plain_problem(
                415, "Unsupported Media Type", instance, "Content-Encoding is not supported: send the file itself."
            )
        length = content_length(headers)
        if length is not None and length > self._settings.upload_bytes:
            return self._too_large(instance)
        expected = ExpectedDigests.of(headers)
        if early := await self.threads.run(self._evaluate_early, path, headers):
            return plain_problem(early, "Precondition Failed", instance)
        try:
            with self.receiving():
                return await self._store(path, headers, expected, body_blocks(receive, length))
        except UploadAborted as error:
            return plain_problem(400, "Bad Request", instance, str(error))
        except TooLarge:
            return self._too_large(instance)
        except DiskFull:
            detail = "There is not enough space for this file; nothing of it was kept."
            return plain_problem(507, "Insufficient Storage", instance, detail)

    async def _store(
        self, path: str, headers: Mapping[str, str], expected: ExpectedDigests, body: AsyncIterator[bytes]
    ) -> Response:
        hashes = {name: hashlib.new(ALGORITHMS[name]) for name in expected.digests}
        with disk_errors():
            temporary = await self.threads.run(Temporary, self._directory, path, undo=Temporary.discard)
        try:
            size = 0
            async for block in body:
                size += len(block)
                if size > self._settings.upload_bytes:
                    raise TooLarge
                with disk_errors():
                    await self.threads.run(temporary.write, block, hashes)
            for name, digest in expected.digests.items():
                if hashes[name].digest() != digest:
                    raise Problem("invalid_request", f"The content does not match the announced {name} digest.")
            with disk_errors():
                status, etag = await self.threads.run(temporary.publish, headers)
        finally:
            await self.threads.run(temporary.discard)
        if status == 412:
            return plain_problem(412, "Precondition Failed", f"/files/{path}")
        return Response(status_code=status, headers={"ETag": etag, "Location": f"/files/{quote(path)}"})

    async def delete(self, path: str, headers: Mapping[str, str]) -> Response:
        """Remove a file: 204. Raises NotServed."""
        parts(path)
        return await self.threads.run(self._delete, path, headers)

    def _delete(self, path: str, headers: Mapping[str, str]) -> Response:
        os.close(self._directory.open(path).file)  # raises NotServed unless it is a regular file
        with self._directory.parent(path) as (directory, name), locked(directory):
            if status := evaluate_preconditions("DELETE", headers, validators_of(directory, name)):
                return plain_problem(status, "Precondition Failed", f"/files/{path}")
            with disk_errors():  # another request may have removed it meanwhile
                os.unlink(name, dir_fd=directory)
            os.fsync(directory)
        self._directory.prune(path)
        return Response(status_code=204)

    def _evaluate_early(self, path: str, headers: Mapping[str, str]) -> int | None:
        """The status of a failed precondition, before the body is read, so that the client need not send it."""
        with ExitStack() as stack:
            try:
                directory, name = stack.enter_context(self._directory.parent(path))
            except NotServed:  # the directory does not exist yet
                return evaluate_preconditions("PUT", headers, None)
            return evaluate_preconditions("PUT", headers, validators_of(directory, name))

    def _too_large(self, instance: str) -> Response:
        detail = f"A file may have at most {self._settings.upload_bytes} bytes (MILLSTREAM_UPLOAD_BYTES)."
        problem = Problem("payload_too_large", detail).document(instance)
        return Response(to_json(problem), 413, {"Connection": "close"}, media_type="application/problem+json")


class Temporary:
    """A hidden file in the target's directory, later renamed to the target. As long as it exists, the directory is not
    removed. Blocking: call it in a thread.
    """

    def __init__(self, directory: ServedDirectory, path: str) -> None:
        self._name: str | None = f"{TEMPORARY}{secrets.token_hex(8)}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        for _ in range(ATTEMPTS):
            # Another request may remove the directory as long as it is empty.
            with suppress(Missing, FileNotFoundError), ExitStack() as stack:
                self.directory, self.target = stack.enter_context(directory.parent(path, create=True))
                self._file = os.open(self._name, flags, 0o644, dir_fd=self.directory)
                fcntl.flock(self._file, fcntl.LOCK_EX)  # marks it as being written: see sweep
                self._context = stack.pop_all()
                return
        raise NotServed(path)

    def write(self, block: bytes, hashes: Mapping[str, Any]) -> None:
        write_all(self._file, block)
        for digest in hashes.values():
            digest.update(block)

    def publish(self, headers: Mapping[str, str]) -> tuple[int, str]:
        """Rename it to the target. Returns 201 or 204 and the new ETag, or 412."""
        os.fsync(self._file)
        assert self._name is not None
        with locked(self.directory):
            before = validators_of(self.directory, self.target)
            if status := evaluate_preconditions("PUT", headers, before):
                return status, ""
            os.rename(self._name, self.target, src_dir_fd=self.directory, dst_dir_fd=self.directory)
            self._name = None
            os.fsync(self.directory)
            return (201 if before is None else 204), Validators.of(State.of(os.fstat(self._file))).etag

    def discard(self) -> None:
        """Close it. If it was not published, remove it, and the directories that were made for it."""
        os.close(self._file)
        if self._name is not None:
            with suppress(FileNotFoundError):
                os.unlink(self._name, dir_fd=self.directory)
        self._context.close()


async def sweep(directory: ServedDirectory) -> None:
    """Remove the temporary files of killed processes, anywhere below the directory."""
    sweeping = _sweep(directory)
    while (removed := await asyncio.to_thread(next, sweeping, None)) is not None:
        for path in removed:
            log.info("removed what a broken upload left", path=path)


def _sweep(directory: ServedDirectory) -> Iterator[list[str]]:
    """Yields the removed paths, directory by directory."""
    with directory.parent("any") as (top, _):
        for where, inner, names, fd in os.fwalk(".", dir_fd=top):
            inner[:] = [name for name in inner if not name.startswith(".")]
            temporary = [name for name in names if name.startswith(TEMPORARY)]
            removed = [f"{where}/{name}"[2:] for name in temporary if _remove_abandoned(name, fd)]
            for path in removed:
                directory.prune(path)
            yield removed


def _remove_abandoned(name: str, directory: int) -> bool:
    """Remove a temporary file, unless it is recent or still being written. Returns whether it was removed."""
    with suppress(OSError):
        file = os.open(name, os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        try:
            found = os.fstat(file)
            if stat.S_ISREG(found.st_mode) and time.time() - found.st_mtime > ABANDONED_S:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(name, dir_fd=directory)
                return True
        finally:
            os.close(file)
    return False


async def body_blocks(receive: Receive, length: int | None) -> AsyncIterator[bytes]:
    """The request's body in blocks of about BLOCK bytes. `length`: that of Content-Length. Raises UploadAborted, after
    yielding what was received, when the client disconnects before the end of the body, or the body ends elsewhere than
    Content-Length says: it is not complete then, whatever the layers below make of it.
    """
    buffered, received, more = bytearray(), 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            if buffered:
                yield bytes(buffered)
            raise UploadAborted("The connection closed before the upload was complete.")
        body = message.get("body", b"")
        received += len(body)
        if length is not None and received > length:
            raise UploadAborted(f"The body is longer than the {length} bytes that Content-Length announced.")
        buffered += body
        more = message.get("more_body", False)
        if len(buffered) >= BLOCK or not more:
            yield bytes(buffered)
            buffered.clear()
    if length is not None and received < length:
        raise UploadAborted(f"The body ended after {received} of the {length} bytes that Content-Length announced.")


@contextmanager
def disk_errors() -> Iterator[None]:
    """Translate errors of the file system. Raises DiskFull, NotServed, Refused."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise DiskFull from error
        if error.errno in (errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENOENT, errno.EEXIST, errno.ENAMETOOLONG):
            raise NotServed from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            detail = f"The server may not write there ({os.strerror(error.errno)}): its operator can change that."
            raise Refused(403, "Forbidden", detail) from error
        raise


@contextmanager
def locked(directory: int) -> Iterator[None]:
    """A lock on a directory, across processes, so that checking preconditions and renaming are one step."""
    fcntl.flock(directory, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(directory, fcntl.LOCK_UN)


def validators_of(directory: int, name: str) -> Validators | None:
    """The validators of a file, with the ETags of its compressed siblings; None when it does not exist. Raises
    NotServed for anything but a regular file.
    """
    try:
        found = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(found.st_mode):
        raise NotServed(name)
    others = []
    for ending in CODINGS.values():
        with suppress(OSError):
            sibling = os.stat(name + ending, dir_fd=directory, follow_symlinks=False)
            if stat.S_ISREG(sibling.st_mode) and supersedes(sibling, found):
                others.append(Validators.of(State.of(sibling)).etag)
    return Validators.of(State.of(found), tuple(others))


def write_all(file: int, block: bytes) -> None:
    view = memoryview(block)
    while view:
        view = view[os.write(file, view) :]
