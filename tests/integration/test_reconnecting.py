"""Coming back to a store, or a server, that was away: soon, however long that was, and not all at the same moment."""

import asyncio
import json
import sys
from typing import Any

import pytest
import redis.asyncio as redis
from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.typing import Subprotocol

from millstream.client.client import Client
from millstream.store.embedded import free_port
from millstream.store.pipeline import Pipeline
from tests.processes import Processes, until

SILENCE_S = 1000.0  # which no test waits for


class Clock:
    """Stands in for asyncio in the module of `kind`: its pauses are written down, and pass at once until there were
    `count` of them; the next one lasts until `go` is set.
    """

    def __init__(self, count: int) -> None:
        self.pauses: list[float] = []
        self.passed = asyncio.Event()
        self.go = asyncio.Event()
        self._count = count

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)

    async def sleep(self, delay: float) -> None:
        if delay == SILENCE_S:
            await asyncio.sleep(delay)
        if len(self.pauses) == self._count:
            self.passed.set()
            await self.go.wait()
        self.pauses.append(delay)


def on_a_clock(monkeypatch: pytest.MonkeyPatch, kind: type, count: int) -> Clock:
    clock = Clock(count)
    monkeypatch.setattr(sys.modules[kind.__module__], "asyncio", clock)
    return clock


async def test_a_store_that_is_away_is_tried_again_soon_and_then_about_once_a_second_for_however_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = on_a_clock(monkeypatch, Pipeline, 1200)
    pipeline = Pipeline(f"redis://127.0.0.1:{free_port()}/0", name="p")
    opening = asyncio.create_task(pipeline.open())
    try:
        async with asyncio.timeout(20):
            await clock.passed.wait()
    finally:
        opening.cancel()
        await pipeline.close()
    assert clock.pauses[0] < 0.1
    later = clock.pauses[10:]
    assert 0.5 <= min(later) <= max(later) <= 1
    assert len(set(later)) > 100, "processes that lost the store together come back one by one"


async def test_after_an_outage_the_next_one_is_met_as_quickly_as_the_first(
    own_processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = on_a_clock(monkeypatch, Pipeline, 20)
    port = free_port()
    pipeline = Pipeline(f"redis://127.0.0.1:{port}/0", name="p", silence_s=SILENCE_S)
    opening = asyncio.create_task(pipeline.open(45))
    await clock.passed.wait()
    store = await own_processes.store(port)
    clock.go.set()
    await opening
    before = len(clock.pauses)

    async def tried_again() -> bool:
        return len(clock.pauses) > before

    async with redis.Redis.from_url(store.url) as client:
        await client.client_kill_filter(_type="normal", skipme=True)
        await until(tried_again, what="the connection to be made again")
    assert clock.pauses[before] < 0.1
    await pipeline.close()


async def test_a_client_comes_back_to_a_server_that_was_away_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = on_a_clock(monkeypatch, Client, 2000)
    port = free_port()

    async def answer(socket: ServerConnection) -> None:
        async for frame in socket:
            await socket.send(json.dumps({"jsonrpc": "2.0", "id": json.loads(frame)["id"], "result": {}}))

    async def refuse(*arguments: Any, **options: Any) -> ClientConnection:
        if clock.go.is_set():
            return await connect(*arguments, **options)
        raise ConnectionRefusedError  # as the kernel says, but at once

    async with (
        asyncio.timeout(20),
        serve(answer, "127.0.0.1", port, subprotocols=[Subprotocol("millstream.v1")]),
        Client(f"ws://127.0.0.1:{port}") as client,
    ):
        monkeypatch.setattr(sys.modules[Client.__module__], "connect", refuse)
        await client.drop_connection()
        await clock.passed.wait()
        clock.go.set()
        assert await client.call("ping") == {}
    assert clock.pauses[0] < 0.1
    assert max(clock.pauses) == 1
