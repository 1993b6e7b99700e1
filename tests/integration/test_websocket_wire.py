"""A WebSocket of our own against another implementation's client, and against clients that mean no good."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from starlette.types import Receive, Scope, Send
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from millstream_api.wire.connection import Socket, upgrade_of
from millstream_api.wire.http_connection import Limits
from tests.integration.conftest import Stack
from tests.integration.serving import port, serving
from tests.integration.test_framing import HANDSHAKE, request
from tests.integration.web import memory, raw
from tests.processes import until
from tests.unit.test_frames import of_client

MIB = 1024 * 1024


class Echo:
    """A listener that gives each message back; `closed` counts how often it was told that the client is gone."""

    wire: Socket
    paused = False

    def __init__(self) -> None:
        self.messages: list[str | bytes] = []
        self.lost = 0

    def on_text(self, text: str) -> None:
        self.messages.append(text)
        match text:
            case "fail":
                raise RuntimeError("a defect")
            case "pause":
                self.wire.pause()
            case "close":
                self.wire.close(4000, "enough")
            case _:
                self.wire.send(text)

    def on_binary(self, data: bytes) -> None:
        self.messages.append(data)

    def on_writable(self) -> None: ...

    def on_lost(self) -> None:
        self.lost += 1


@asynccontextmanager
async def echo() -> AsyncIterator[tuple[str, list[Echo]]]:
    """The address of a server, and its listeners in the order of their coming."""
    listeners: list[Echo] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        listener = Echo()
        listeners.append(listener)
        listener.wire = upgrade_of(scope).accept(None, listener)

    async with serving(app, Limits(message_bytes=MIB, fragments=10)) as url:
        yield url.replace("http", "ws"), listeners


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A socket whose bytes the test writes itself."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port(url))
    writer.write(request("GET", "/ws", headers=HANDSHAKE))
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
    try:
        yield reader, writer
    finally:
        writer.close()


async def test_messages_of_every_size_come_back_in_whole_and_in_fragments() -> None:
    async with echo() as (url, _), connect(url, max_size=None, proxy=None) as socket:
        for size in (0, 1, 125, 126, 65_535, 65_536, MIB):
            await socket.send("x" * size)
            assert await socket.recv() == "x" * size
        await socket.send(["a", "b" * 70_000, "", "ç"])
        assert await socket.recv() == "a" + "b" * 70_000 + "ç"


async def closed_with(socket: ClientConnection) -> tuple[int | None, str | None]:
    with pytest.raises(ConnectionClosed):
        await socket.recv()
    return socket.close_code, socket.close_reason


async def told_once(listener: Echo) -> None:
    async def told() -> bool:
        return listener.lost == 1

    await until(told, what="the listener to be told that its client is gone")


async def test_the_closing_handshake_from_both_sides() -> None:
    async with echo() as (url, listeners):
        async with connect(url, proxy=None) as socket:
            await socket.send("close")
            assert await closed_with(socket) == (4000, "enough")
        async with connect(url, proxy=None) as socket:
            await socket.close(4001, "mine")
            assert socket.close_code == 4001
        async with connect(url, proxy=None) as socket:
            socket.transport.abort()
        for listener in listeners:
            await told_once(listener)


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        (of_client(1, b"\xff"), 1007),
        (of_client(1, b"x" * (MIB + 1)), 1009),
        (of_client(1, b"", final=False) + of_client(0, b"", final=False) * 10, 1008),
        (of_client(1, b"x")[:1] + b"\x01x", 1002),
        (b"\x83\x80\x00\x00\x00\x00", 1002),
        (of_client(8, b"\x00"), 1002),
        (of_client(1, b"fail"), 1011),
    ],
    ids=["UTF-8", "size", "fragments", "mask", "opcode", "close", "defect"],
)
async def test_what_breaks_the_protocol_closes_with_its_code_also_twice_in_one_packet(frames: bytes, code: int) -> None:
    async with echo() as (url, listeners), opened(url) as (reader, writer):
        writer.write(of_client(1, b"good") + frames * 2 + of_client(1, b"late"))
        assert await reader.readexactly(6) == b"\x81\x04good"
        answer = await reader.read()
        assert (answer[0], int.from_bytes(answer[2:4]), len(answer)) == (0x88, code, 2 + answer[1])
        await told_once(listeners[0])
        assert "late" not in listeners[0].messages


async def test_of_many_pings_the_last_is_answered_and_none_while_the_client_reads_nothing(stack: Stack) -> None:
    pings = b"".join(of_client(9, b"%08d" % n) for n in range(200_000))
    before = memory(stack.api)
    async with raw(stack.api) as (reader, writer):
        writer.write(request("GET", "/ws", headers=HANDSHAKE))
        await reader.readuntil(b"\r\n\r\n")
        writer.write(pings + of_client(1, b"and a job"))
        seen = b""
        while b"and a job" not in seen:
            seen += await reader.read(MIB)
    assert b"%08d" % 199_999 in seen
    assert seen.count(b"\x8a\x08") < 20_000, "one for all that came together"
    assert memory(stack.api) - before < 16 * MIB


async def test_a_client_that_reads_nothing_and_pings_fills_no_memory(stack: Stack) -> None:
    ping = b"".join(of_client(9, bytes(125)) for _ in range(1000))
    before = memory(stack.api)
    async with raw(stack.api) as (reader, writer):
        writer.write(request("GET", "/ws", headers=HANDSHAKE))
        await reader.readuntil(b"\r\n\r\n")
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        for _ in range(400):  # 52 MB
            writer.write(ping)
            await writer.drain()
    assert memory(stack.api) - before < 16 * MIB


async def test_a_listener_that_pauses_is_told_nothing_and_no_more_is_read() -> None:
    async with echo() as (url, listeners), opened(url) as (reader, writer):
        writer.write(of_client(1, b"one") + of_client(1, b"pause") + of_client(1, b"two"))
        assert await reader.readexactly(5) == b"\x81\x03one"
        sent = 0
        while True:  # until all buffers on the way are full
            writer.write(of_client(1, b"x" * 1000))
            sent += 1
            try:
                async with asyncio.timeout(0.5):
                    await writer.drain()
            except TimeoutError:
                break
        assert listeners[0].messages == ["one", "pause"]
        await asyncio.to_thread(_resume, listeners[0])
        seen = b""
        while seen.count(b"x" * 1000) < sent:
            seen += await reader.read(MIB)
        assert seen.startswith(b"\x81\x03two")


def _resume(listener: Echo) -> None:
    loop: asyncio.AbstractEventLoop = listener.wire._loop  # type: ignore[attr-defined]
    loop.call_soon_threadsafe(listener.wire.resume)
