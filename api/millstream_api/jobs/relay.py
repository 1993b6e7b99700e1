"""From Redis to the hub: one pub/sub connection a process, and what to do when it drops.

What is published while the connection is down is not lost: it is in the logs. So when it is back, every follower
reads its log, which also puts this node back on the lists of watchers. And because the *last* event of a log leaves
no gap that a later event could show, the ends of quiet logs are compared with the store every few seconds.
"""

import asyncio
import secrets
import socket
from contextlib import suppress
from typing import Any

import structlog

from millstream.protocol.errors import StoreUnavailable
from millstream.protocol.events import read_published
from millstream.store import keys
from millstream.store.pipeline import MAX_SILENCE_S, Pipeline
from millstream.store.store import Store
from millstream_api.jobs.hub import Hub, State
from millstream_api.jobs.stores import Stores

log = structlog.get_logger("millstream.api")

CHUNK = 500  # jobs that one look at the store asks about


class Relay:
    """Owns the channel `ms:node:<node>`. `catalog_changed` is set when workers have advertised something new; `events`
    counts what came.
    """

    def __init__(self, url: str, stores: Stores, silence_s: float = MAX_SILENCE_S) -> None:
        self.node = f"{socket.gethostname()}-{secrets.token_hex(4)}"
        self.hub = Hub(self._forget)
        self.catalog_changed = asyncio.Event()
        self.events = 0
        self._stores = stores
        self._pipeline = Pipeline(
            url, name=f"{self.node}-relay", on_connect=self._listen, on_push=self._on_push, silence_s=silence_s
        )
        self._heard: dict[str, int] = {}
        self._forgetting: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> "Relay":
        await self._pipeline.open()
        return self

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await self._pipeline.close()

    async def _listen(self, pipeline: Pipeline) -> None:
        pipeline.send("SUBSCRIBE", keys.NODE + self.node, keys.CATALOG)

    def _on_push(self, message: list[Any]) -> None:
        if message[0] == b"subscribe":
            if message[1] == keys.CATALOG.encode():  # the last of the two: from here on nothing is missed
                self.hub.resync(self._carries)
                self.catalog_changed.set()
        elif message[1] == keys.CATALOG.encode():
            self.catalog_changed.set()
        else:
            try:
                event = read_published(message[2])
            except ValueError:
                log.warning("what was published is not an event", payload=repr(message[2][:100]))
                return
            self.events += 1
            self.hub.publish(event)

    def _carries(self, job: str) -> bool:
        """Do the events of a job come by this connection? All do while there is one store."""
        return True

    def _forget(self, job: str) -> None:
        """Tell the store that this node need not hear of a job any more. Once is enough, and it may fail."""
        if job in self._forgetting:
            return
        self._forgetting.add(job)
        task = asyncio.create_task(self._detach(job))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _detach(self, job: str) -> None:
        try:
            with suppress(StoreUnavailable):
                await self._stores.of(job).detach(job, self.node)
        finally:
            self._forgetting.discard(job)
        if self.hub.followers.get(job):  # a new follower came meanwhile: reading the log registers this node again
            for follower in tuple(self.hub.followers[job]):
                follower.fall_behind()

    async def check(self) -> None:
        """Compare the ends of the logs that have been quiet since the last look with the store."""
        heard = {
            job: max(follower.cursor.seq for follower in followers)
            for job, followers in self.hub.followers.items()
            if any(follower.state is State.LIVE for follower in followers)
        }
        quiet = [job for job, seq in heard.items() if self._heard.get(job) == seq]
        self._heard = heard
        by_store: dict[Store, list[str]] = {}
        for job in quiet:
            by_store.setdefault(self._stores.of(job), []).append(job)
        for store, jobs in by_store.items():
            for start in range(0, len(jobs), CHUNK):
                await self._compare(store, jobs[start : start + CHUNK])

    async def _compare(self, store: Store, jobs: list[str]) -> None:
        for job, (seq, status) in zip(jobs, await store.positions(jobs), strict=True):
            for follower in tuple(self.hub.followers.get(job, ())):
                ended = status in ("succeeded", "failed", "cancelled", "")
                if ended or (not follower.terminal_only and seq != follower.cursor.seq):
                    follower.fall_behind()
