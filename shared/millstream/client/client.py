"""The Python client: submit, watch, and resume after a broken connection.

    async with Client("ws://127.0.0.1:8000/ws") as client:
        job = await client.submit("text.stats", {"text": text})
        async for event in job:
            print(event["type"], event["data"])
        print(job.result)

It reconnects, and every job that is being watched continues from its cursor: no event is
missed or repeated. A submit whose reply got lost is sent again with the same idempotency key, so it is one
job. Where coming back would be refused again, because the key was revoked or may not read, waiting ends with
RequestFailed.
"""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator
from contextlib import suppress
from ipaddress import ip_address
from itertools import count
from typing import Any, Self
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.http11 import Response
from websockets.typing import Subprotocol

from millstream.backoff import backoff_s
from millstream.protocol.errors import PROBLEM_TYPES
from millstream.protocol.event_types import TERMINAL_TYPES

Event = dict[str, Any]
REFUSED_FOR_GOOD = {PROBLEM_TYPES[slug].status: slug for slug in ("unauthorized", "forbidden")}


class RequestFailed(Exception):
    """The server refused a request: `slug` and `detail` as in the protocol's list of errors."""

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(error["message"])
        self.code: int = error["code"]
        self.slug: str = error.get("data", {}).get("type", "").rpartition("/")[2]
        self.detail: str = error["message"]


class JobFailed(Exception):
    """The job ended without a result; `event` is its last one."""

    def __init__(self, event: Event) -> None:
        super().__init__(str(event["data"].get("error", {}).get("message") or event["type"]))
        self.event = event


class Job:
    """A job that is being watched: iterate over it for its events, once."""

    def __init__(self, client: "Client", id: str, cursor: str | None, events: str) -> None:
        self.id = id
        self.cursor = cursor
        self.last: Event | None = None
        self._client = client
        self._events = events
        self._queue: asyncio.Queue[Event | RequestFailed] = asyncio.Queue()

    async def __aiter__(self) -> AsyncIterator[Event]:
        while self.last is None or self.last["type"] not in TERMINAL_TYPES:
            item = await self._queue.get()
            if isinstance(item, RequestFailed):
                raise item
            self.last = item
            yield item

    async def done(self) -> Any:
        """Wait for the end. Returns the result; raises JobFailed, RequestFailed."""
        async for _ in self:
            pass
        assert self.last is not None
        if self.last["type"] != "succeeded":
            raise JobFailed(self.last)
        return self.last["data"]["result"]

    async def cancel(self, reason: str | None = None) -> dict[str, Any]:
        snapshot: dict[str, Any] = await self._client.call("job.cancel", {"job": self.id, "reason": reason})
        return snapshot

    def _refuse(self, error: RequestFailed) -> None:
        """No more events come."""
        self._queue.put_nowait(error)

    def _deliver(self, event: Event) -> None:
        self.cursor = event["cursor"]
        self._queue.put_nowait(event)


