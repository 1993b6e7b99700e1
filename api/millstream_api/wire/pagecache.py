"""Reading files without blocking the event loop on a disk: what the page cache holds is read at once, the rest in a
thread.
"""

import asyncio
import os
from collections.abc import AsyncIterator

import aiofiles

from millstream_api.wire.answers import Span

BLOCK = 256 * 1024
PROBE = 128 * 1024  # a window counts as cached when one byte in every so many is
_BYTE = [bytearray(1)]  # read into, never looked at
_NOWAIT: int = getattr(os, "RWF_NOWAIT", 0)


class FileTruncated(Exception):
    """The file is shorter than it was: the connection must be closed, so that the client sees a short body."""

    def __init__(self) -> None:
        super().__init__("the file was truncated")


async def read(file: int, span: Span) -> bytes | bytearray:
    """The span as one piece. Raises FileTruncated."""
    data = _read_cached(file, span.start, span.length)
    if len(data) < span.length:
        data = await asyncio.to_thread(os.pread, file, span.length, span.start)
    if len(data) < span.length:
        raise FileTruncated
    return data


async def blocks(file: int, span: Span) -> AsyncIterator[bytes | bytearray]:
    """The span in blocks of at most BLOCK bytes. Raises FileTruncated."""
    offset, end = span.start, span.start + span.length
    async with aiofiles.open(os.dup(file), "rb", buffering=0) as handle:
        while offset < end:
            count = min(BLOCK, end - offset)
            data = _read_cached(file, offset, count)
            if len(data) < count:
                await handle.seek(offset)
                data = await handle.read(count)
            if not data:
                raise FileTruncated
            yield data
            offset += len(data)


def _read_cached(file: int, offset: int, count: int) -> bytes | bytearray:
    """These bytes if the page cache has all of them, else nothing."""
    buffer = bytearray(count)
    try:
        read = os.preadv(file, [buffer], offset, _NOWAIT)
    except OSError:
        return b""
    return buffer if read == count else b""


def cached(file: int, offset: int, count: int) -> bool:
    """Are these bytes in the page cache? One in every PROBE is probed, the last first. True where the file system
    cannot tell.
    """
    try:
        for byte in range(offset + count - 1, offset - 1, -PROBE):
            os.preadv(file, _BYTE, byte, _NOWAIT)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def read_ahead(file: int, offset: int, count: int) -> None:
    """Bring these bytes into the page cache; for a thread."""
    scratch = bytearray(min(count, BLOCK))
    end = offset + count
    while offset < end:
        read = os.preadv(file, [scratch], offset)
        if not read:
            return
        offset += read
