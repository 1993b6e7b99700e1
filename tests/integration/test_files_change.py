"""A file that changes while it is sent, a client that leaves or stalls, and files that are followed."""

import asyncio
import os
import random
import socket
import struct
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from tests.integration.conftest import Stack
from tests.integration.web import raw, web
from tests.processes import Process, Processes, open_files, until

MIB = 1024 * 1024
CONTENT = random.Random(3).randbytes(52 * MIB)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def api(stack: Stack, processes: Processes) -> AsyncIterator[Process]:
    settings = {"MILLSTREAM_SEND_TIMEOUT_S": "1", "MILLSTREAM_FOLLOW_S": "0.02"}
    api = await processes.api(stack.store, None, MILLSTREAM_DATA_DIR=str(stack.data), **settings)
    yield api
    await api.kill()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def few(stack: Stack, processes: Processes) -> AsyncIterator[Process]:
    """An API that takes few streams, and disconnects no client while a test counts them."""
    api = await processes.api(stack.store, None, MILLSTREAM_DATA_DIR=str(stack.data), MILLSTREAM_STREAMS="3")
    yield api
    await api.kill()


class Busy(Exception):
    """The server answered 503."""


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
        if b" 503 " in head.partition(b"\r\n")[0]:
            self.socket.close()
            raise Busy
        self.length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])

    def rest(self, before: int = 0) -> bytes:
        """The body, or as much of it as comes before the connection ends; `before`: what was read of it already."""
        got = bytearray()
        try:
            while len(got) + before < self.length and (data := self.socket.recv(MIB)):
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
async def test_what_was_opened_is_sent_to_its_end(stack: Stack, change: Callable[[Path], None]) -> None:
    path = stack.data / "change.bin"
    path.write_bytes(CONTENT)
    download = await asyncio.to_thread(Slow, stack.api, "change.bin")
    change(path)
    assert await asyncio.to_thread(download.rest) == CONTENT


async def test_a_file_that_is_cut_short_ends_the_connection_with_a_short_body(stack: Stack) -> None:
    path = stack.data / "cut.bin"
    path.write_bytes(CONTENT)
    download = await asyncio.to_thread(Slow, stack.api, "cut.bin")
    os.truncate(path, 30 * MIB)
    got = await asyncio.to_thread(download.rest)
    assert len(got) < len(CONTENT)
    assert got == CONTENT[: len(got)], "and never padding"
    assert len(got) <= 30 * MIB


async def no_streams(api: Process) -> bool:
    async with web(api) as http:
        return bool((await http.get("/streams")).json()["open"] == 0)


async def test_a_client_that_leaves_frees_its_file_and_one_that_stalls_is_dropped(stack: Stack, api: Process) -> None:
    path = stack.data / "held.bin"
    path.write_bytes(CONTENT)
    leaving = await asyncio.to_thread(Slow, stack.api, "held.bin")
    assert open_files(stack.api, path) == 1
    leaving.socket.close()

    async def left() -> bool:
        return open_files(stack.api, path) == 0

    async def dropped() -> bool:
        return open_files(api, path) == 0

    await until(left, what="the file of the client that left to be closed")
    stalling = await asyncio.to_thread(Slow, api, "held.bin")
    await until(dropped, what="the client that reads nothing to be dropped")
    assert len(await asyncio.to_thread(stalling.rest)) < len(CONTENT)


class Deaf:
    """A client that sends requests and reads nothing."""

    def __init__(self, api: Process, *paths: str) -> None:
        host, port = api.url.removeprefix("http://").split(":")
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.socket.settimeout(20)
        self.socket.connect((host, int(port)))
        self._ends = tuple(f":{int(number):04X}" for number in (port, self.socket.getsockname()[1]))
        while self.waiting() is None:  # the API's end is a moment behind
            pass
        self.socket.sendall("".join(f"GET /files/{path} HTTP/1.1\r\nHost: x\r\n\r\n" for path in paths).encode())

    def waiting(self) -> int | None:
        """The bytes that wait at the API's end of the connection for this client; None where that end is closed. The
        API may not know yet that the client has left.
        """
        held = {"01", "08"}  # ESTABLISHED, CLOSE_WAIT
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            _, local, remote, state, queues, *_ = line.split()
            if (local[8:], remote[8:]) == self._ends and state in held:
                return int(queues.partition(":")[0], 16)
        return None


