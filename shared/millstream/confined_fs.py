"""Opening what lies below one directory, and nothing else.

Paths are URL paths below the directory. `parts` decides what one means; opening is done relative to the directory's
descriptor, with openat2(2) and RESOLVE_BENEATH where the kernel has it, else step by step without following links: so
neither a path nor a change to the directory meanwhile can lead outside.
"""

import ctypes
import errno
import os
import platform
import stat
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from heapq import merge
from itertools import islice
from pathlib import Path
from typing import NamedTuple

_SYS_OPENAT2 = {"x86_64": 437, "aarch64": 437, "arm64": 437}.get(platform.machine()) if os.name == "posix" else None
_NO_MAGICLINKS, _NO_SYMLINKS, _BENEATH, _CACHED = 0x02, 0x04, 0x08, 0x20  # linux/openat2.h, RESOLVE_*


MAX_DEPTH = 100  # steps in a path: a walk holds a descriptor open for each
SORTED_RUN = 5_000  # names, which take a millisecond or two


class NotServed(Exception):
    """Not served: to clients, nothing exists at this path."""


class NoDirectory(Exception):
    """The directory to be served does not exist and cannot be created; the message says why."""


class Missing(NotServed):
    """A directory on the way is not there, or not any longer."""


class Opened(NamedTuple):
    """A descriptor, for reading, of a regular file, and its stat result. The receiver closes it."""

    file: int
    found: os.stat_result


def without_dots(path: str) -> str:
    """The path without its `.` steps, which mean the step before them (RFC 3986 §5.2.4)."""
    return "/".join(step for step in path.split("/") if step != ".") if "." in path else path


def parts(path: str) -> tuple[str, ...]:
    """The steps of a URL path, percent-decoded already, below the directory, without `.`. Raises NotServed.

    Refused are empty steps (so absolute paths too), `..`, hidden names, what no file system takes, and more than
    MAX_DEPTH steps.
    """
    steps = tuple(without_dots(path).split("/"))
    if len(steps) > MAX_DEPTH or not all(map(_served, steps)):
        raise NotServed(path)
    return steps


def _served(name: str) -> bool:
    """May a file or directory of this name be served? Not one that no URL or JSON can hold."""
    try:
        return 0 < len(name.encode()) <= 255 and name[0] != "." and "\0" not in name and "\\" not in name
    except UnicodeEncodeError:
        return False


