"""Writing files: PUT and DELETE. Complete or not there at all. (Resumable uploads: tus.py.)

What comes is written to a hidden file in the target's directory, synced, and renamed over the target; so a reader
sees the old file or the new one, and whatever breaks leaves nothing. Conditions are checked again under a lock right
before the rename. Directories come and go with what is in them.
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
from millstream_api.problems import plain_problem
from millstream_api.settings import ApiSettings

log = structlog.get_logger("millstream.api")

BLOCK = 1024 * 1024
TEMPORARY = ".upload-"  # what the names of temporary files begin with
ABANDONED_S = 60  # one that is older, and that no process holds, was left behind
ATTEMPTS = 100  # to be in a directory before somebody removes it
ALGORITHMS = {"sha-256": "sha256", "sha-512": "sha512"}  # RFC 9530 §5


class Broken(Exception):
    """The client left before the end."""


class Full(Exception):
    """The disk, or a quota, is full."""


class TooLarge(Exception):
    """More came than an upload may have."""


@dataclass(slots=True)
class Expected:
    """Digests that the client says the content has: raw, by algorithm."""

    digests: dict[str, bytes]

    @classmethod
    def of(cls, headers: Mapping[str, str]) -> "Expected":
        """From Repr-Digest and Content-Digest (RFC 9530). Raises Problem when one cannot be read."""
        found: dict[str, bytes] = {}
        for header in ("repr-digest", "content-digest"):
            for item in headers.get(header, "").split(","):
                name, _, value = item.strip().partition("=")
                if name.lower() in ALGORITHMS:
                    try:
                        digest = b64decode(value.partition(";")[0].strip(" :"), validate=True)
                    except ValueError:
                        raise Problem("invalid_request", f"{header}: {name}=:…: must hold base64.") from None
                    if found.setdefault(name.lower(), digest) != digest:
                        raise Problem("invalid_request", f"Repr-Digest and Content-Digest differ in {name}.")
        return cls(found)


class Uploads:
    def __init__(self, settings: ApiSettings, directory: ServedDirectory) -> None:
        self._settings = settings
        self._directory = directory

    async def put(self, path: str, headers: Mapping[str, str], receive: Receive) -> Response:
        """Create or replace a file with the request's body: 201 or 204."""
        parts(path)
        instance = f"/files/{path}"
        if "content-range" in headers:
            return plain_problem(400, "Bad Request", instance, "A PUT holds a whole file: no Content-Range.")
        if headers.get("content-encoding", "identity").lower() != "identity":
            return plain_problem(
                415, "Unsupported Media Type", instance, "Send the file as it is, without Content-Encoding."
            )
        if int(headers.get("content-length", "0")) > self._settings.upload_bytes:
            return self._too_large(instance)
        expected = Expected.of(headers)
        if early := await asyncio.to_thread(self._refused, path, headers):
            return plain_problem(early, "Precondition Failed", instance)
        try:
            return await self._store(path, headers, expected, body_blocks(receive))
        except Broken:
            return plain_problem(400, "Bad Request", instance, "The upload ended before its end.")
        except TooLarge:
            return self._too_large(instance)
        except Full:
            detail = "There is no room for this file; nothing of it was kept."
            return plain_problem(507, "Insufficient Storage", instance, detail)

    async def _store(
        self, path: str, headers: Mapping[str, str], expected: Expected, body: AsyncIterator[bytes]
    ) -> Response:
        hashes = {name: hashlib.new(ALGORITHMS[name]) for name in expected.digests}
        with disk_errors():
            temporary = await asyncio.to_thread(Temporary, self._directory, path)
        try:
            size = 0
            async for block in body:
                size += len(block)
                if size > self._settings.upload_bytes:
                    raise TooLarge
                with disk_errors():
                    await asyncio.to_thread(temporary.write, block, hashes)
            for name, digest in expected.digests.items():
                if hashes[name].digest() != digest:
                    raise Problem(
                        "invalid_request", f"The content does not have the {name} digest that was named for it."
                    )
            with disk_errors():
                status, etag = await asyncio.to_thread(temporary.publish, headers)
        finally:
            await asyncio.to_thread(temporary.discard)
        if status == 412:
            return plain_problem(412, "Precondition Failed", f"/files/{path}")
        return Response(status_code=status, headers={"ETag": etag, "Location": f"/files/{quote(path)}"})

    async def delete(self, path: str, headers: Mapping[str, str]) -> Response:
        """Remove a file: 204. Raises NotServed."""
        parts(path)
        return await asyncio.to_thread(self._delete, path, headers)

    def _delete(self, path: str, headers: Mapping[str, str]) -> Response:
        os.close(self._directory.open(path).file)  # a regular file, and nothing else
        with self._directory.parent(path) as (directory, name), locked(directory):
            if status := evaluate_preconditions("DELETE", headers, current(directory, name)):
                return plain_problem(status, "Precondition Failed", f"/files/{path}")
            try:
                os.unlink(name, dir_fd=directory)
            except FileNotFoundError:
                raise NotServed(path) from None
        self._directory.prune(path)
        return Response(status_code=204)

    def _refused(self, path: str, headers: Mapping[str, str]) -> int | None:
        """A look before the body is read, so that what will be refused is refused at once."""
        with ExitStack() as stack:
            try:
                directory, name = stack.enter_context(self._directory.parent(path))
            except NotServed:  # its directory is still to be made
                return evaluate_preconditions("PUT", headers, None)
            return evaluate_preconditions("PUT", headers, current(directory, name))

    def _too_large(self, instance: str) -> Response:
        detail = f"A file may have {self._settings.upload_bytes} bytes (MILLSTREAM_UPLOAD_BYTES)."
        problem = Problem("payload_too_large", detail).document(instance)
        return Response(to_json(problem), 413, {"Connection": "close"}, media_type="application/problem+json")


