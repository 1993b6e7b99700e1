"""What sendfile must mind on a connection that others write to, leave, and share the loop with."""

import asyncio
import os
import random
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from millstream_api.wire import zerocopy
from millstream_api.wire.answering import ANSWER
from millstream_api.wire.answers import Answer, Span
from millstream_api.wire.connection import CONNECTION
from tests.integration.serving import port, serving
from tests.processes import until

SIZE = 3 * 1024 * 1024 + 5
CONTENT = random.Random(5).randbytes(SIZE)
ASK = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file.bin"
    path.write_bytes(CONTENT)
    return path


async def send_whole(send: Send, path: Path, on_sent: Callable[[int], object] = lambda count: None) -> None:
    size = path.stat().st_size
    answer = Answer(200, b"content-length: %d\r\n" % size, (Span(0, size),))
    with path.open("rb") as file:
        await send({"type": ANSWER, "answer": answer, "file": file.fileno(), "on_sent": on_sent})


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
async def test_what_the_transport_still_holds_goes_before_the_file(path: Path, loop: str) -> None:
    """Less than makes it say that it is full: the end of an answer before, to a client that only now reads on."""
    client = socket.socket()
    written = received = b""
    begun = threading.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal written, received
        transport: Any = scope["extensions"][CONNECTION]
        transport.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 100_000)
        written = b""
        while not transport.get_write_buffer_size():
            written += b"x" * 10_000
            transport.write(b"x" * 10_000)
            transport.flush()
        assert transport.get_write_buffer_size() < transport.transport.get_write_buffer_limits()[1]
        client.setblocking(True)
        received = client.recv(len(written) // 2, socket.MSG_WAITALL)  # now the socket would take the file
        client.setblocking(False)
        begun.set()
        await send_whole(send, path)

    async with serving(app, loop=loop) as url:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 100_000)
        client.setblocking(False)
        running = asyncio.get_running_loop()
        with client:
            await running.sock_connect(client, ("127.0.0.1", port(url)))
            for _ in range(2):  # the second answer tells that the connection is in order
                await running.sock_sendall(client, ASK)
                assert await asyncio.to_thread(begun.wait, 10)
                begun.clear()
                while not received.endswith(CONTENT[-100:]):
                    received += await asyncio.wait_for(running.sock_recv(client, 1024 * 1024), 10)
                before, _, body = received.partition(b"HTTP/1.1 200 ")
                assert before == written
                assert body.partition(b"\r\n\r\n")[2] == CONTENT


async def test_a_descriptor_that_has_become_anothers_gets_nothing(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client leaves while a window is read from a cold disk, and its socket's number is given to a file."""
    reading, go_on = threading.Event(), threading.Event()

    def slow_disk(file: int, offset: int, count: int) -> None:
        reading.set()
        assert go_on.wait(10)

    monkeypatch.setattr(zerocopy, "cached", lambda *_: False)
    monkeypatch.setattr(zerocopy, "read_ahead", slow_disk)
    number = -1
    ended = threading.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal number
        number = scope["extensions"][CONNECTION].fileno()
        try:
            await send_whole(send, path)
        finally:
            ended.set()

    async with serving(app) as url:
        _, writer = await asyncio.open_connection("127.0.0.1", port(url))
        writer.write(ASK)
        assert await asyncio.to_thread(reading.wait, 10)
        writer.transport.abort()

        async def closed() -> bool:
            with suppress(OSError):
                os.fstat(number)
                return False
            return True

        await until(closed, what="the server to close the socket")
        other = os.open(tmp_path / "other", os.O_CREAT | os.O_WRONLY)
        os.dup2(other, number)
        go_on.set()
        assert await asyncio.to_thread(ended.wait, 10)
        os.close(other)
        if number != other:
            os.close(number)
    assert (tmp_path / "other").read_bytes() == b""


async def test_what_is_not_in_the_page_cache_is_read_ahead_in_a_thread_window_by_window(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[tuple[int, int]] = []
    threads: set[threading.Thread] = set()
    loops: set[threading.Thread] = set()

    def read_ahead(file: int, offset: int, count: int) -> None:
        read.append((offset, count))
        threads.add(threading.current_thread())

    monkeypatch.setattr(zerocopy, "cached", lambda *_: False)
    monkeypatch.setattr(zerocopy, "read_ahead", read_ahead)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        loops.add(threading.current_thread())
        await send_whole(send, path)

    async with serving(app) as url:
        reader, writer = await asyncio.open_connection("127.0.0.1", port(url))
        writer.write(ASK)
        await reader.readuntil(b"\r\n\r\n")
        assert await reader.readexactly(SIZE) == CONTENT
        writer.close()
    assert threads.isdisjoint(loops)
    assert {count for _, count in read} <= set(range(1, zerocopy.WINDOW + 1))
    assert [offset for offset, _ in read] == sorted(offset for offset, _ in read)
    covered = 0
    for offset, count in read:
        assert offset <= covered, "nothing is sent that was not looked at"
        covered = max(covered, offset + count)
    assert covered == SIZE


async def test_streams_take_turns(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two clients that take all that comes: each gets a window in its turn."""
    windows = 10
    os.truncate(path, windows * zerocopy.WINDOW)
    paths: list[str] = []
    both_begun = asyncio.Event()
    order: list[str] = []
    monkeypatch.setattr(zerocopy, "cached", lambda *_: True)
    monkeypatch.setattr(os, "sendfile", lambda out, file, offset, count: count)  # the fastest client there is

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        paths.append(scope["path"])
        if len(paths) == 2:
            both_begun.set()
        await asyncio.wait_for(both_begun.wait(), 10)
        await send_whole(send, path, lambda count: order.append(scope["path"]))

    async with serving(app) as url:
        writers = [(await asyncio.open_connection("127.0.0.1", port(url)))[1] for _ in range(2)]
        for n, writer in enumerate(writers):
            writer.write(b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % n)

        async def both_sent() -> bool:
            return len(order) == 2 * windows

        await until(both_sent, what="both to be sent")
        for writer in writers:
            writer.close()
    assert len(set(order[-4:])) == 2, "the first to begin does not keep the other waiting to its end"


async def test_requests_that_came_together_are_all_read_before_the_first_is_answered(path: Path) -> None:
    """The loop is held until all of them are there."""
    held, go_on = threading.Event(), threading.Event()
    order: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/hold":
            held.set()
            assert go_on.wait(10)
        order.append("read")
        await send_whole(send, path, lambda count: order.append("sent"))

    async def receive_whole(reader: asyncio.StreamReader) -> None:
        await reader.readuntil(b"\r\n\r\n")
        assert await reader.readexactly(100_000) == CONTENT[:100_000]

    os.truncate(path, 100_000)  # one window
    async with serving(app) as url:
        connections = [await asyncio.open_connection("127.0.0.1", port(url)) for _ in range(4)]
        (first_reader, first), *others = connections
        for reader, writer in others:  # so that they are accepted
            writer.write(ASK)
            await receive_whole(reader)
        first.write(b"GET /hold HTTP/1.1\r\nHost: x\r\n\r\n")
        assert await asyncio.to_thread(held.wait, 10)
        for _, writer in others:
            writer.write(ASK)
        go_on.set()
        for reader, writer in (first_reader, first), *others:
            await receive_whole(reader)
            writer.close()
    assert order[-6:] == ["read"] * 3 + ["sent"] * 3
