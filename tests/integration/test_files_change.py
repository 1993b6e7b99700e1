"""A file that changes while it is sent, a client that leaves or stalls, and files that are followed."""

import asyncio
import os
import random
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from tests.integration.conftest import Stack
from tests.integration.web import web
from tests.processes import Process, Processes, until

MIB = 1024 * 1024
CONTENT = random.Random(3).randbytes(24 * MIB)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def api(stack: Stack, processes: Processes) -> AsyncIterator[Process]:
    settings = {"MILLSTREAM_STREAMS": "3", "MILLSTREAM_SEND_TIMEOUT_S": "1", "MILLSTREAM_FOLLOW_S": "0.02"}
    api = await processes.api(stack.store, None, MILLSTREAM_DATA_DIR=str(stack.data), **settings)
    yield api
    await api.kill()


class Slow:
    """A download that stops after its headers, until it is told to go on."""

    def __init__(self, api: Process, path: str) -> None:
        host, port = api.url.removeprefix("http://").split(":")
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        self.socket.settimeout(20)
        self.socket.connect((host, int(port)))
        self.socket.sendall(f"GET /files/{path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        head = b""
        while b"\r\n\r\n" not in head:
            head += self.socket.recv(1)
        self.length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])

    def rest(self) -> bytes:
        """The body, or as much of it as comes before the connection ends."""
        got = bytearray()
        try:
            while len(got) < self.length and (data := self.socket.recv(MIB)):
                got += data
        except ConnectionResetError:
            pass
        self.socket.close()
        return bytes(got)


def replace(path: Path) -> None:
    (path.parent / "new").write_bytes(b"new")
    (path.parent / "new").rename(path)


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


@pytest.mark.parametrize("change", [replace, append, Path.unlink])
async def test_what_was_opened_is_sent_to_its_end(stack: Stack, api: Process, change: Callable[[Path], None]) -> None:
    path = stack.data / "change.bin"
    path.write_bytes(CONTENT)
    download = await asyncio.to_thread(Slow, api, "change.bin")
    change(path)
    assert await asyncio.to_thread(download.rest) == CONTENT


async def test_a_file_that_is_cut_short_ends_the_connection_with_a_short_body(stack: Stack, api: Process) -> None:
    path = stack.data / "cut.bin"
    path.write_bytes(CONTENT)
    download = await asyncio.to_thread(Slow, api, "cut.bin")
    os.truncate(path, 16 * MIB)
    got = await asyncio.to_thread(download.rest)
    assert len(got) < len(CONTENT)
    assert got == CONTENT[: len(got)], "and never padding"


def open_files(api: Process, path: Path) -> int:
    names = []
    for link in Path(f"/proc/{api.pid}/fd").iterdir():
        try:
            names.append(str(link.readlink()))
        except FileNotFoundError:
            continue
    return names.count(str(path))


async def test_a_client_that_leaves_frees_its_file_and_one_that_stalls_is_dropped(stack: Stack, api: Process) -> None:
    path = stack.data / "held.bin"
    path.write_bytes(CONTENT)
    leaving = await asyncio.to_thread(Slow, api, "held.bin")
    stalling = await asyncio.to_thread(Slow, api, "held.bin")
    assert open_files(api, path) == 2
    leaving.socket.close()

    async def left() -> bool:
        return open_files(api, path) <= 1

    async def dropped() -> bool:
        return open_files(api, path) == 0

    await until(left, what="the file of the client that left to be closed")
    await until(dropped, what="the client that reads nothing to be dropped")
    assert len(await asyncio.to_thread(stalling.rest)) < len(CONTENT)


async def test_more_streams_than_the_limit_are_told_to_come_back(stack: Stack, api: Process) -> None:
    (stack.data / "many.bin").write_bytes(CONTENT)
    held = [await asyncio.to_thread(Slow, api, "many.bin") for _ in range(3)]
    async with web(api) as http:
        answer = await http.get("/files/many.bin")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert "3" in answer.json()["detail"]
        streams = (await http.get("/streams")).json()
        assert streams["open"] == 3
        for download in held:
            download.socket.close()

        async def room() -> bool:
            return (await http.get("/files/many.bin", headers={"Range": "bytes=0-0"})).status_code == 206

        await until(room, what="room for another stream")


async def test_a_followed_file_is_sent_as_it_grows_until_it_is_gone(stack: Stack, api: Process) -> None:
    path = stack.data / "app.log"
    path.write_bytes(b"0123456789")
    async with web(api) as http, http.stream("GET", "/files/app.log", params={"follow": "true", "offset": 4}) as answer:
        assert answer.status_code == 200
        parts = answer.aiter_bytes()
        assert await anext(parts) == b"456789"
        for line in (b"one\n", b"two\n"):
            with path.open("ab") as file:
                file.write(line)
            assert await anext(parts) == line
        path.unlink()
        assert [part async for part in parts] == []


async def test_following_ends_when_the_file_is_cut_short_and_frees_it_when_the_client_leaves(
    stack: Stack, api: Process
) -> None:
    path = stack.data / "cut.log"
    path.write_bytes(b"0123456789")
    async with web(api) as http:
        async with http.stream("GET", "/files/cut.log", params={"follow": "true"}) as answer:
            parts = answer.aiter_bytes()
            assert await anext(parts) == b"0123456789"
            os.truncate(path, 3)
            assert [part async for part in parts] == []
        async with http.stream("GET", "/files/cut.log", params={"follow": "true"}) as answer:
            assert await anext(answer.aiter_bytes()) == b"012"
            assert open_files(api, path) == 1

        async def freed() -> bool:
            return open_files(api, path) == 0

        await until(freed, what="the followed file to be closed")
        for offset in ("-1", "x"):
            answer = await http.get("/files/cut.log", params={"follow": "true", "offset": offset})
            assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/offset")