class ServedDirectory:
    """The directory that is served. Methods block for file system calls; the paths they take are checked by `parts`."""

    def __init__(self, path: Path) -> None:
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise NoDirectory(f"MILLSTREAM_DATA_DIR: {path} cannot be used: {error.strerror}.") from None
        self.path = path
        self._openat2 = _has_openat2(self._fd)
        self._new: Counter[str] = Counter()  # directories that were made here, by how many may leave them empty
        self._making = threading.Lock()

    def close(self) -> None:
        os.close(self._fd)

    def open(self, path: str) -> Opened:
        """Open a regular file. Raises NotServed."""
        try:
            fd = self._open_at(parts(path), os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
        except (OSError, ValueError) as error:
            raise NotServed(path) from error
        return _regular(fd, path)

    def open_cached(self, path: str) -> Opened | None:
        """As `open`, without waiting for a disk; None when that cannot be, or the kernel (before 5.12) cannot tell."""
        if not self._openat2:
            return None
        try:
            fd = _openat2(self._fd, "/".join(parts(path)), _READ_CACHED)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EINVAL):
                return None
            raise NotServed(path) from error
        return _regular(fd, path)

    @contextmanager
    def parent(self, path: str, *, create: bool = False) -> Iterator[tuple[int, str]]:
        """A descriptor of the directory that holds `path`, and its name there. With `create` what is missing of the
        directory is made, and removed again when it is empty at the end. Raises NotServed, and OSError for `create`.
        """
        *steps, name = parts(path)
        made: list[str] = []
        try:
            if create:
                self._make(steps, made)
            try:
                # Always opened anew, not a dup: a lock (flock) belongs to what was opened, and a dup would share it.
                fd = self._open_at(tuple(steps) or (".",), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            except FileNotFoundError as error:
                raise Missing(path) from error
            except OSError as error:
                raise NotServed(path) from error
            try:
                yield fd, name
            finally:
                os.close(fd)
        finally:
            self._leave(made)

    def prune(self, path: str) -> None:
        """Remove the directories that hold `path`, from the innermost on, as far as they are empty."""
        while path := path.rpartition("/")[0]:
            self._remove(path)

    def walk(self, prefix: str) -> Iterator[tuple[str, os.stat_result]]:
        """Each regular file whose path begins with `prefix`, in the order of the paths."""
        # Opened anew: walks at the same time would share the place in a descriptor, and each miss what others read.
        top = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._fd)
        try:
            yield from self._walk(top, "", prefix)
        finally:
            os.close(top)

    def _walk(self, fd: int, base: str, prefix: str) -> Iterator[tuple[str, os.stat_result]]:
        with os.scandir(fd) as found:
            names = (e.name + "/" if e.is_dir(follow_symlinks=False) else e.name for e in found if _served(e.name))
            wanted = (n for n in names if (base + n).startswith(prefix) or prefix.startswith(base + n))
            # Sorted run by run: while it sorts, no other thread of the process runs.
            runs = [sorted(run) for run in iter(lambda: list(islice(wanted, SORTED_RUN)), [])]
        for name in merge(*runs):
            path = base + name
            if path.count("/") >= MAX_DEPTH:
                continue
            try:
                if name.endswith("/"):
                    inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
                    try:
                        yield from self._walk(inner, path, prefix)
                    finally:
                        os.close(inner)
                elif path.startswith(prefix):
                    entry = os.stat(name, dir_fd=fd, follow_symlinks=False)
                    if stat.S_ISREG(entry.st_mode):
                        yield path, entry
            except OSError:
                continue  # it went away meanwhile

    def _make(self, steps: list[str], made: list[str]) -> None:
        """Make what is missing of a directory. `made` gets what is to be left with `_leave`: that, and what others
        have just made, because the last one to leave finds it empty. The entry of each is on the disk afterwards.
        """
        for count in range(1, len(steps) + 1):
            path = "/".join(steps[:count])
            with self._making, self.parent(path) as (fd, name):
                try:
                    os.mkdir(name, dir_fd=fd)
                except FileExistsError:
                    if path not in self._new:
                        continue
                self._new[path] += 1
                made.append(path)
                os.fsync(fd)

    def _leave(self, made: list[str]) -> None:
        for path in reversed(made):
            with self._making:
                self._new[path] -= 1
                if not self._new[path]:
                    del self._new[path]
                    self._remove(path)

    def _remove(self, path: str) -> None:
        """Remove a directory if it is empty."""
        with suppress(NotServed, OSError), self.parent(path) as (fd, name):
            os.rmdir(name, dir_fd=fd)

    def _open_at(self, steps: tuple[str, ...], flags: int) -> int:
        if self._openat2:
            return _openat2(self._fd, "/".join(steps), _how(flags))
        return _step_by_step(self._fd, steps, flags | os.O_CLOEXEC)


def _regular(fd: int, path: str) -> Opened:
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode):
        os.close(fd)
        raise NotServed(path)
    return Opened(fd, found)


def _step_by_step(at: int, steps: tuple[str, ...], flags: int) -> int:
    at = os.dup(at)
    try:
        for step in steps[:-1]:
            inner = os.open(step, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
            os.close(at)
            at = inner
        return os.open(steps[-1], flags | os.O_NOFOLLOW, dir_fd=at)
    finally:
        os.close(at)


def _how(flags: int, also: int = 0) -> bytes:
    """A struct open_how (linux/openat2.h)."""
    return struct.pack("=QQQ", flags | os.O_CLOEXEC, 0, _BENEATH | _NO_SYMLINKS | _NO_MAGICLINKS | also)


def _openat2(at: int, path: str, how: bytes) -> int:
    while (fd := _libc.syscall(_SYS_OPENAT2, at, path.encode(), how, len(how))) < 0:
        number = ctypes.get_errno()
        if number not in (errno.EAGAIN, errno.EINTR) or (how is _READ_CACHED and number == errno.EAGAIN):
            raise OSError(number, os.strerror(number), path)  # else there was a rename meanwhile: once more
    return int(fd)


def _has_openat2(at: int) -> bool:
    if _SYS_OPENAT2 is None:
        return False
    try:
        os.close(_openat2(at, ".", _how(os.O_RDONLY | os.O_DIRECTORY)))
    except OSError:
        return False
    return True


_libc = ctypes.CDLL(None, use_errno=True)
_READ_CACHED = _how(os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW, _CACHED)
