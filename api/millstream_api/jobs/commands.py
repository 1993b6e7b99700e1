"""What a client can ask for, whatever the transport: each command checks, asks the store, and answers or raises a
Problem.
"""

import asyncio
import hashlib
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import structlog
from pydantic_core import from_json, to_json

from millstream.apikeys import Keys, Principal
from millstream.protocol.catalog import Catalog
from millstream.protocol.errors import Problem, StoreUnavailable
from millstream.protocol.fleet import Heartbeat, QueueStats
from millstream.protocol.jobs import Page, Snapshot
from millstream.protocol.messages import Attach, Cancel, Submit, read_cursor
from millstream.store.not_now import StoreRefuses
from millstream.store.store import NewJob, Submitted
from millstream_api.jobs.hub import Follower
from millstream_api.jobs.relay import Relay
from millstream_api.jobs.stores import Stores
from millstream_api.settings import ApiSettings

log = structlog.get_logger("millstream.api")

T = TypeVar("T", Snapshot, Page)
CATCHING_UP = 16  # logs that are read concurrently: a page takes milliseconds in which other requests wait
LARGE = 16 * 1024  # bytes of a job's body, above which a thread looks at it
REFRESH_S = 0.2  # an unknown name looks at the store again, at most this often
STALE_S = 60  # a catalog that was read so long ago is read again: the last worker may be gone


