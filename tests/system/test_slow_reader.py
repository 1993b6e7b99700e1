"""A reader that stops reading costs the server nothing but a bounded buffer, the others nothing, and loses nothing."""

import asyncio
import json
import socket
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from websockets.asyncio.client import connect
from websockets.typing import Subprotocol

from tests.processes import Process, Processes, until
from tests.system.stack import start
from tests.system.witness import Json, check_whole, witness

CHUNKS = 100_000
PAUSE_S = 10
ALLOWED_BYTES = 30 * 1024 * 1024


class Memory:
    """The most memory that a process has had, sampled while this runs."""

    def __init__(self, process: Process) -> None:
        self.most = self.first = process.rss_bytes()
        self._process = process

    async def watch(self) -> None:
        while True:
            self.most = max(self.most, self._process.rss_bytes())
            await asyncio.sleep(0.02)


def narrow_socket(url: str) -> socket.socket:
    """A connected socket with a small receive buffer, so that little is under way when nothing is read."""
    address = urlsplit(url)
    narrow = socket.socket()
    narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
    narrow.connect((address.hostname, address.port))
    narrow.setblocking(False)
    return narrow


@pytest.mark.timeout(120)
async def test_a_reader_that_pauses_while_its_job_emits_a_lot_gets_it_all_and_costs_nothing(
    processes: Processes,
) -> None:
    stack = await start(processes, workers=2)
    async with witness(stack.api) as client:  # let the API have its working memory before it is measured
        await client.ends(await client.submit("counts", {"to": 20_000, "padding": 200}))
    memory = Memory(stack.api)
    watching = asyncio.create_task(memory.watch())
    protocols = [Subprotocol("millstream.v1")]
    async with (
        # Up to max_queue frames are taken from the transport; past that it is paused until recv() is called.
        connect(
            stack.api.ws,
            subprotocols=protocols,
            sock=narrow_socket(stack.api.url),
            max_queue=4,
            compression=None,
            ping_interval=None,  # it would answer no ping while it pauses
        ) as reader,
        connect(stack.api.ws, compression=None) as other,
        witness(stack.api) as looker,
    ):
        params = {"analysis": "counts", "params": {"to": CHUNKS, "padding": 200}}
        await reader.send(json.dumps({"jsonrpc": "2.0", "id": 1, "method": "job.submit", "params": params}))
        job = json.loads(await reader.recv())["result"]["job"]
        paused_at = time.monotonic()
        trips: list[float] = []

        async def over() -> bool:
            began = time.monotonic()
            await other.send("are you there?")
            assert await asyncio.wait_for(other.recv(), 20) == "Processed data: are you there?"
            trips.append(time.monotonic() - began)
            ended = (await looker.call("job.get", job=job))["status"] == "succeeded"
            return ended and time.monotonic() - paused_at >= PAUSE_S

        await until(over, what="the job to end", within_s=60)
        assert not reader.transport.is_reading()
        held = memory.most - memory.first
        events: list[Json] = []
        while not events or events[-1]["type"] != "succeeded":
            events.append(json.loads(await asyncio.wait_for(reader.recv(), 10))["params"])
        watching.cancel()
    assert check_whole(events, after=1)["data"]["result"] == CHUNKS
    assert [event["data"][0] for event in events if event["type"] == "chunk"] == list(range(1, CHUNKS + 1))
    trips.sort()
    print(
        f"memory: {memory.first / 2**20:.1f} MiB, while paused +{held / 2**20:.1f}, in all "
        f"+{(memory.most - memory.first) / 2**20:.1f}; {len(trips)} round trips meanwhile, median "
        f"{trips[len(trips) // 2] * 1000:.1f} ms, longest {trips[-1] * 1000:.0f} ms"
    )
    assert memory.most - memory.first <= ALLOWED_BYTES


async def test_a_reader_that_is_gone_in_the_middle_of_its_pause_is_forgotten(processes: Processes) -> None:
    stack = await start(processes)
    async with witness(stack.api) as client:
        await client.ends(await client.submit("process", {"text": ""}))
        protocols = [Subprotocol("millstream.v1")]
        readers = [
            await connect(
                stack.api.ws, subprotocols=protocols, sock=narrow_socket(stack.api.url), max_queue=4, compression=None
            )
            for _ in range(20)
        ]
        job = await client.submit("counts", {"to": 20_000, "padding": 200})
        for reader in readers:
            attach = {"jsonrpc": "2.0", "id": 1, "method": "job.attach", "params": {"job": job}}
            await reader.send(json.dumps(attach))
        await client.until([job], "chunk", times=10_000)
        for reader in readers:
            reader.transport.abort()
        await client.ends(job)

        async def gone() -> bool:
            return connections(stack.api) == 1  # that of `client`

        await until(gone, what="the sockets of those who left to be closed")
        await client.ends(await client.submit("process", {"text": "still well"}))


def connections(api: Process) -> int:
    """How many TCP connections to an API are established, from its side."""
    port = f"{urlsplit(api.url).port:04X}"
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return sum(line.split()[1].endswith(f":{port}") and line.split()[3] == "01" for line in lines)
