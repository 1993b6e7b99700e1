"""What a client may take of a connection: each limit, small, on a running API; beside it others are answered."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import pytest
import pytest_asyncio

from tests.integration.conftest import Stack
from tests.integration.test_framing import HANDSHAKE, request, statuses
from tests.integration.web import memory, raw, web
from tests.processes import Process, Processes, until
from tests.unit.test_frames import of_client

MIB = 1024 * 1024


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def hasty(stack: Stack, processes: Processes) -> AsyncIterator[Process]:
    """An API that waits for nobody."""
    api = await processes.api(
        stack.store, MILLSTREAM_DATA_DIR=str(stack.data), MILLSTREAM_HEAD_S="0.5", MILLSTREAM_BODY_S="0.5",
        MILLSTREAM_IDLE_S="0.5", MILLSTREAM_HEAD_FIELDS="20", MILLSTREAM_FRAGMENTS="16",
    )  # fmt: skip
    yield api
    await api.kill()


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"", None),  # a connection that says nothing
        (b"GET / HT", 408),
        (request("GET", "/healthz")[:-2], 408),
        (request("GET", "/ws", headers=HANDSHAKE)[:-2], 408),
        (request("PUT", "/files/slow", headers="Content-Length: 5\r\n") + b"hell", 408),
        (request("PUT", "/files/slow", headers="Transfer-Encoding: chunked\r\n") + b"5\r\nhell", 408),
        (request("POST", "/jobs", headers="Content-Length: 5\r\nContent-Type: application/json\r\n"), 408),
        (request("GET", "/healthz", headers="Content-Length: 5\r\n"), 200),
    ],
    ids=["nothing", "line", "head", "handshake", "body", "chunks", "json", "a body that nobody wants"],
)
async def test_a_client_that_does_not_go_on_is_told_and_closed(hasty: Process, data: bytes, status: int | None) -> None:
    async with raw(hasty) as (reader, writer):
        writer.write(data)
        answers = await reader.read()
        assert statuses(answers) == ([] if status is None else [status])
        assert await reader.read() == b""


async def test_a_connection_is_kept_for_the_next_request_and_then_closed(hasty: Process) -> None:
    async with raw(hasty) as (reader, writer):
        for _ in range(2):
            writer.write(request("GET", "/healthz"))
            assert (await reader.readuntil(b'"}')).startswith(b"HTTP/1.1 200 ")
        assert await reader.read() == b""


async def test_a_head_that_drips_has_the_time_of_a_head_and_no_more(hasty: Process) -> None:
    async with raw(hasty) as (reader, writer):
        answer = asyncio.ensure_future(reader.read())
        for byte in request("GET", "/healthz", headers="X: " + "x" * 1000):
            if answer.done():
                break
            with suppress(ConnectionError):
                writer.write(bytes([byte]))
                await writer.drain()
            await asyncio.sleep(0.02)
        assert statuses(await answer) == [408]


async def test_a_body_that_drips_is_waited_for(hasty: Process, home: Path) -> None:
    async with raw(hasty) as (reader, writer):
        writer.write(request("PUT", f"/files/{home.name}/f", headers="Content-Length: 8\r\n"))
        for _ in range(8):  # in all longer than the time for one part
            writer.write(b"x")
            await asyncio.sleep(0.1)
        assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 201 ")


async def test_more_headers_than_the_limit_are_refused(hasty: Process) -> None:
    async with raw(hasty) as (reader, writer):
        writer.write(request("GET", "/healthz", headers="X: x\r\n" * 20))
        assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 431 ")


# How much.


def endless(begin: bytes, piece: bytes) -> tuple[bytes, bytes]:
    """What is said first, and what is said again and again until the server has had enough, or 20 MB are sent."""
    return begin, piece * (100_000 // len(piece))


PUT = b"PUT /files/endless HTTP/1.1\r\nHost: localhost\r\n"
CHUNKED = PUT + b"Transfer-Encoding: chunked\r\n\r\n"
AMPLIFIED = {
    "trailers": endless(CHUNKED + b"0\r\n", b"Authorization: Bearer x\r\n"),
    "one trailer": endless(CHUNKED + b"0\r\nA: ", b"x"),
    "extensions of a chunk": endless(CHUNKED + b"5;", b"x"),
    "headers": endless(PUT, b"A: b\r\n"),
    "a target": endless(b"GET /", b"x"),
    "blank lines": endless(b"", b"\r\n"),
    "requests ahead": endless(request("GET", "/async_route?delay=20"), request("GET", "/healthz")),
    "requests whose answers are not read": endless(b"", request("GET", "/openapi.json")),
    "a body that nobody wants": endless(PUT + b"If-Match: *\r\nContent-Length: 100000000\r\n\r\n", b"x"),
    "chunks that nobody wants": endless(PUT + b"If-Match: *\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    "a message": endless(request("GET", "/ws", headers=HANDSHAKE) + b"\x81\xff\x00\x00\x00\x00\x10\x00\x00\x00", b"x"),
    "empty fragments": endless(
        request("GET", "/ws", headers=HANDSHAKE) + of_client(1, b"", final=False), of_client(0, b"", final=False)
    ),
    "small fragments": endless(
        request("GET", "/ws", headers=HANDSHAKE) + of_client(1, b"", final=False), of_client(0, b"x", final=False)
    ),
    "pongs": endless(request("GET", "/ws", headers=HANDSHAKE), of_client(10, b"")),
}


@pytest.mark.parametrize(("begin", "piece"), AMPLIFIED.values(), ids=AMPLIFIED)
async def test_who_sends_without_end_costs_little_memory_and_holds_nobody_up(
    stack: Stack, begin: bytes, piece: bytes
) -> None:
    before, answered = memory(stack.api), 0
    async with raw(stack.api) as (_, writer), web(stack.api) as http:
        with suppress(ConnectionError, TimeoutError):
            writer.write(begin)
            for sent in range(200):
                writer.write(piece)
                async with asyncio.timeout(1):  # it reads no further
                    await writer.drain()
                if sent % 20 == 0:
                    answered += (await http.get("/healthz")).status_code == 200
        assert answered
        assert (await http.get("/healthz")).status_code == 200
        writer.transport.abort()
        assert memory(stack.api) - before < 24 * MIB


async def test_a_large_upload_in_the_smallest_chunks_arrives(stack: Stack, home: Path) -> None:
    """And others have their turn, though each packet has thousands."""
    async with raw(stack.api) as (reader, writer), web(stack.api) as http:
        writer.write(b"PUT /files/%b/f HTTP/1.1\r\nHost: localhost\r\n" % home.name.encode())
        writer.write(b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 500_000)
        assert (await http.get("/healthz")).status_code == 200
        writer.write(b"0\r\n\r\n")
        assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 201 ")
    assert (home / "f").read_bytes() == b"x" * 500_000


# How many.


async def silent(api: Process, count: int, held: AsyncExitStack) -> None:
    for _ in range(count):
        await held.enter_async_context(raw(api))


async def test_beyond_the_limit_only_the_health_is_told_and_all_is_well_when_the_others_have_gone(
    stack: Stack, own_processes: Processes
) -> None:
    api = await own_processes.api(stack.store, MILLSTREAM_TOTAL_CONNECTIONS="10")
    async with AsyncExitStack() as held:
        await silent(api, 10, held)
        for _ in range(100):  # more than the reserve holds
            async with raw(api) as (reader, writer):
                writer.write(request("GET", "/healthz"))
                assert statuses(await reader.read()) == [200]
        await silent(api, 100, held)
        for path, status in (("/healthz", 200), ("/jobs", 503), ("/ws", 503)):
            async with raw(api) as (reader, writer):
                writer.write(request("GET", path, headers=HANDSHAKE if path == "/ws" else ""))
                head = await reader.read()
                assert statuses(head) == [status]
                assert (b"\r\nretry-after: 1\r\n" in head.lower()) is (status == 503)

    async def well() -> bool:
        async with web(api) as http:
            return (await http.get("/jobs")).status_code == 200

    await until(well, what="room for others")
