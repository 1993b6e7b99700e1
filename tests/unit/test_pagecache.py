"""What a disk must be waited for is read in a thread."""

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from millstream_api.wire import pagecache
from millstream_api.wire.answers import Span
from millstream_api.wire.pagecache import FileTruncated, blocks, read

CONTENT = bytes(range(256)) * 4096


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch) -> set[threading.Thread]:
    """A disk that is cold: the threads that wait for it."""
    found: set[threading.Thread] = set()
    preadv, pread = os.preadv, os.pread

    def cold_preadv(file: int, buffers: Any, offset: int, flags: int = 0) -> int:
        if flags & os.RWF_NOWAIT:
            raise BlockingIOError
        found.add(threading.current_thread())
        return preadv(file, buffers, offset, flags)

    def cold_pread(file: int, count: int, offset: int) -> bytes:
        found.add(threading.current_thread())
        return pread(file, count, offset)

    monkeypatch.setattr(os, "preadv", cold_preadv)
    monkeypatch.setattr(os, "pread", cold_pread)
    return found


async def test_what_is_not_in_the_page_cache_is_read_apart_from_the_event_loop(
    tmp_path: Path, waiting: set[threading.Thread]
) -> None:
    (tmp_path / "f").write_bytes(CONTENT)
    with (tmp_path / "f").open("rb") as file:
        assert await read(file.fileno(), Span(5, 1000)) == CONTENT[5:1005]
        found = [bytes(block) async for block in blocks(file.fileno(), Span(3, len(CONTENT) - 3))]
        assert b"".join(found) == CONTENT[3:]
        assert max(map(len, found)) <= pagecache.BLOCK
        with pytest.raises(FileTruncated):
            await read(file.fileno(), Span(len(CONTENT) - 5, 6))
    assert waiting
    assert threading.current_thread() not in waiting