DEAF = {
    "one large file": ["deaf.bin"],
    "many small files": ["deaf.small"] * 600,
    "a large file after smaller ones": ["deaf.small"] * 10 + ["deaf.txt"] * 70 + ["deaf.bin"] * 3,
    "a file that is followed": ["deaf.bin?follow=true"],
    "many that are followed": ["deaf.bin?follow=true"] * 3,
}


@pytest.mark.parametrize("resets", [False, True])
@pytest.mark.parametrize("paths", DEAF.values(), ids=DEAF)
async def test_a_client_that_reads_nothing_is_dropped_whatever_it_asked_for(
    stack: Stack, api: Process, paths: list[str], resets: bool
) -> None:
    (stack.data / "deaf.bin").write_bytes(CONTENT[: 20 * MIB])
    (stack.data / "deaf.txt").write_bytes(CONTENT[:60_000])
    (stack.data / "deaf.small").write_bytes(CONTENT[:32_000])

    client = Deaf(api, *paths)

    async def stuck() -> bool:
        return client.waiting() != 0

    async def dropped() -> bool:
        held = sum(open_files(api, stack.data / name) for name in ("deaf.bin", "deaf.txt", "deaf.small"))
        return not held and client.waiting() is None

    if resets:
        await until(stuck, what="more to be sent than the client takes")
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.socket.close()
    await until(dropped, what="the client to be dropped")
    await until(lambda: no_streams(api), what="all streams to end")
    assert '"level": "error"' not in api.log.read_text()
    client.socket.close()


async def test_a_client_that_leaves_in_the_middle_of_several_requests_frees_them_all(
    stack: Stack, api: Process
) -> None:
    path = stack.data / "several.log"
    path.write_bytes(b"0123456789")
    client = Deaf(api, *["several.log?follow=true"] * 3)

    async def followed() -> bool:
        return open_files(api, path) > 0

    async def freed() -> bool:
        return open_files(api, path) == 0

    await until(followed, what="the file to be followed")
    client.socket.close()
    await until(freed, what="the followed file to be closed")
    await until(lambda: no_streams(api), what="all streams to end")
    assert '"level": "error"' not in api.log.read_text()


async def test_requests_at_the_same_time_do_not_pass_the_limit_together(stack: Stack, few: Process) -> None:
    path = stack.data / "rush.bin"
    path.write_bytes(CONTENT)

    def status(number: int) -> int:
        path.touch()  # a file that has just changed is looked at a moment later
        try:
            held.append(Slow(few, "rush.bin"))
        except Busy:
            return 503
        return 200

    held: list[Slow] = []
    statuses = await asyncio.gather(*(asyncio.to_thread(status, number) for number in range(12)))
    for download in held:
        download.socket.close()
    assert sorted(statuses) == [200] * 3 + [503] * 9
    await until(lambda: no_streams(few), what="all streams to end")


async def test_more_streams_than_the_limit_are_told_to_come_back(stack: Stack, few: Process) -> None:
    (stack.data / "many.bin").write_bytes(CONTENT)
    held = [await asyncio.to_thread(Slow, few, "many.bin") for _ in range(3)]
    async with web(few) as http:
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


