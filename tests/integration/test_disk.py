"""Uploads and the disk: what is on it before it can be seen, and what it refuses."""

import asyncio
import errno
import fcntl
import os
import stat
import threading
from base64 import b64encode
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import httpx
import pytest

from millstream.confined_fs import Missing, NotServed, ServedDirectory
from millstream_api.files import tus
from millstream_api.files.uploads import Temporary
from tests.integration.serving import files_here
from tests.integration.web import everything

TUS = {"Tus-Resumable": "1.0.0"}
CONTENT = b"content"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    data = tmp_path / "data"
    (data / "deep").mkdir(parents=True)
    return data


@pytest.fixture
async def http(data: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with files_here(data) as http:
        yield http


async def create(http: httpx.AsyncClient, path: str) -> str:
    """Create a resumable upload of CONTENT; returns where it is."""
    told = {"Upload-Length": str(len(CONTENT)), "Upload-Metadata": f"path {b64encode(path.encode()).decode()}"}
    where: str = (await http.post(tus.PREFIX, headers={**TUS, **told})).headers["location"]
    return where


async def send(http: httpx.AsyncClient, where: str, content: bytes, at: int = 0) -> httpx.Response:
    return await http.patch(
        where, content=content, headers={**TUS, "Upload-Offset": str(at), "Content-Type": tus.CONTENT_TYPE}
    )


async def upload(http: httpx.AsyncClient, way: str, path: str) -> int:
    """Upload CONTENT in one of the two ways; returns the status of its last answer."""
    if way == "put":
        return (await http.put(f"/files/{path}", content=CONTENT)).status_code
    return (await send(http, await create(http, path), CONTENT)).status_code


class Watched:
    """The system's calls that matter to what is left after a power cut, in their order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, data: Path) -> None:
        self.calls: list[tuple[str, object]] = []
        self.threads: set[threading.Thread] = set()
        fsync, rename = os.fsync, os.rename

        def watched_fsync(file: int) -> None:
            self.threads.add(threading.current_thread())
            fsync(file)
            path = Path(f"/proc/self/fd/{file}").readlink()
            is_file = stat.S_ISREG(os.fstat(file).st_mode)
            self.calls.append(("synced", path.read_bytes() if is_file else str(path.relative_to(data))))

        def watched_rename(source: Any, target: Any, **options: Any) -> None:
            rename(source, target, **options)
            self.calls.append(("renamed", target))

        monkeypatch.setattr(os, "fsync", watched_fsync)
        monkeypatch.setattr(os, "rename", watched_rename)


@pytest.mark.parametrize("way", ["put", "tus"])
async def test_a_file_is_on_the_disk_before_it_has_its_name_and_its_name_before_that_is_answered(
    http: httpx.AsyncClient, data: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    watched = Watched(monkeypatch, data)
    assert await upload(http, way, "deep/f") in (201, 204)
    assert watched.calls == [("synced", CONTENT), ("renamed", "f"), ("synced", "deep")]
    assert threading.current_thread() not in watched.threads, "the event loop waits for no disk"


@pytest.mark.parametrize("way", ["put", "tus"])
async def test_each_directory_that_was_made_for_a_file_is_on_the_disk_too(
    http: httpx.AsyncClient, data: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    watched = Watched(monkeypatch, data)
    assert await upload(http, way, "deep/new/er/f") in (201, 204)
    made = [("synced", "deep"), ("synced", "deep/new")]
    assert [call for call in watched.calls if call in made] == made, "the entry of each, in its parent"
    assert watched.calls[-2:] == [("renamed", "f"), ("synced", "deep/new/er")]


async def test_a_file_that_was_deleted_does_not_come_back_after_a_power_cut(
    http: httpx.AsyncClient, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("f", "g"):
        (data / "deep" / name).write_bytes(CONTENT)
    watched = Watched(monkeypatch, data)
    assert await delete(http, "deep/f") == 204
    assert watched.calls == [("synced", "deep")]
    assert threading.current_thread() not in watched.threads


def refuse(monkeypatch: pytest.MonkeyPatch, call: str, number: int) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, refused)


@pytest.mark.parametrize("call", ["write", "fsync"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG], ids=errno.errorcode.get)
async def test_a_disk_a_quota_or_a_file_that_may_not_grow_is_told_as_full(
    http: httpx.AsyncClient, data: Path, monkeypatch: pytest.MonkeyPatch, number: int, call: str
) -> None:
    (data / "deep" / "f").write_bytes(b"old")
    where = await create(http, "deep/f")
    with monkeypatch.context() as while_full:
        refuse(while_full, call, number)
        for answer in (await http.put("/files/deep/f", content=CONTENT), await send(http, where, CONTENT)):
            assert (answer.status_code, answer.json()["title"]) == (507, "Insufficient Storage")
    assert everything(data / "deep") == ["f"]
    assert (data / "deep" / "f").read_bytes() == b"old", "what was there is there still"
    kept = int((await http.head(where, headers=TUS)).headers["upload-offset"])
    assert kept == (0 if call == "write" else len(CONTENT))
    assert (await send(http, where, CONTENT[kept:], kept)).status_code == 204, "once there is room, it goes on"
    assert (data / "deep" / "f").read_bytes() == CONTENT


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS], ids=errno.errorcode.get)
@pytest.mark.parametrize(
    ("call", "way"),
    [
        ("write", "put"), ("fsync", "put"), ("rename", "put"), ("unlink", "delete"), ("mkdir", "begin"),
        ("write", "send"), ("rename", "send"),
    ],
)  # fmt: skip
async def test_where_the_server_may_not_write_it_says_so_and_keeps_what_was_there(
    http: httpx.AsyncClient, data: Path, monkeypatch: pytest.MonkeyPatch, call: str, way: str, number: int
) -> None:
    (data / "deep" / "f").write_bytes(b"old")
    where = "" if way == "begin" else await create(http, "deep/f")
    told = {"Upload-Length": "1", "Upload-Metadata": f"path {b64encode(b'f').decode()}"}
    with monkeypatch.context() as while_refused:
        refuse(while_refused, call, number)
        match way:
            case "put":
                answer = await http.put("/files/deep/f", content=CONTENT)
            case "delete":
                answer = await http.delete("/files/deep/f")
            case "begin":
                answer = await http.post("/uploads", headers={**TUS, **told})
            case _:
                answer = await send(http, where, CONTENT)
    assert (answer.status_code, answer.json()["title"]) == (403, "Forbidden")
    assert os.strerror(number) in answer.json()["detail"]
    assert (data / "deep" / "f").read_bytes() == b"old"


class Turn:
    """The lock of a directory, held by another process as it were."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
        self._file = os.open(path, os.O_RDONLY)
        self.asked = asyncio.Event()
        loop, flock = asyncio.get_running_loop(), fcntl.flock
        flock(self._file, fcntl.LOCK_EX)

        def watched(file: int, how: int) -> None:
            if stat.S_ISDIR(os.fstat(file).st_mode) and how == fcntl.LOCK_EX:
                loop.call_soon_threadsafe(self.asked.set)
            flock(file, how)

        monkeypatch.setattr(fcntl, "flock", watched)

    def over(self) -> None:
        os.close(self._file)


@pytest.mark.parametrize("way", ["put", "tus", "delete"])
async def test_who_changes_a_directory_waits_for_its_turn_and_looks_again_when_it_has_come(
    http: httpx.AsyncClient, data: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    path = data / "deep" / "f"
    path.write_bytes(b"old")
    turn = Turn(monkeypatch, path.parent)
    doing = asyncio.create_task(delete(http, "deep/f") if way == "delete" else upload(http, way, "deep/f"))
    asking = asyncio.create_task(turn.asked.wait())
    await asyncio.wait({asking, doing}, return_when=asyncio.FIRST_COMPLETED)
    assert asking.done(), "it did not ask for its turn"
    assert path.read_bytes() == b"old"
    path.unlink()  # by the one whose turn it is
    if way != "delete":
        path.mkdir()
    turn.over()
    assert await doing == 404


async def delete(http: httpx.AsyncClient, path: str) -> int:
    return (await http.delete(f"/files/{path}")).status_code


class Vanishing:
    """A directory in which whatever is made for a file is removed before the file is there."""

    tries = 0

    def parent(self, path: str, *, create: bool) -> None:
        self.tries += 1
        assert self.tries < 10_000, "it tries for ever"
        raise Missing(path)


def test_who_never_finds_the_directory_it_has_made_gives_up() -> None:
    with pytest.raises(NotServed):
        Temporary(cast(ServedDirectory, Vanishing()), "deep/f")