class StoreCall:
    """`with`: a store that stays away is told as a problem. It holds nothing, so that one serves every call."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, StoreUnavailable):
            detail = str(error) if isinstance(error, StoreRefuses) else "The store cannot be reached at the moment."
            raise Problem("store_unavailable", f"{detail} Try again.", retry_after_s=1) from None


STORE_CALL = StoreCall()


@dataclass(frozen=True, slots=True)
class Fleet:
    """The live workers by their last heartbeats, and how full the queues are."""

    workers: list[Heartbeat]
    queues: list[QueueStats]


@dataclass(slots=True)
class Commands:
    settings: ApiSettings
    stores: Stores
    relay: Relay
    keys: Keys
    draining: asyncio.Event
    catalog: Catalog = field(default_factory=Catalog)
    catching_up: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(CATCHING_UP))
    submissions: Counter[str] = field(default_factory=lambda: Counter(accepted=0))  # by what came of it
    _refreshed: float = field(default_factory=lambda: time.monotonic() - REFRESH_S)  # a name that is not known is due
    _refreshing: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def submit(self, who: Principal, request: Submit, job: str, *, follow: bool = True) -> Submitted:
        """Accept a job under the id `job`. `follow`: this node wants to hear of it."""
        try:
            submitted = await self._submit(who, request, job, follow)
        except Problem as problem:
            self.submissions[problem.slug] += 1
            raise
        self.submissions["duplicate" if submitted.duplicate else "accepted"] += 1
        return submitted

    async def _submit(self, who: Principal, request: Submit, job: str, follow: bool) -> Submitted:
        self.keys.require(who, "submit")
        if self.draining.is_set():
            raise Problem(
                "draining", "This server is restarting; connect again and repeat the request.", retry_after_s=1
            )
        await self._know(request.analysis)
        entry = self.catalog.find(request.analysis)
        body = _body(entry.name, request.params)  # first: a validator may take minutes to compare infinities
        entry.check(request.params)
        attempts = request.max_attempts or entry.max_attempts
        new = NewJob(
            id=job,
            analysis=entry.name,
            body=body,
            queue=entry.queue,
            priority=request.priority,
            owner=who.owner,
            max_attempts=attempts or self.settings.max_attempts,
            retry=attempts is not None,
            timeout_s=request.timeout_s or entry.timeout_s,
            delay_s=request.delay_s,
            key=request.key or "",
            fingerprint=await fingerprint(request, len(body)) if request.key else "",
            node=self.relay.node if follow else "",
            terminal_only=request.events == "terminal",
        )
        with STORE_CALL:
            return await self.stores.of(job).submit(new)

    async def get(self, who: Principal, job: str) -> Snapshot:
        self.keys.require(who, "read")
        with STORE_CALL:
            return _found(job, await self.stores.of(job).snapshot(job, who.owner))

    async def snapshot(self, who: Principal, job: str) -> Snapshot:
        """A job that the caller may see, because it has just submitted it."""
        with STORE_CALL:
            return _shown(who, _found(job, await self.stores.of(job).snapshot(job)))

    async def expire(self) -> None:
        """End what waited longer than a job may live, though no worker comes for it."""
        for queue in self._queues():
            await self.stores.only.expire(queue)

    def _queues(self) -> list[str]:
        return sorted({"default", *(entry.queue for entry in self.catalog.entries.values())})

    async def fleet(self) -> Fleet:
        """Workers and queues. The caller checks that the client may see them."""
        names = self._queues()
        with STORE_CALL:
            return Fleet(await self.stores.only.workers(), await self.stores.only.queues(names))

    async def jobs(
        self, who: Principal, *, status: str = "", analysis: str = "", limit: int = 50, before: str = ""
    ) -> tuple[list[Snapshot], str]:
        """The owner's jobs, newest first, and the id to go on before ('': there are no more); fewer than `limit` when
        they are large, or rare among the owner's.
        """
        self.keys.require(who, "read")
        try:
            with STORE_CALL:
                return await self.stores.only.jobs(
                    who.owner,
                    status=status,
                    analysis=analysis,
                    limit=limit,
                    after=before,
                    limit_bytes=self.settings.reader_bytes,
                )
        except KeyError:
            detail = f"before: {before[:80]!r} is not one of your jobs; take the id of the last job of a page."
            raise Problem("invalid_params", detail, [{"pointer": "/before", "detail": "no such job"}]) from None

    async def cancel(self, who: Principal, request: Cancel) -> Snapshot:
        self.keys.require(who, "submit")
        return _shown(who, await self._cancel(who, request))

    async def _cancel(self, who: Principal, request: Cancel) -> Snapshot:
        with STORE_CALL:
            snapshot = await self.stores.of(request.job).cancel(request.job, who.owner, request.reason)
        return _found(request.job, snapshot)

    async def cancel_after_disconnect(self, who: Principal, job: str) -> None:
        """Cancel a job whose client has left, and wanted that. Not while draining: then it is the server that left."""
        if self.draining.is_set():
            return
        try:
            await self._cancel(who, Cancel(job=job, reason="the client disconnected"))
        except Problem as problem:
            log.warning("a job could not be cancelled after its client left", job=job, error=str(problem))

    async def attach(self, who: Principal, request: Attach) -> Page:
        """Make this node hear of a job; the page has no events yet, but says whether the log holds the cursor."""
        self.keys.require(who, "read")
        after = read_cursor(request.after)
        terminal_only = request.events == "terminal"
        with STORE_CALL:
            page = await self.stores.of(request.job).attach(
                request.job, after, owner=who.owner, node=self.relay.node, terminal_only=terminal_only, limit=0
            )
        return _found(request.job, page)

    async def catch_up(self, follower: Follower) -> None:
        """Give a follower that is behind the next page of its log. Still behind afterwards: once more."""
        settings = self.settings
        async with self.catching_up:
            try:
                page = await self.stores.of(follower.job).attach(
                    follower.job,
                    follower.ask(),
                    node=self.relay.node,
                    terminal_only=follower.terminal_only,
                    limit=settings.reader_events,
                    limit_bytes=settings.reader_bytes // 2,
                    patience_s=0,  # the reader has other things to send meanwhile
                )
            except StoreUnavailable:
                await asyncio.sleep(0.1)
                return
            follower.read(page)
        self.relay.hub.drop_if_done(follower)

    async def analyses(self) -> list[dict[str, Any]]:
        await self.refresh()
        return [entry.as_dict() for entry in self.catalog.entries.values()]

    async def _know(self, analysis: str) -> None:
        """Look again at what workers advertise when a name is not known here, or has been for long."""
        if self._is_fresh(analysis):
            return
        async with self._refreshing:  # also for one that is under way, which may bring the name
            if not self._is_fresh(analysis):
                await self._refresh()

    def _is_fresh(self, analysis: str) -> bool:
        fresh_s = STALE_S if analysis in self.catalog.entries else REFRESH_S
        return time.monotonic() - self._refreshed <= fresh_s

    async def refresh(self) -> None:
        async with self._refreshing:
            await self._refresh()

    async def _refresh(self) -> None:
        try:
            with suppress(StoreUnavailable):
                for wrong in self.catalog.update(await self.stores.only.analyses()):
                    log.error("an advertised analysis cannot be used, and is left out", analysis=wrong)
        finally:
            self._refreshed = time.monotonic()


def _shown(who: Principal, snapshot: Snapshot) -> Snapshot:
    """A job as its submitter sees it: what came of it needs the scope `read`."""
    return snapshot if who.may("read") else replace(snapshot, progress=b"null", result=b"null", error=b"null")


def _found(job: str, found: T | None) -> T:
    if found is None:
        raise Problem("job_not_found", f"There is no job {job[:80]!r}, or it is not yours, or it is no longer kept.")
    return found


def _body(analysis: str, params: dict[str, Any]) -> bytes:
    """The job as arq writes it (see worker/millstream_worker/body.py). Raises Problem invalid_params."""
    written = to_json(params)
    if b"Infinity" in written:  # 1e999 is JSON, but what comes of it is not
        try:
            from_json(written, allow_inf_nan=False)
        except ValueError:
            raise Problem("invalid_params", "params: a number in them is too large.") from None
    return b'{"t":null,"f":%b,"a":[],"k":%b,"et":%d}' % (to_json(analysis), written, time.time_ns() // 1_000_000)


async def fingerprint(request: Submit, size: int) -> str:
    """What must be the same when a key is used again; the order of members does not matter. Parameters of a large
    `size` take some 50 ms of Python, which leave the event loop its turns when a thread spends them.
    """
    return await asyncio.to_thread(_digest, request) if size > LARGE else _digest(request)


def _digest(request: Submit) -> str:
    fields = request.model_dump(include={"analysis", "params", "timeout_s", "max_attempts", "priority", "delay_s"})
    return hashlib.sha256(to_json(_normal(fields))).hexdigest()


def _normal(value: Any) -> Any:
    """Members in order; 50.0 as 50, since JSON has one kind of number."""
    if isinstance(value, dict):
        return {key: _normal(value[key]) for key in sorted(value)}
    if isinstance(value, list):
        return [_normal(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