class Temporary:
    """A hidden file beside the target, on its way to become it; while it is there, so is its directory. Blocking; for
    a thread.
    """

    def __init__(self, directory: ServedDirectory, path: str) -> None:
        self._name: str | None = f"{TEMPORARY}{secrets.token_hex(8)}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        for _ in range(ATTEMPTS):
            # Until there is a file in it, a directory may be removed by others, who find it empty.
            with suppress(Missing, FileNotFoundError), ExitStack() as stack:
                self.directory, self.target = stack.enter_context(directory.parent(path, create=True))
                self._file = os.open(self._name, flags, 0o644, dir_fd=self.directory)
                fcntl.flock(self._file, fcntl.LOCK_EX)  # the sign that somebody writes it: see sweep
                self._context = stack.pop_all()
                return
        raise NotServed(path)

    def write(self, block: bytes, hashes: Mapping[str, Any]) -> None:
        write_all(self._file, block)
        for digest in hashes.values():
            digest.update(block)

    def publish(self, headers: Mapping[str, str]) -> tuple[int, str]:
        """Make it the target: 201 or 204 and its ETag, or 412."""
        os.fsync(self._file)
        assert self._name is not None
        with locked(self.directory):
            before = current(self.directory, self.target)
            if status := evaluate_preconditions("PUT", headers, before):
                return status, ""
            os.rename(self._name, self.target, src_dir_fd=self.directory, dst_dir_fd=self.directory)
            self._name = None
            os.fsync(self.directory)
            return (201 if before is None else 204), Validators.of(State.of(os.fstat(self._file))).etag

    def discard(self) -> None:
        """Close it, and remove what has not been published, and with it the directories that were made for it."""
        os.close(self._file)
        if self._name is not None:
            with suppress(FileNotFoundError):
                os.unlink(self._name, dir_fd=self.directory)
        self._context.close()


async def sweep(directory: ServedDirectory) -> None:
    """Remove the temporary files whose processes were killed, wherever they are below the directory."""
    sweeping = _swept(directory)
    while (removed := await asyncio.to_thread(next, sweeping, None)) is not None:
        for path in removed:
            log.info("removed what a broken upload left", path=path)


def _swept(directory: ServedDirectory) -> Iterator[list[str]]:
    """What was removed, directory by directory."""
    with directory.parent("any") as (top, _):
        for where, inner, names, at in os.fwalk(".", dir_fd=top):
            inner[:] = [name for name in inner if not name.startswith(".")]
            removed = [f"{where}/{name}"[2:] for name in names if name.startswith(TEMPORARY) and _removed(name, at)]
            for path in removed:
                directory.prune(path)
            yield removed


def _removed(name: str, at: int) -> bool:
    """Remove a temporary file, unless it is young, or somebody writes it."""
    with suppress(OSError):
        file = os.open(name, os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
        try:
            found = os.fstat(file)
            if stat.S_ISREG(found.st_mode) and time.time() - found.st_mtime > ABANDONED_S:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(name, dir_fd=at)
                return True
        finally:
            os.close(file)
    return False


async def body_blocks(receive: Receive) -> AsyncIterator[bytes]:
    """The request's body in blocks of about BLOCK bytes. When the client leaves before its end: what came until then,
    and raises Broken.
    """
    held = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            if held:
                yield bytes(held)
            raise Broken
        held += message.get("body", b"")
        if len(held) >= BLOCK or not message.get("more_body", False):
            yield bytes(held)
            held.clear()
        if not message.get("more_body", False):
            return


@contextmanager
def disk_errors() -> Iterator[None]:
    """What the file system refuses, in words. Raises Full, NotServed."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise Full from error
        if error.errno in (errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENOENT, errno.EEXIST, errno.ENAMETOOLONG):
            raise NotServed from error
        raise


@contextmanager
def locked(directory: int) -> Iterator[None]:
    """One writer of a directory at a time, across processes, while it looks and renames."""
    fcntl.flock(directory, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(directory, fcntl.LOCK_UN)


def current(directory: int, name: str) -> Validators | None:
    """The state of what a name stands for, with those of its compressed siblings; None: nothing yet. Raises NotServed
    for what is no regular file.
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
