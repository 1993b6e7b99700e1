"""A client of `/ws` for tests: it keeps every frame as it came, and waits for what it is asked for."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from tests.processes import Process

Frame = dict[str, Any]
END = ("succeeded", "failed", "cancelled")


class Refused(Exception):
    """An error reply."""

    def __init__(self, error: Frame) -> None:
        super().__init__(error["message"])
        self.code: int = error["code"]
        self.message: str = error["message"]
        self.data: Frame = error["data"]


class Rpc:
    """`frames` holds what came, in its order."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.frames: list[Any] = []
        self.close_code: int | None = None
        self._ids = count(1)
        self._changed = asyncio.Condition()

    async def read(self) -> None:
        try:
            async for frame in self.socket:
                # NaN and Infinity, which json.loads would take, are no JSON.
                self.frames.append(json.loads(frame, parse_constant=_no_json))
                async with self._changed:
                    self._changed.notify_all()
        except ConnectionClosed:
            pass
        self.close_code = self.socket.close_code
        async with self._changed:
            self._changed.notify_all()

    async def wait(self, condition: Callable[[], bool], *, what: str, within_s: float = 15) -> None:
        try:
            async with asyncio.timeout(within_s), self._changed:
                await self._changed.wait_for(condition)
        except TimeoutError:
            raise AssertionError(
                f"timed out after {within_s} s waiting for {what}; last frames: {self.frames[-5:]}"
            ) from None

    async def send(self, frame: Any) -> None:
        await self.socket.send(frame if isinstance(frame, str) else json.dumps(frame))

    async def reply(self, id: Any) -> Frame:
        """The reply with this id."""
        found: list[Frame] = []

        def came() -> bool:
            found[:] = [f for f in self.frames if isinstance(f, dict) and "id" in f and f["id"] == id]
            return bool(found)

        await self.wait(came, what=f"the reply to {id!r}")
        return found[0]

    async def call(self, method: str, **params: Any) -> Any:
        """One request. Raises Refused."""
        id = f"c{next(self._ids)}"
        await self.send({"jsonrpc": "2.0", "method": method, "params": params, "id": id})
        reply = await self.reply(id)
        assert reply["jsonrpc"] == "2.0"
        assert ("result" in reply) != ("error" in reply)
        if "error" in reply:
            raise Refused(reply["error"])
        return reply["result"]

    async def submit(self, analysis: str, params: Frame | None = None, **options: Any) -> str:
        reply = await self.call("job.submit", analysis=analysis, params=params or {}, **options)
        job: str = reply["job"]
        return job

    def events(self, job: str) -> list[Frame]:
        """The events of a job that came so far."""
        notifications = (f for f in self.frames if isinstance(f, dict) and f.get("method") == "job.event")
        return [f["params"] for f in notifications if f["params"]["job"] == job]

    def types(self, job: str) -> list[str]:
        return [event["type"] for event in self.events(job)]

    async def until(self, job: str, type: str, times: int = 1) -> Frame:
        """Wait for an event of a type; returns the last one of them."""
        await self.wait(lambda: self.types(job).count(type) >= times, what=f"{type} of {job}")
        return [event for event in self.events(job) if event["type"] == type][-1]

    async def seen(self, job: str, count: int) -> None:
        """Wait for so many events of a job."""
        await self.wait(lambda: len(self.events(job)) >= count, what=f"{count} events of {job}")

    async def end(self, job: str) -> list[Frame]:
        """Wait for the end of a job; returns its events, which must have no gaps or duplicates."""
        await self.wait(lambda: bool(self.types(job)) and self.types(job)[-1] in END, what=f"the end of {job}")
        events = self.events(job)
        first = events[0]["seq"]
        assert [event["seq"] for event in events] == list(range(first, first + len(events)))
        return events

    async def run(self, analysis: str, params: Frame | None = None, **options: Any) -> Frame:
        """Submit, wait for the end, return the last event."""
        return (await self.end(await self.submit(analysis, params, **options)))[-1]


def _no_json(constant: str) -> Any:
    raise AssertionError(f"{constant} is not JSON")


@asynccontextmanager
async def rpc(api: Process, **options: Any) -> AsyncIterator[Rpc]:
    """A `millstream.v1` socket."""
    protocols = [Subprotocol("millstream.v1")]
    async with connect(api.ws, subprotocols=protocols, max_size=None, compression=None, **options) as socket:
        assert socket.subprotocol == "millstream.v1"
        client = Rpc(socket)
        reading = asyncio.create_task(client.read())
        try:
            yield client
        finally:
            await socket.close()
            await reading


@asynccontextmanager
async def plain(api: Process, query: str = "", **options: Any) -> AsyncIterator[ClientConnection]:
    """A socket in plain mode."""
    async with connect(api.ws + query, max_size=None, compression=None, **options) as socket:
        assert socket.subprotocol is None
        yield socket
