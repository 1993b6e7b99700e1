"""Clients that connect and do nothing, or only half of something: they cost little, and not for long."""

import asyncio
from contextlib import AsyncExitStack, suppress
from pathlib import Path

from tests.integration.test_framing import HANDSHAKE, request
from tests.integration.web import memory
from tests.processes import Process, Processes, until
from tests.system.stack import start
from tests.system.witness import witness

KIB = 1024
EACH = 1000
HALVES = {
    "silent": b"",
    "half a head": b"GET /jobs HTTP/1.1\r\nHost: loc",
    "half a body": request("POST", "/jobs", headers="Content-Type: application/json\r\nContent-Length: 99\r\n") + b"{",
}


class Idle:
    """One connection; `ended` when the server has closed it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, api: Process, data: bytes, answer: bytes = b"") -> "Idle":
        reader, writer = await asyncio.open_connection("127.0.0.1", int(api.url.rpartition(":")[2]))
        if data:
            writer.write(data)
        if answer:
            await reader.readuntil(answer)
        return cls(reader, writer)

    async def ended(self) -> bytes:
        with suppress(ConnectionError):
            return await self._reader.read()
        return b""

    def leave(self) -> None:
        self._writer.transport.abort()


async def test_connections_that_do_nothing_are_closed_in_time_and_jobs_go_on_beside_them(processes: Processes) -> None:
    stack = await start(processes, api={"MILLSTREAM_HEAD_S": "10", "MILLSTREAM_BODY_S": "10"})
    async with AsyncExitStack() as held, witness(stack.api) as client:
        idle = [await Idle.open(stack.api, data) for data in HALVES.values() for _ in range(EACH)]
        for connection in idle:
            held.callback(connection.leave)
        jobs = [await client.submit("process", {"text": str(n)}) for n in range(100)]
        ends = await client.ends(*jobs)
        assert [ends[job]["data"]["result"] for job in jobs] == [f"Processed data: {n}" for n in range(100)]
        async with asyncio.timeout(60):
            said = await asyncio.gather(*(connection.ended() for connection in idle))
        assert {answer[:12] for answer in said[:EACH]} == {b""}
        assert {answer[:12] for answer in said[EACH:]} == {b"HTTP/1.1 408"}


async def test_what_an_idle_connection_costs(processes: Processes) -> None:
    """At most 30 KiB in the API process; see docs/benchmarks.md for what it is."""
    stack = await start(processes)
    kinds = {
        "silent": (b"", b""),
        "HTTP": (request("GET", "/healthz"), b'"}'),
        "socket": (request("GET", "/ws", headers=HANDSHAKE), b"\r\n\r\n"),
        "JSON-RPC": (
            request("GET", "/ws", headers=HANDSHAKE + "Sec-WebSocket-Protocol: millstream.v1\r\n"),
            b"\r\n\r\n",
        ),
    }
    for kind, (data, answer) in kinds.items():
        before = memory(stack.api)
        async with AsyncExitStack() as held:
            for _ in range(EACH):
                held.callback((await Idle.open(stack.api, data, answer)).leave)
            grown = memory(stack.api) - before
        assert grown < 30 * KIB * EACH, f"{kind}: {grown / EACH / KIB:.1f} KiB each"

        async def closed() -> bool:
            return len(list(Path(f"/proc/{stack.api.pid}/fd").iterdir())) < EACH

        await until(closed, what="the connections to be closed")
