"""`GET /stream/file`: a file, streamed in blocks with aiofiles."""

import errno
import mimetypes
import os
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated

import aiofiles
from aiofiles.threadpool.binary import AsyncBufferedReader
from fastapi import APIRouter, Query, Request
from starlette.exceptions import HTTPException
from starlette.responses import StreamingResponse

BLOCK = 256 * 1024

router = APIRouter()


@router.get("/stream/file", response_class=StreamingResponse)
async def stream_file(
    request: Request, path: Annotated[str, Query(description="a path below the data directory")] = "large_file.txt"
) -> StreamingResponse:
    """Stream one file of the data directory."""
    file = await open_below(request.app.state.settings.data_dir, path)
    size = os.fstat(file.fileno()).st_size
    media_type = mimetypes.guess_type(path)[0] or "application/octet-stream"
    headers = {"Content-Length": str(size), "X-Content-Type-Options": "nosniff"}
    return StreamingResponse(_blocks(file, size), media_type=media_type, headers=headers)


async def open_below(directory: Path, path: str) -> AsyncBufferedReader:
    """Open a regular file below `directory`. HTTPException 404 for everything else, as if it were not there.

    Each step of the path is opened relative to the one before it and may not be a symbolic link, so neither the path
    nor a change to the directory meanwhile can lead outside.
    """
    parts = path.split("/")
    try:
        if any(part in ("", ".", "..") or part.startswith(".") or "\0" in part for part in parts):
            raise FileNotFoundError(errno.ENOENT, "hidden, empty or dotted names are not served")
        return await aiofiles.open("/".join(parts), "rb", opener=lambda name, _: _open_step_by_step(directory, name))
    except (OSError, ValueError):
        raise HTTPException(404, "Not Found") from None


def _open_step_by_step(directory: Path, path: str) -> int:
    *steps, name = path.split("/")
    at = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for step in steps:
            inner = os.open(step, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
            os.close(at)
            at = inner
        file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=at)
    finally:
        os.close(at)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise FileNotFoundError(errno.ENOENT, "not a regular file", path)
    return file


async def _blocks(file: AsyncBufferedReader, size: int) -> AsyncIterator[bytes]:
    """The first `size` bytes of the file. One that was cut short meanwhile ends early, and so does the connection."""
    try:
        while size > 0 and (block := await file.read(min(BLOCK, size))):
            size -= len(block)
            yield block
    finally:
        await file.close()