class Client:
    """A connection to `/ws` that is made again when it breaks. `gaps` counts the server's notices of lost events."""

    def __init__(self, url: str, *, key: str | None = None, give_up_s: float = 60) -> None:
        self.url = url
        self.gaps = 0
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._give_up_s = give_up_s
        self._ids = count(1)
        self._socket: ClientConnection | None = None
        self._connected = asyncio.Event()
        self._replies: dict[int, asyncio.Future[Any]] = {}
        self._jobs: dict[str, Job] = {}
        self._early: dict[str, list[Event]] = {}
        self._keeper: asyncio.Task[None] | None = None
        self._refused: RequestFailed | None = None

    async def __aenter__(self) -> Self:
        """Raises RequestFailed when the server refuses the key, OSError when it cannot be reached."""
        await self._connect()
        self._keeper = asyncio.create_task(self._keep())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._keeper:
            self._keeper.cancel()
            with suppress(asyncio.CancelledError):
                await self._keeper
        if self._socket:
            await self._socket.close()

    async def call(self, method: str, params: dict[str, Any] | None = None) -> Any:
        """One request. Raises RequestFailed; ConnectionError when the connection broke before the reply."""
        async with asyncio.timeout(self._give_up_s):
            await self._connected.wait()
            if self._refused:
                raise self._refused
            return await self._call(method, params or {})

    async def submit(self, analysis: str, params: dict[str, Any], *, events: str = "all", **options: Any) -> Job:
        """Submit a job (options as in the protocol: timeout_s, max_attempts, priority, …) and watch it."""
        request = {"analysis": analysis, "params": params, "events": events, "key": secrets.token_hex(16), **options}
        while True:
            try:
                reply = await self.call("job.submit", request)
            except ConnectionError:
                await asyncio.sleep(0.01)
                continue
            except RequestFailed as error:
                if error.slug != "draining":
                    raise
                await asyncio.sleep(0.1)  # this connection is about to be closed
                continue
            return self._watch(Job(self, reply["job"], reply["cursor"], events))

    async def attach(self, job: str, after: str | None = None, *, events: str = "all") -> Job:
        """Watch a job that exists, from a cursor on or from its start."""
        watched = Job(self, job, after, events)
        await self.call("job.attach", _attach(watched))
        return self._watch(watched)

    def _watch(self, job: Job) -> Job:
        self._jobs[job.id] = job
        for event in self._early.pop(job.id, ()):
            job._deliver(event)
        return job

    async def drop_connection(self) -> None:
        """Break the connection as a bad network would (for tests and demonstrations)."""
        if self._socket:
            self._socket.transport.abort()

    async def _connect(self) -> None:
        try:
            self._socket = await connect(
                self.url, subprotocols=[Subprotocol("millstream.v1")], additional_headers=self._headers, max_size=None,
                compression=None, proxy=None if _is_loopback(self.url) else True,
            )  # fmt: skip
        except InvalidStatus as error:
            if error.response.status_code in REFUSED_FOR_GOOD:
                raise _refusal(error.response) from None
            raise
        self._connected.set()

    async def _call(self, method: str, params: dict[str, Any]) -> Any:
        id = next(self._ids)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._replies[id] = future
        try:
            assert self._socket is not None
            await self._socket.send(json.dumps({"jsonrpc": "2.0", "id": id, "method": method, "params": params}))
            return await future
        except ConnectionClosed as error:
            raise ConnectionError(str(error)) from None
        finally:
            self._replies.pop(id, None)
            if future.done() and not future.cancelled():
                future.exception()  # mark as retrieved: the caller may be gone

    async def _keep(self) -> None:
        while True:
            assert self._socket is not None
            resuming = asyncio.create_task(self._resume())
            with suppress(ConnectionClosed):
                async for frame in self._socket:
                    self._receive(json.loads(frame))
            resuming.cancel()
            self._connected.clear()
            for future in self._replies.values():
                if not future.done():
                    future.set_exception(ConnectionError("the connection broke"))
            for failures in count(1):
                await asyncio.sleep(backoff_s(failures, first_s=0.02, max_s=1))
                with suppress(OSError, InvalidHandshake, InvalidStatus, TimeoutError):
                    try:
                        await self._connect()
                    except RequestFailed as error:
                        self._give_up(error)
                        return
                    break

    def _give_up(self, error: RequestFailed) -> None:
        self._refused = error
        self._connected.set()  # for those who wait: there is nothing to wait for
        for job in self._jobs.values():
            job._refuse(error)
        self._jobs.clear()

    async def _resume(self) -> None:
        """After a new connection: go on with every watched job from its cursor."""
        with suppress(ConnectionError):
            for job in tuple(self._jobs.values()):
                await self._resume_one(job)

    async def _resume_one(self, job: Job) -> None:
        while True:
            try:
                await self._call("job.attach", _attach(job))
            except RequestFailed as error:
                if error.slug in REFUSED_FOR_GOOD.values():
                    self._jobs.pop(job.id, None)
                    job._refuse(error)
                    return
                if error.slug != "job_not_found":  # the store is away, say
                    await asyncio.sleep(0.1)
                    continue
                self._fail_lost(job, error.detail)
            return

    def _fail_lost(self, job: Job, detail: str) -> None:
        """The server no longer has the job: end the iteration of its reader."""
        self._jobs.pop(job.id, None)
        error = {"code": "job_not_found", "message": detail}
        job._deliver({"job": job.id, "cursor": job.cursor, "type": "failed", "data": {"error": error}})

    def _receive(self, message: dict[str, Any]) -> None:
        if "method" not in message:
            future = self._replies.get(message["id"])
            if future and not future.done():
                if "error" in message:
                    future.set_exception(RequestFailed(message["error"]))
                else:
                    future.set_result(message["result"])
        elif message["method"] == "job.event":
            event = message["params"]
            if job := self._jobs.get(event["job"]):
                job._deliver(event)
                if event["type"] in TERMINAL_TYPES:
                    del self._jobs[event["job"]]
            else:
                self._early.setdefault(event["job"], []).append(event)
        elif message["method"] == "job.gap":
            self.gaps += 1
            gap = message["params"]
            snapshot = gap["snapshot"]
            ended = snapshot and snapshot["status"] in TERMINAL_TYPES and gap["replay_from"] == snapshot["cursor"]
            if (snapshot is None or ended) and (job := self._jobs.get(gap["job"])):
                self._fail_lost(job, "The store has lost the job, or its end.")


def _refusal(response: Response) -> RequestFailed:
    """The problem document of a handshake that was refused, as an error of a request."""
    slug = REFUSED_FOR_GOOD[response.status_code]
    try:
        detail = json.loads(response.body or b"")["detail"]
    except (ValueError, KeyError, TypeError):  # a proxy's
        detail = PROBLEM_TYPES[slug].title
    return RequestFailed({"code": PROBLEM_TYPES[slug].code, "message": detail, "data": {"type": f"/problems/{slug}"}})


def _is_loopback(url: str) -> bool:
    """Does it lead to this machine, to which no proxy does?"""
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _attach(job: Job) -> dict[str, Any]:
    after = {"after": job.cursor} if job.cursor else {}
    return {"job": job.id, "events": job._events, **after}
