"""Resumable uploads on the disk: what has come so far, and how it becomes a file. Blocking: call it in a thread.

An upload is hidden files below the data directory: `.uploads/<id>` holds the bytes received so far,
`.uploads/<id>.json` the target path and length, `.uploads/<id>.unchecked` the offset of a part whose checksum is not
known yet; `.uploads/<id>.wanted` asks the process that writes to it to end. So it survives a restart, and any API
process on the same directory can continue it. When it is complete, it is renamed to its path; `<id>.json` stays for a
while, to tell clients that ask again.
"""

import fcntl
import os
import re
import time
from collections import defaultdict
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic_core import from_json, to_json

from millstream.confined_fs import NotServed, ServedDirectory
from millstream_api.files.requests import Refused
from millstream_api.files.uploads import Temporary, locked, validators_of


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


class UnfinishedUploads:
    """Those of one data directory. `life_s`: how long what belongs to none of them is kept."""

    def __init__(self, directory: ServedDirectory, life_s: float) -> None:
        self._directory = directory
        self._home = directory.path / ".uploads"
        self._life_s = life_s

    def _data(self, upload: Upload) -> Path:
        return self._home / upload.id

    def _info(self, id: str) -> Path:
        return self._home / f"{id}.json"

    def _unchecked(self, upload: Upload) -> Path:
        return self._home / f"{upload.id}.unchecked"

    def _wanted(self, upload: Upload) -> Path:
        return self._home / f"{upload.id}.wanted"

    def begin(self, upload: Upload) -> None:
        self._home.mkdir(exist_ok=True)
        self._data(upload).touch(0o644, exist_ok=False)
        written = self._home / f"{upload.id}.new"
        written.write_bytes(to_json(asdict(upload)))
        written.replace(self._info(upload.id))

    def load(self, id: str, owner: str) -> Upload:
        """Raises NotServed when the upload does not exist, has expired, or belongs to another owner."""
        upload = self._read(id) if re.fullmatch(r"[0-9a-f]{32}", id) else None
        if upload is None or upload.owner != owner or upload.expires < time.time():
            raise NotServed(id)
        return upload

    def _read(self, id: str) -> Upload | None:
        try:
            return Upload(**from_json(self._info(id).read_bytes()))
        except (OSError, ValueError, TypeError):
            return None

    def open(self, upload: Upload) -> int | None:
        """A descriptor to append with, which no other request has, in any process; None: the file is there. Raises
        Refused, NotServed. A part that was never checked is dropped.
        """
        try:
            file = os.open(self._data(upload), os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        except FileNotFoundError:
            os.close(self._directory.open(upload.path).file)  # raises NotServed: it was deleted meanwhile
            return None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._wanted(upload).unlink(missing_ok=True)
            with suppress(FileNotFoundError):
                os.ftruncate(file, int(self._unchecked(upload).read_text() or 0))
                self._unchecked(upload).unlink()
        except BlockingIOError:
            os.close(file)
            self._wanted(upload).touch()
            raise Refused(423, "Locked", "Another request writes to this upload, and ends now: try again.") from None
        except BaseException:
            os.close(file)
            raise
        return file

    def is_wanted(self, upload: Upload) -> bool:
        """Does another process want to write to it?"""
        return self._wanted(upload).exists()

    def mark_unchecked(self, upload: Upload, at: int) -> None:
        self._unchecked(upload).write_text(str(at))

    def mark_checked(self, upload: Upload) -> None:
        self._unchecked(upload).unlink()

    def offset(self, upload: Upload) -> int:
        """How many bytes there are. The full length only once the file is there: it is published now if its last byte
        came right before a process was killed. Raises Refused, NotServed.
        """
        file = self.open(upload)
        if file is None:
            return upload.length
        try:
            offset = os.fstat(file).st_size
            if offset == upload.length:
                self.publish(upload, file)
            return offset
        finally:
            os.close(file)

    def publish(self, upload: Upload, file: int) -> None:
        """Rename it to its path. Raises NotServed, OSError."""
        os.fsync(file)
        temporary = Temporary(self._directory, upload.path)  # keeps the target's directory from being removed
        try:
            with locked(temporary.directory):
                validators_of(temporary.directory, temporary.target)  # raises NotServed if it may not be replaced
                os.rename(self._data(upload), temporary.target, dst_dir_fd=temporary.directory)
                os.fsync(temporary.directory)
        finally:
            temporary.discard()

    def remove(self, upload: Upload) -> None:
        """First what makes it an upload: what is left after a kill is swept."""
        for path in (self._info(upload.id), self._data(upload), self._unchecked(upload), self._wanted(upload)):
            path.unlink(missing_ok=True)

    def sweep(self) -> dict[str, dict[str, int]]:
        """Remove what has expired, and what a killed process left. Publish what is complete. Returns the lengths of the
        unfinished uploads, by owner and id.
        """
        found: dict[str, dict[str, int]] = defaultdict(dict)
        names = {path.name for path in self._home.iterdir()} if self._home.is_dir() else set()
        for name in names:
            id, _, ending = name.partition(".")
            upload = self._read(id) if ending == "json" and id in names else None
            if upload is None:
                if ending or f"{id}.json" not in names:
                    self._remove_old(self._home / name)
            elif upload.expires < time.time():
                self.remove(upload)
            elif not self._is_published(upload):
                found[upload.owner][upload.id] = upload.length
        return found

    def _is_published(self, upload: Upload) -> bool:
        """Is it now? An upload that another request writes to is not."""
        with suppress(Refused, NotServed, OSError):
            return self._data(upload).stat().st_size == upload.length and self.offset(upload) == upload.length
        return False

    def _remove_old(self, path: Path) -> None:
        with suppress(FileNotFoundError):
            if path.stat().st_mtime + self._life_s < time.time():
                path.unlink()
