"""Digests of files are computed in threads of their own, once for each state and all who wait, and so many are kept."""

import asyncio
import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from millstream_api.files import digests
from millstream_api.files.conditions import State
from millstream_api.files.digests import Digests

BLOCKS = 5
FDS = Path("/proc/self/fd")


class Reading:
    """The blocks that are read for digests. Each waits until `go` is set, if it is not."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.blocks: list[int] = []
        self.threads: set[threading.Thread] = set()
        self.go = threading.Event()
        self.go.set()
        self.before: Callable[[int], object] = lambda offset: None
        self.begun = asyncio.Event()
        loop, pread = asyncio.get_running_loop(), os.pread

        def watched(file: int, count: int, offset: int) -> bytes:
            self.blocks.append(offset)
            self.threads.add(threading.current_thread())
            loop.call_soon_threadsafe(self.begun.set)
            assert self.go.wait(20)
            self.before(offset)
            return pread(file, count, offset)

        monkeypatch.setattr(os, "pread", watched)
        monkeypatch.setattr(digests, "_BLOCK", 10)


@pytest.fixture
async def reading(monkeypatch: pytest.MonkeyPatch) -> Reading:
    return Reading(monkeypatch)


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "f").write_bytes(bytes(range(10 * BLOCKS)))
    with (tmp_path / "f").open("r+b") as file:
        yield file.fileno()


def state_of(file: int) -> State:
    return State.of(os.fstat(file))


async def test_a_digest_is_computed_in_a_thread_and_again_only_when_others_were_asked_for_since(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reading: Reading
) -> None:
    monkeypatch.setattr(digests, "CACHED", 2)
    kept, computed = Digests(1), []
    for name in "abc":
        (tmp_path / name).write_bytes(name.encode())
    for name in ("a", "a", "b", "a", "c", "a", "b"):
        before = len(reading.blocks)
        with (tmp_path / name).open("rb") as file:
            digest = await kept.sha256(file.fileno(), state_of(file.fileno()))
        assert digest == hashlib.sha256(name.encode()).digest()
        computed.append(len(reading.blocks) > before)
    assert computed == [True, False, True, False, True, False, True], "b was asked for longest ago when c came"
    assert threading.current_thread() not in reading.threads
    assert {thread.name.partition("_")[0] for thread in reading.threads} == {"digest"}


async def test_those_who_ask_at_the_same_time_share_one_computation_whoever_of_them_leaves(
    reading: Reading, file: int
) -> None:
    kept = Digests(1)
    reading.go.clear()
    asking = [asyncio.create_task(kept.sha256(file, state_of(file))) for _ in range(3)]
    await reading.begun.wait()
    asking[0].cancel()
    await asyncio.wait({asking[0]})
    reading.go.set()
    digest = hashlib.sha256(bytes(range(10 * BLOCKS))).digest()
    assert [await task for task in asking[1:]] == [digest, digest]
    assert reading.blocks == list(range(0, 10 * BLOCKS, 10))


async def test_a_computation_that_nobody_waits_for_ends_and_gives_its_thread_back(reading: Reading, file: int) -> None:
    kept, opened = Digests(1), len(list(FDS.iterdir()))
    reading.go.clear()
    asking = [asyncio.create_task(kept.sha256(file, state_of(file)))]
    await reading.begun.wait()
    others = [state_of(file)._replace(inode=number) for number in range(10)]  # they wait for their turn
    asking += [asyncio.create_task(kept.sha256(file, state)) for state in others]
    await asyncio.sleep(0)
    for task in asking:
        task.cancel()
    await asyncio.wait(asking)
    reading.go.set()
    assert await kept.sha256(file, state_of(file)) == hashlib.sha256(bytes(range(10 * BLOCKS))).digest()
    assert reading.blocks == [0, *range(0, 10 * BLOCKS, 10)], "one block of what was given up"
    assert len(list(FDS.iterdir())) == opened


def grow(file: int) -> None:
    os.pwrite(file, b"more", 10 * BLOCKS)


def overwrite(file: int) -> None:
    os.pwrite(file, b"other", 10)


def cut(file: int) -> None:
    os.ftruncate(file, 15)


@pytest.mark.parametrize("change", [grow, overwrite, cut])
@pytest.mark.parametrize("at", [0, 20, 10 * (BLOCKS - 1)])
async def test_a_file_that_changes_meanwhile_has_no_digest_and_none_is_kept(
    reading: Reading, file: int, change: Callable[[int], None], at: int
) -> None:
    kept, state = Digests(1), state_of(file)
    reading.before = lambda offset: change(file) if offset == at else None
    assert await kept.sha256(file, state) is None
    reading.before = lambda offset: None
    reading.blocks.clear()
    assert await kept.sha256(file, state) is None
    assert reading.blocks, "it was not kept"
    state = state_of(file)
    assert await kept.sha256(file, state) == hashlib.sha256(os.pread(file, 1000, 0)).digest()


async def test_a_digest_is_of_the_bytes_that_its_state_has(reading: Reading, file: int) -> None:
    """Not of what a file has that grew since, even where the clock of files has not moved on."""
    state = state_of(file)
    grow(file)
    assert await Digests(1).sha256(file, state) is None
    assert max(reading.blocks) < state.size
