"""Reading files so that a cold disk never stalls the loop: at once what the page cache has, in a thread what it has
not.
"""

import asyncio
import os
from collections.abc import AsyncIterator

import aiofiles

from millstream_api.wire.answers import Span

BLOCK = 256 * 1024
PROBE = 128 * 1024  # a window counts as cached when one byte in every so many is
_BYTE = [bytearray(1)]  # what is read into it is of no interest
_NOWAIT: int = getattr(os, "RWF_NOWAIT", 0)


class Cut(Exception):
    """The file is shorter than it was: the connection must end, so that the client sees a short body."""


async def read(file: int, span: Span) -> bytes | bytearray:
    """These bytes, in one piece. Raises Cut."""
    data = _read_cached(file, span.start, span.length)
    if len(data) < span.length:
        data = await asyncio.to_thread(os.pread, file, span.length, span.start)
    if len(data) < span.length:
        raise Cut
    return data


async def blocks(file: int, span: Span) -> AsyncIterator[bytes | bytearray]:
    """These bytes, in blocks of BLOCK or less. Raises Cut."""
    offset, end = span.start, span.start + span.length
    async with aiofiles.open(os.dup(file), "rb", buffering=0) as handle:
        while offset < end:
            count = min(BLOCK, end - offset)
            data = _read_cached(file, offset, count)
            if len(data) < count:
                await handle.seek(offset)
                data = await handle.read(count)
            if not data:
                raise Cut
            yield data
            offset += len(data)


def _read_cached(file: int, offset: int, count: int) -> bytes | bytearray:
    """These bytes if the page cache has them all; else fewer."""
    buffer = bytearray(count)
    try:
        read = os.preadv(file, [buffer], offset, _NOWAIT)
    except OSError:
        return b""
    return buffer if read == count else b""


def cached(file: int, offset: int, count: int) -> bool:
    """Are these bytes in the page cache, as far as one in every PROBE tells, the last first? True where the file system
    cannot say.
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