async def test_only_an_answer_that_sends_the_file_counts_as_a_stream(stack: Stack, api: Process) -> None:
    (stack.data / "counted.txt").write_bytes(b"0123456789")
    async with web(api) as http:
        before = (await http.get("/streams")).json()
        etag = (await http.head("/files/counted.txt")).headers["etag"]
        assert (await http.get("/files/counted.txt", headers={"If-None-Match": etag})).status_code == 304
        assert (await http.get("/files/counted.txt", headers={"If-Match": '"other"'})).status_code == 412
        assert (await http.get("/files/counted.txt", headers={"Range": "bytes=10-"})).status_code == 416
        seen = (await http.get("/streams")).json()
        assert (seen["streams"], seen["bytes_sent"]) == (before["streams"], before["bytes_sent"])
        assert (await http.get("/files/counted.txt", headers={"Range": "bytes=1-2"})).content == b"12"
        seen = (await http.get("/streams")).json()
        assert (seen["streams"], seen["bytes_sent"]) == (before["streams"] + 1, before["bytes_sent"] + 2)


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


async def test_a_followed_file_gives_a_sign_of_life_where_a_line_has_ended_if_that_is_asked_for(
    stack: Stack, api: Process
) -> None:
    path = stack.data / "quiet.log"
    path.write_bytes(b"half a line")
    asked = {"follow": "true", "heartbeat": "1"}
    async with web(api) as http, http.stream("GET", "/files/quiet.log", params=asked) as answer:
        parts = answer.aiter_bytes()
        assert await anext(parts) == b"half a line"
        waiting = asyncio.ensure_future(anext(parts))
        assert not (await asyncio.wait({waiting}, timeout=1.5))[0], "nothing within a line"
        with path.open("ab") as file:
            file.write(b", the rest\n")
        assert await waiting == b", the rest\n"
        assert [await anext(parts) for _ in range(2)] == [b"\n", b"\n"]
        with path.open("ab") as file:
            file.write(b"more")
        assert (await anext(parts)).lstrip(b"\n") == b"more"


async def test_who_half_closes_gets_what_a_followed_file_has_and_the_end(stack: Stack, api: Process) -> None:
    (stack.data / "half.log").write_bytes(b"0123456789" * 100_000)
    async with raw(api) as (reader, writer):
        writer.write(b"GET /files/half.log?follow=true HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        writer.write_eof()
        answer = await reader.read()
        assert answer.count(b"0123456789") > 99_990
        assert answer.endswith(b"\r\n0\r\n\r\n")


async def test_a_followed_file_that_is_cut_short_ends_with_an_error_and_is_freed_when_the_client_leaves(
    stack: Stack, api: Process
) -> None:
    path = stack.data / "cut.log"
    path.write_bytes(b"0123456789")
    async with web(api) as http:
        for offset in (0, 99):
            async with http.stream("GET", "/files/cut.log", params={"follow": "true", "offset": offset}) as answer:
                parts = answer.aiter_bytes()
                if not offset:
                    assert await anext(parts) == path.read_bytes()
                os.truncate(path, path.stat().st_size - 2)
                with pytest.raises(httpx.RemoteProtocolError):  # the body has no end
                    await anext(parts)
        async with http.stream("GET", "/files/cut.log", params={"follow": "true"}) as answer:
            assert await anext(answer.aiter_bytes()) == b"012345"
            assert open_files(api, path) == 1

        async def freed() -> bool:
            return open_files(api, path) == 0

        await until(freed, what="the followed file to be closed")
        assert (await http.head("/files/cut.log", params={"follow": "true"})).status_code == 200
        assert (await http.get("/files/none.log", params={"follow": "true"})).status_code == 404
        for wrong in ("-1", "x", "1.5"):
            refused = await http.get("/files/cut.log", params={"follow": "true", "offset": wrong})
            assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, "/offset")


async def test_following_from_behind_the_end_waits_until_the_file_has_grown_so_far(stack: Stack, api: Process) -> None:
    path = stack.data / "grows.log"
    path.write_bytes(b"01234")
    async with web(api) as http, http.stream("GET", "/files/grows.log", params={"follow": "true", "offset": 8}) as it:
        parts = it.aiter_bytes()
        for some in (b"5", b"67", b"89"):
            with path.open("ab") as file:
                file.write(some)
        assert await anext(parts) == b"89"
        path.unlink()
        assert [part async for part in parts] == []
