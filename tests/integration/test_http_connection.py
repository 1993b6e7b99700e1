"""What is written in one tick of the loop leaves as one write, and nothing waits longer than that."""

import asyncio
import gc
import socket
import threading
from asyncio.selector_events import _SelectorSocketTransport  # type: ignore[attr-defined]
from typing import Any

import httpx
import pytest
from starlette.types import Receive, Scope, Send
from websockets.asyncio.client import connect

from millstream_api.wire.connection import CONNECTION, Socket, upgrade_of
from millstream_api.wire.http_connection import KEEPALIVE, MAX_BUFFERED_BYTES, HttpConnection
from tests.integration.serving import port, serving
from tests.processes import until


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is written to sockets of this process: `h` HTTP headers, `b` bytes of a body, `m` a message."""
    seen: list[str] = []
    write = _SelectorSocketTransport.write

    def noted(self: _SelectorSocketTransport, data: bytes) -> None:
        if data.startswith(b"HTTP/1.1"):
            seen.append("h" + "b" * min(1, len(data.partition(b"\r\n\r\n")[2])))
        elif data[:1] == b"\x81" and not data[1] & 0x80:  # a server's text frame
            seen.append("m" * data.count(b"message"))
        elif data and set(data) <= set(b"x"):
            seen.append("b")
        write(self, data)

    monkeypatch.setattr(_SelectorSocketTransport, "write", noted)
    return seen


class Silent:
    """A listener that says nothing of its own accord; `heard`: what it was told."""

    wire: Socket

    def __init__(self) -> None:
        self.heard: list[str] = []

    def on_text(self, text: str) -> None:
        self.heard.append(text)

    def on_binary(self, data: bytes) -> None:
        self.heard.append(repr(data))

    def on_writable(self) -> None:
        self.heard.append("writable")

    def on_lost(self) -> None:
        self.heard.append("lost")


async def test_headers_and_a_small_body_leave_together(written: list[str]) -> None:
    sizes = {
        "/small": 5,
        "/empty": 0,
        "/parts": 10,
        "/edge": MAX_BUFFERED_BYTES,
        "/large": MAX_BUFFERED_BYTES + 1,
        "/later": 5,
    }
    later = threading.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        path, headers = scope["path"], [(b"content-length", str(sizes[scope["path"]]).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        if path == "/later":
            assert await asyncio.to_thread(later.wait, 10)
        for _ in range(2 if path == "/parts" else 1):
            body = b"x" * (sizes[path] // (2 if path == "/parts" else 1))
            await send({"type": "http.response.body", "body": body, "more_body": path == "/parts"})
        if path == "/parts":
            await send({"type": "http.response.body", "body": b""})

    expected = {"/small": ["hb"], "/empty": ["h"], "/parts": ["hb"], "/edge": ["hb"], "/large": ["h", "b"]}
    async with (
        serving(app, loop="asyncio") as url,
        httpx.AsyncClient(base_url=url, trust_env=False) as http,
    ):
        for path, as_what in expected.items():
            for connection in ("keep-alive", "close"):
                written.clear()
                assert (await http.get(path, headers={"Connection": connection})).content == b"x" * sizes[path]
                assert written == as_what, path
        written.clear()
        assert (await http.head("/small")).headers["content-length"] == "5"
        assert written == ["h"]
        written.clear()
        async with http.stream("GET", "/later") as answer:
            assert (answer.status_code, written) == (200, ["h"]), "headers wait for no body"
            later.set()
            assert await answer.aread() == b"xxxxx"
        assert written == ["h", "b"]


async def test_messages_of_one_tick_leave_together_and_a_close_behind_them(written: list[str]) -> None:
    many = 3 * MAX_BUFFERED_BYTES // 1000

    class Talk(Silent):
        def on_text(self, text: str) -> None:
            for _ in range(many):
                self.wire.send("message" + "." * 1000)
            self.wire.close(1012)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        talk = Talk()
        talk.wire = upgrade_of(scope).accept(None, talk)
        for text in ("message 1", "message 2", "message 3"):
            talk.wire.send(text)

    async with (
        serving(app, loop="asyncio") as url,
        connect(url.replace("http", "ws"), proxy=None) as socket,
    ):
        assert [await socket.recv() for _ in range(3)] == ["message 1", "message 2", "message 3"]
        assert written == ["hb"], "with the handshake"
        written.clear()
        await socket.send("go on")
        assert [await socket.recv() for _ in range(many)] == ["message" + "." * 1000] * many
        assert (3 <= len(written) < 6, sum(map(len, written))) == (True, many), "bounded, and complete"
        await socket.wait_closed()
        assert socket.close_code == 1012


async def test_all_requests_of_a_connection_are_offered_the_same_object_and_each_begins_untimed() -> None:
    seen: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        shown = scope["extensions"][CONNECTION]
        seen.append(shown)
        assert not shown.timed
        shown.timed = True
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    async with serving(app) as url:
        reader, writer = await asyncio.open_connection("127.0.0.1", port(url))
        for pipelined in (1, 3, 1):
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * pipelined)
            for _ in range(pipelined):
                assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
        writer.close()
    assert len(seen) == 5
    assert len({id(shown) for shown in seen}) == 1


async def test_a_client_that_vanished_is_found_by_the_system() -> None:
    seen: list[int] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        found = scope["extensions"][CONNECTION].transport.get_extra_info("socket")
        seen.append(found.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))
        seen.extend(found.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in KEEPALIVE)
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    async with serving(app) as url, httpx.AsyncClient(trust_env=False) as http:
        assert (await http.get(url)).status_code == 204
    assert seen == [1, *KEEPALIVE.values()]


async def test_a_closed_connection_leaves_nothing_to_the_garbage_collector() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    def alive() -> int:
        return sum(isinstance(found, HttpConnection) for found in gc.get_objects())

    async def all_freed() -> bool:
        return alive() == before

    gc.collect()
    before = alive()
    gc.disable()
    try:
        async with serving(app) as url:
            for _ in range(2):
                reader, writer = await asyncio.open_connection("127.0.0.1", port(url))
                writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
                assert alive() == before + 1
                writer.close()
                await until(all_freed, what="the connection to be freed")
    finally:
        gc.enable()


async def test_a_connection_that_was_asked_over_http_can_become_a_socket() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
            await send({"type": "http.response.body", "body": b"ok"})
            return
        talk = Silent()
        talk.wire = upgrade_of(scope).accept(None, talk)
        talk.wire.send("hello")
        talk.wire.close(1000)

    async with serving(app) as url:
        reader, writer = await asyncio.open_connection("127.0.0.1", port(url))
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
        writer.write(
            b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
        assert await reader.readexactly(7) == b"\x81\x05hello"
        writer.close()
