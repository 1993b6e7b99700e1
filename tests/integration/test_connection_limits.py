"""What a client may take of a connection: each limit, small, on a running API; beside it others are answered."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import pytest
import pytest_asyncio

from tests.integration.conftest import Stack
from tests.integration.test_framing import HANDSHAKE, request, statuses
from tests.integration.web import raw, web
from tests.processes import Process, Processes, until

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
