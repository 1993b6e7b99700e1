"""Digests of files are computed in a thread, once for each state, and so many are kept."""

import hashlib
import os
import threading
from pathlib import Path

import pytest

from millstream_api.files import digests
from millstream_api.files.digests import Digests


async def test_a_digest_is_computed_in_a_thread_and_again_only_when_others_were_asked_for_since(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "f").write_bytes(b"content")
    threads: list[threading.Thread] = []
    pread = os.pread

    def watched(file: int, count: int, offset: int) -> bytes:
        if offset == 0:
            threads.append(threading.current_thread())
        return pread(file, count, offset)

    monkeypatch.setattr(os, "pread", watched)
    monkeypatch.setattr(digests, "CACHED", 2)
    kept = Digests()
    computed = []
    with (tmp_path / "f").open("rb") as file:
        for state in ("a", "a", "b", "a", "c", "a", "b"):
            before = len(threads)
            assert await kept.sha256(file.fileno(), state) == hashlib.sha256(b"content").digest()
            computed.append(len(threads) > before)
    assert computed == [True, False, True, False, True, False, True], "b was asked for longest ago when c came"
    assert threading.current_thread() not in threads
