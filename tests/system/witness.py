"""A witness of what a socket is told: every event as it came, nothing mended or sorted; and what a log must be."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from itertools import count
from typing import Any

import redis.asyncio as redis
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from millstream.protocol.events import read_logged
from millstream.store import keys
from tests.processes import Process

Json = dict[str, Any]
JOB_FAILURES = ("succeeded", "failed", "cancelled")


class Witness:
    """One `millstream.v1` socket. `events` holds what came, by job; `notices` holds the other notifications.

    The reply to a `job.attach` or `job.detach` begins a job's events anew, before anything that came after it is read:
    who awaits the reply may run when more has been read with it.
    """

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.events: dict[str, list[Json]] = {}
        self.notices: list[Json] = []
        self.running: set[str] = set()  # jobs whose end has not come
        self._ids = count(1)
        self._replies: dict[int, tuple[asyncio.Future[Json], str | None]] = {}  # with the job that it begins anew
        self._news = asyncio.Event()

    async def read(self) -> None:
        with suppress(ConnectionClosed):
            async for frame in self.socket:
                self._receive(json.loads(frame))
                self._news.set()
        for reply, _ in self._replies.values():
            reply.cancel()
        self._news.set()

    def _receive(self, message: Json) -> None:
        if "id" in message:
            reply, anew = self._replies.pop(message["id"])
            if anew and "result" in message:
                self.events.pop(anew, None)
            reply.set_result(message)
        elif message["method"] == "job.event":
            event = message["params"]
            self.events.setdefault(event["job"], []).append(event)
            if event["type"] in JOB_FAILURES:
                self.running.discard(event["job"])
        else:
            self.notices.append(message)

    async def request(self, method: str, **params: Any) -> Json:
        """The whole reply, be it a result or an error."""
        id = next(self._ids)
        reply: asyncio.Future[Json] = asyncio.get_running_loop().create_future()
        self._replies[id] = reply, params["job"] if method in ("job.attach", "job.detach") else None
        await self.socket.send(json.dumps({"jsonrpc": "2.0", "id": id, "method": method, "params": params}))
        return await reply

    async def call(self, method: str, **params: Any) -> Any:
        reply = await self.request(method, **params)
        assert "error" not in reply, reply["error"]
        return reply["result"]

    async def submit(self, analysis: str, params: Json | None = None, **options: Any) -> str:
        reply = await self.call("job.submit", analysis=analysis, params=params or {}, **options)
        job: str = reply["job"]
        if not any(event["type"] in JOB_FAILURES for event in self.events.get(job, ())):
            self.running.add(job)
        return job

    async def attach(self, job: str, after: str | None = None) -> Json:
        reply: Json = await self.call("job.attach", job=job, **({"after": after} if after else {}))
        return reply

    def of(self, job: str, *types: str) -> list[Json]:
        """The events of a job that came so far, of all types or of these."""
        return [event for event in self.events.get(job, ()) if not types or event["type"] in types]

    async def until(self, jobs: Iterable[str], *types: str, within_s: float = 30, times: int = 1) -> None:
        """Wait until each of the jobs has had so many events of these types."""
        waiting = set(jobs)

        async def come() -> None:
            while waiting:
                waiting.difference_update([job for job in waiting if len(self.of(job, *types)) >= times])
                if waiting:
                    self._news.clear()
                    await self._news.wait()

        try:
            await asyncio.wait_for(come(), within_s)
        except TimeoutError:
            some = {job: [event["type"] for event in self.of(job)][-8:] for job in list(waiting)[:3]}
            what = f"timed out after {within_s} s waiting for {types}; {len(waiting)} jobs had none, of them {some}"
            raise AssertionError(what) from None

    async def until_any(self, *types: str) -> None:
        """Wait until some job has had an event of these types."""
        async with asyncio.timeout(30):
            while not any(self.of(job, *types) for job in self.events):
                self._news.clear()
                await self._news.wait()

    async def ends(self, *jobs: str, within_s: float = 30) -> dict[str, Json]:
        """Wait for the end of each job. Returns the last events, after a look at the whole of each job's log."""
        await self.until(jobs, *JOB_FAILURES, within_s=within_s)
        return {job: check_whole(self.of(job), after=1) for job in jobs}


@asynccontextmanager
async def witness(api: Process, **options: Any) -> AsyncIterator[Witness]:
    protocols = [Subprotocol("millstream.v1")]
    async with connect(api.ws, subprotocols=protocols, max_size=None, compression=None, **options) as socket:
        client = Witness(socket)
        reading = asyncio.create_task(client.read())
        try:
            yield client
        finally:
            await socket.close()
            await reading


def check_whole(events: list[Json], *, after: int = 0) -> Json:
    """No gaps or duplicates in what follows `after`, one end, and it comes last. Returns that end."""
    seqs = [event["seq"] for event in events]
    assert seqs == list(range(after + 1, after + 1 + len(events))), f"seq is broken: {seqs}"
    assert [event["type"] for event in events if event["type"] in JOB_FAILURES] == [events[-1]["type"]]
    return events[-1]


def check_one_worker_wrote_it(log: list[Json]) -> None:
    """The process ids that the last attempt emitted come from the worker that the log names, and from no other."""
    worker = [event for event in log if event["type"] == "started"][-1]["data"]["worker"]
    last = [event["data"] for event in log if event["type"] == "chunk" and event["attempt"] == log[-1]["attempt"]]
    assert len(last) == 3
    assert {f"-{pid}-" in worker for pid in [*last, check_whole(log)["data"]["result"]]} == {True}


def at(event: Json) -> float:
    """When an event was written, by the store's clock (Unix seconds)."""
    return datetime.fromisoformat(event["at"]).timestamp()


async def logged(store: Process, job: str) -> list[Json]:
    """A job's whole log as the store holds it."""
    async with redis.Redis.from_url(store.url) as client:
        entries = await client.xrange(keys.LOG + job)
    return [json.loads(read_logged(job, fields[b"e"]).as_json()) for _, fields in entries]
