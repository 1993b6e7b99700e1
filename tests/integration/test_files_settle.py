"""A file that has just changed: what is told of it is what is sent of it."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from millstream_api.files import app as files
from millstream_api.files.conditions import State, Validators
from tests.integration.serving import files_here, open_here

slept = asyncio.sleep
COARSE = 5  # CLOCK_REALTIME_COARSE (linux/time.h): where kernels before 6.13 have all time stamps from


class Clock:
    """The time since a file changed, and what happens while the server waits for that time to pass."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, path: Path, since_ns: int) -> None:
        self.waits: list[float] = []
        self.meanwhile: Callable[[], object] = lambda: None
        monkeypatch.setattr(time, "time_ns", lambda: path.stat().st_ctime_ns + since_ns)
        monkeypatch.setattr(asyncio, "sleep", self._sleep)

    async def _sleep(self, seconds: float) -> None:
        if seconds:
            self.waits.append(seconds)
            self.meanwhile()
        await slept(0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "f"
    path.write_bytes(b"one")
    return path


async def test_a_change_in_the_same_moment_as_the_one_before_is_waited_for(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It might leave the time stamps as they were, and so the ETag of other content."""
    clock = Clock(monkeypatch, path, files.SETTLE_NS - 1)
    clock.meanwhile = lambda: path.write_bytes(b"two")
    async with files_here(path.parent) as http:
        answer = await http.get("/files/f")
    assert clock.waits == [files.SETTLE_NS / 1e9]
    assert (answer.content, answer.headers["etag"]) == (b"two", Validators.of(State.of(path.stat())).etag)


async def test_a_file_that_changed_long_enough_ago_is_sent_at_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, path, files.SETTLE_NS)
    async with files_here(path.parent) as http:
        assert (await http.get("/files/f")).content == b"one"
    assert clock.waits == []


def test_the_wait_is_longer_than_the_clock_of_file_systems_takes_to_move_on() -> None:
    assert time.clock_getres(COARSE) < files.SETTLE_NS / 1e9


async def test_a_request_that_is_cancelled_while_it_waits_frees_its_file(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "SETTLE_NS", 10**18)
    async with files_here(path.parent) as http:
        asking = asyncio.create_task(http.get("/files/f"))
        while not open_here(path):
            await slept(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert open_here(path) == 0
