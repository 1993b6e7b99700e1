"""Work in threads that cannot be stopped: what a request that is cancelled leaves behind."""

import asyncio
import os
import threading
from pathlib import Path

import pytest

from millstream_api.files.threads import LARGE, Threads, close


async def test_who_is_cancelled_waits_for_the_end_of_the_work_and_undoes_it() -> None:
    begun, go, undone = asyncio.Event(), threading.Event(), list[str]()
    loop = asyncio.get_running_loop()

    def work(result: str) -> str:
        loop.call_soon_threadsafe(begun.set)
        assert go.wait(20)
        return result

    running = asyncio.create_task(Threads("test", 1).run(work, "made", undo=undone.append))
    await begun.wait()
    running.cancel()
    await asyncio.sleep(0)
    assert not running.done(), "the work goes on, and may use what its caller would close"
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert undone == ["made"]


async def test_what_fails_after_its_caller_was_cancelled_is_not_undone() -> None:
    begun, go, undone = asyncio.Event(), threading.Event(), list[None]()
    loop = asyncio.get_running_loop()

    def work() -> None:
        loop.call_soon_threadsafe(begun.set)
        assert go.wait(20)
        raise OSError

    running = asyncio.create_task(Threads("test", 1).run(work, undo=undone.append))
    await begun.wait()
    running.cancel()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert undone == []


async def test_a_kind_of_work_has_its_own_threads_and_no_more_of_them() -> None:
    threads, running, most = Threads("test", 2), 0, 0
    lock = threading.Lock()
    both = threading.Barrier(2)

    def work() -> str:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        both.wait(20)
        with lock:
            running -= 1
        return threading.current_thread().name

    names = await asyncio.gather(*(threads.run(work) for _ in range(6)))
    assert most == 2
    assert set(names) == {"test_0", "test_1"}


@pytest.mark.parametrize(
    ("deleted", "size", "apart"), [(False, LARGE, False), (True, LARGE - 1, False), (True, LARGE, True)]
)
async def test_only_a_large_file_that_was_deleted_is_closed_in_a_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deleted: bool, size: int, apart: bool
) -> None:
    closed: asyncio.Future[threading.Thread] = asyncio.get_running_loop().create_future()
    loop, really = asyncio.get_running_loop(), os.close

    def watched(file: int) -> None:
        really(file)
        if file == opened:
            loop.call_soon_threadsafe(closed.set_result, threading.current_thread())

    opened = os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT)
    if deleted:
        (tmp_path / "f").unlink()
    monkeypatch.setattr(os, "close", watched)
    close(opened, size)
    assert (await closed is threading.current_thread()) == (not apart)
