"""The typed face of the scripts in lua/: each transition of a job is one script, one round trip, atomic.

Calls wait through a short outage of the store and are then made again: every script that changes something gives the
same answer, and does nothing more, when it is called a second time. What cannot be repeated safely says so.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import hiredis
from pydantic_core import to_json

from millstream.backoff import backoff_s
from millstream.protocol.errors import Problem, StoreUnavailable
from millstream.protocol.events import START, Cursor, read_logged
from millstream.protocol.fleet import Advertisement, Heartbeat, LaneStats, QueueStats
from millstream.protocol.jobs import PRIORITIES, Page, Snapshot, read_snapshot
from millstream.store import keys
from millstream.store.limits import Limits
from millstream.store.pipeline import Argument, Pipeline, silence_for
from millstream.store.scripts import load_scripts

ANY_OWNER = "*"
FIRST_PAUSE_S, MAX_PAUSE_S = 0.05, 0.5  # before a call is made again on a connection that stands


def new_job_id() -> str:
    """A job's id: 128 random bits in hexadecimal, so that it cannot be guessed."""
    return secrets.token_hex(16)


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job to submit. `node` is the API process that wants its events: all of them, or only the last."""

    id: str
    analysis: str
    body: bytes
    queue: str = "default"
    priority: str = "default"
    owner: str = ""
    max_attempts: int = 1
    retry: bool = False
    timeout_s: float = 0
    delay_s: float = 0
    key: str = ""
    fingerprint: str = ""
    node: str = ""
    terminal_only: bool = False


@dataclass(frozen=True, slots=True)
class Submitted:
    job: str
    status: str
    cursor: Cursor
    duplicate: bool
    tokens: int = -1  # submissions left at once, where there is a rate limit


@dataclass(frozen=True, slots=True)
class Claimed:
    """A job under lease. `token` fences every write of this attempt; times in seconds, 0: none was asked for."""

    id: str
    token: str
    attempt: int
    max_attempts: int
    retry: bool
    timeout_s: float
    analysis: str
    body: bytes
    adopted: str  # the queue of stock arq that it comes from; '' for all others


class LeaseLost(Exception):
    """The attempt no longer owns its job, and can write nothing more."""


class LogFull(Exception):
    """The job's log has reached its limit."""


class UnexpectedReply(Exception):
    """A script's reply that this process does not know: another version wrote it, or it is a defect."""


class Store:
    """The store, as both tiers use it. `patience_s`: how long a call waits through an outage before it gives up."""

    def __init__(
        self,
        url: str,
        *,
        name: str,
        limits: Limits,
        patience_s: float = 10,
        on_connect: Callable[["Store"], Awaitable[None]] | None = None,
    ) -> None:
        self.limits = limits
        self.patience_s = patience_s
        self._scripts = load_scripts(limits.arguments())
        self._prepare = on_connect
        self.pipeline = Pipeline(url, name=name, on_connect=self._on_connect, silence_s=silence_for(patience_s))

    async def open(self, timeout_s: float | None = None) -> "Store":
        await self.pipeline.open(timeout_s)
        return self

    async def close(self) -> None:
        await self.pipeline.close()

    async def _on_connect(self, _: Pipeline) -> None:
        await self._load()
        if self._prepare:
            await self._prepare(self)

    async def _load(self) -> None:
        scripts = self._scripts.values()
        await asyncio.gather(*(self.pipeline.call("SCRIPT", "LOAD", script.text) for script in scripts))

    async def check_writable(self) -> None:
        """Changes nothing. Raises StoreUnavailable when the store cannot be reached, or takes no writes."""
        with suppress(hiredis.ReplyError):  # any other answer is one
            await self.pipeline.call("LPUSHX", keys.PROBE, "")  # to a list that is never there

    async def durability_warnings(self) -> list[str]:
        """What in the store's configuration breaks the promise that nothing accepted is lost."""
        try:
            reply = await self.pipeline.call("CONFIG", "GET", "maxmemory-policy", "appendonly")
        except (hiredis.ReplyError, StoreUnavailable):
            return []  # a hosted store may not say
        found = dict(zip(reply[::2], reply[1::2], strict=True))
        warnings = []
        if found.get(b"maxmemory-policy", b"noeviction") != b"noeviction":
            warnings.append("maxmemory-policy is not noeviction: the store may evict jobs when its memory is full")
        if found.get(b"appendonly", b"yes") != b"yes":
            warnings.append("appendonly is not yes: jobs are lost when the store is restarted")
        return warnings

    async def run(
        self,
        name: str,
        keys_: Sequence[str] = (),
        rest: Iterable[Argument] = (),
        *,
        patience_s: float | None = None,
        **arguments: Argument,
    ) -> Any:
        """Run a script with its arguments by name (see scripts.py); those of the limits are given by the store.

        Raises StoreUnavailable when the store stays away, or says "not now", for longer than `patience_s`.
        """
        script = self._scripts[name]
        argv = script.bind(arguments, rest)
        command = ("EVALSHA", script.sha)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + (self.patience_s if patience_s is None else patience_s)
        failures = 0
        while True:
            try:
                return await self.pipeline.call(*command, len(keys_), *keys_, *argv)
            except hiredis.ReplyError as error:
                if str(error).startswith("NOSCRIPT"):
                    command = ("EVAL", script.text)  # which makes the store know it again
                    continue
                raise
            except StoreUnavailable as error:
                if loop.time() >= deadline:
                    raise
                reason = error
            failures += 1
            try:
                async with asyncio.timeout_at(deadline):
                    if self.pipeline.connected.is_set():
                        await asyncio.sleep(backoff_s(failures, first_s=FIRST_PAUSE_S, max_s=MAX_PAUSE_S))
                    await self.pipeline.connected.wait()
            except TimeoutError:
                raise reason from None

    # What the API does.

    async def submit(self, job: NewJob) -> Submitted:
        """Accept a job: once this returns it runs, whatever happens to the caller.

        Raises Problem (queue_full, too_many_in_flight, too_much_kept, rate_limited, idempotency_conflict) and
        StoreUnavailable.
        """
        limits = self.limits
        reply = await self.run(
            "submit", [keys.lane(job.queue, job.priority)],
            id=job.id, body=job.body, analysis=job.analysis, queue=job.queue, owner=job.owner,
            max_attempts=job.max_attempts, retry=int(job.retry),
            timeout_ms=max(1, _ms(job.timeout_s)) if job.timeout_s else 0, delay_ms=_ms(job.delay_s),
            node=job.node, watch=_watch(job.terminal_only), key=job.key, fingerprint=job.fingerprint,
            fair_window=self.limits.fair_window if job.owner else 0,
        )  # fmt: skip
        match reply:
            case [b"accepted", at, tokens]:
                return Submitted(job.id, "queued", Cursor(1, int(at)), duplicate=False, tokens=tokens)
            case [b"duplicate", id, status, at, tokens]:
                return Submitted(id.decode(), status.decode(), Cursor(1, int(at)), duplicate=True, tokens=tokens)
            case [b"rate_limited", wait_ms]:
                detail = f"You may submit {limits.submit_rate:g} jobs a second. Wait {wait_ms} ms."
                raise Problem("rate_limited", detail, retry_after_s=wait_ms / 1000, headers=limits.rate_headers(0))
            case [b"conflict"]:
                raise Problem("idempotency_conflict", f"key {job.key!r} was used for a job with other parameters.")
            case [b"queue_full", depth, tokens]:
                detail = f"{depth} jobs wait or run; the limit is {limits.queue_depth}. Try again later."
                raise Problem("queue_full", detail, retry_after_s=1, headers=limits.rate_headers(tokens))
            case [b"too_many", mine, tokens]:
                detail = f"{mine} of your jobs have not ended; the limit is {limits.owner_in_flight}."
                raise Problem("too_many_in_flight", detail, retry_after_s=1, headers=limits.rate_headers(tokens))
            case [b"too_much", held, wait_ms, tokens]:
                limit = limits.owner_bytes
                detail = f"With this one your jobs hold {held} bytes, ended ones included; the limit is {limit}."
                wait_s = max(1, wait_ms / 1000)
                raise Problem("too_much_kept", detail, retry_after_s=wait_s, headers=limits.rate_headers(tokens))
            case _:
                raise UnexpectedReply(f"submit: {reply!r}")

    async def snapshot(self, job: str, owner: str = ANY_OWNER) -> Snapshot | None:
        reply = await self.run("snapshot", id=job, owner=owner)
        return read_snapshot(job, reply) if reply else None

    async def cancel(self, job: str, owner: str, reason: str | None) -> Snapshot | None:
        """End a job at once, queued or running. None when there is no such job of this owner."""
        reply = await self.run("cancel", id=job, owner=owner, reason=to_json(reason))
        return read_snapshot(job, reply) if reply else None

    async def attach(
        self,
        job: str,
        after: Cursor = START,
        *,
        owner: str = ANY_OWNER,
        node: str = "",
        terminal_only: bool = False,
        limit: int = 1000,
        limit_bytes: int = 256 * 1024,
        patience_s: float | None = None,
    ) -> Page | None:
        """From now on `node` hears of the job; here is what its log holds after the cursor.

        None when there is no such job of this owner. `limit_bytes` may be overrun by a quarter, or by one event.
        """
        reply = await self.run(
            "attach", id=job, owner=owner, node=node, field=_watch(terminal_only), seq=after.seq, at=after.at,
            limit=limit, limit_bytes=limit_bytes, patience_s=patience_s,
        )  # fmt: skip
        if not reply:
            return None
        gap, more, snapshot, *entries = reply
        events = [read_logged(job, entry) for entry in entries]
        return Page(bool(gap), bool(more), read_snapshot(job, snapshot), events)

    async def detach(self, job: str, node: str) -> None:
        await self.run("detach", id=job, node=node)

    async def positions(self, jobs: Sequence[str]) -> list[tuple[int, str]]:
        """For each job the seq of its last event (-1: there is no such job) and its status."""
        reply = await self.run("positions", rest=jobs)
        return [(seq, status.decode()) for seq, status in zip(reply[::2], reply[1::2], strict=True)]

    async def jobs(
        self, owner: str, *, status: str, analysis: str, limit: int, after: str, limit_bytes: int
    ) -> tuple[list[Snapshot], str]:
        """An owner's jobs, newest first, and the id to go on after ('': there are no more). A page may be short, even
        empty, though more follow: only so many jobs are looked at. Raises KeyError when `after` is not one of them.
        """
        reply = await self.run(
            "jobs", owner=owner, status=status, analysis=analysis, limit=limit, after=after, limit_bytes=limit_bytes
        )
        if reply == b"unknown":
            raise KeyError(after)
        last, *rest = reply
        found = [read_snapshot(id.decode(), fields) for id, fields in zip(rest[::2], rest[1::2], strict=True)]
        return found, last.decode()

    async def workers(self) -> list[Heartbeat]:
        """The last heartbeat of each live worker."""
        names = await self.pipeline.call("ZRANGE", keys.WORKERS, 0, -1)
        if not names:
            return []
        beats = await self.pipeline.call("MGET", *(keys.WORKER + name.decode() for name in names))
        return [Heartbeat.model_validate_json(beat) for beat in beats if beat]

    async def queues(self, names: Sequence[str]) -> list[QueueStats]:
        """How full each of these queues is."""
        lanes = [keys.lane(name, priority) for name in names for priority in PRIORITIES]
        flat = await self.run("queues", lanes)
        rows = (flat[n : n + 4] for n in range(0, len(flat), 4))
        stats = [LaneStats(due, running, delayed, age_ms / 1000) for due, running, delayed, age_ms in rows]
        count = len(PRIORITIES)
        return [QueueStats.of(name, stats[count * n : count * (n + 1)]) for n, name in enumerate(names)]

    async def expire(self, queue: str) -> None:
        """End the jobs of a queue that waited longer than a job may live. Workers do so too, when they meet one."""
        for priority in PRIORITIES:
            page = 0
            while page >= 0:
                page = await self.run("expire", [keys.lane(queue, priority)], offset=page)

    async def analyses(self) -> list[bytes]:
        """What workers have advertised, as JSON."""
        found: list[bytes] = await self.run("analyses", patience_s=0)
        return found

    # What a worker does.

    async def advertise(self, analyses: Sequence[Advertisement], *, again: bool = False) -> None:
        """Say which analyses a worker knows. `again`: it still does; what a newer worker has said of them stays."""
        pairs = [part for item in analyses for part in (item.name, item.model_dump_json())]
        await self.run("advertise", rest=pairs, again=int(again), patience_s=0)

    async def abort(self) -> None:
        """End the jobs that stock arq clients want aborted."""
        await self.run("abort", patience_s=0)

    async def adopt(self, queue: str, arq_queues: Sequence[str], known: Mapping[str, int | None], attempts: int) -> int:
        """Take over what stock arq clients enqueued in `arq_queues`. `known`: the analyses that run here, each with
        its max_attempts; `attempts`: that of all others. Returns how many jobs were taken over.
        """
        pairs = [part for name, own in known.items() for part in (name, own or "")]
        lanes = [keys.lane(queue), *arq_queues]
        adopted: int = await self.run("adopt", lanes, pairs, queue=queue, attempts=attempts, patience_s=0)
        return adopted

    async def claim(
        self, worker: str, lease_s: float, slots: int, known: str, queue: str
    ) -> tuple[float | None, list[Claimed]]:
        """Take up to `slots` due jobs; also the seconds until the next falls due (None: the queue is empty).

        Not repeated by itself: what a lost reply had claimed falls due again when its lease ends.
        """
        lanes = [keys.lane(queue, priority) for priority in PRIORITIES]
        reply = await self.run(
            "claim", lanes, worker=worker, lease_ms=_ms(lease_s), slots=slots, known=known, queue=queue,
            patience_s=0,
        )  # fmt: skip
        wait, *jobs = reply
        return None if wait < 0 else wait / 1000, [_claimed(job) for job in jobs]

    async def append(self, job: Claimed, number: int, events: Iterable[tuple[str, bytes]]) -> None:
        """Write events of a running attempt, the first being its `number`-th. Raises LeaseLost, LogFull."""
        flat = [part for event in events for part in event]
        _check_fence(job, await self.run("append", rest=flat, id=job.id, token=job.token, number=number))

    async def finish(
        self, job: Claimed, status: str, data: bytes, arq_result: bytes = b"", events: int | None = None
    ) -> None:
        """End a job. `events`: how many the attempt has written, all of which must be there. Raises LeaseLost."""
        reply = await self.run(
            "finish", id=job.id, token=job.token, status=status, data=data, result_for_arq=arq_result,
            events="" if events is None else events,
        )  # fmt: skip
        _check_fence(job, reply)

    async def retry(self, job: Claimed, error: dict[str, Any], delay_s: float) -> None:
        """Give a job back to run again after a delay. Raises LeaseLost."""
        data = to_json({"error": error, "delay_s": round(delay_s, 3), "attempt": job.attempt})
        await self._requeue(job, "retrying", data, delay_s, give_back=False)

    async def hand_back(self, job: Claimed, message: str) -> None:
        """Give a job back to run elsewhere at once; the attempt counts only after `Limits.hand_backs` times. Raises
        LeaseLost.
        """
        data = to_json({"level": "info", "message": message})
        await self._requeue(job, "log", data, 0, give_back=True)

    async def _requeue(self, job: Claimed, kind: str, data: bytes, delay_s: float, *, give_back: bool) -> None:
        reply = await self.run(
            "requeue", id=job.id, token=job.token, event=kind, data=data, delay_ms=_ms(delay_s),
            give_back=int(give_back),
        )  # fmt: skip
        _check_fence(job, reply)


def _check_fence(job: Claimed, reply: Any) -> None:
    """Check the reply of a script that only the owner of a job may run. Raises LeaseLost, LogFull."""
    match reply:
        case b"ok":
            return
        case b"lost":
            raise LeaseLost(job.id)
        case b"full":
            raise LogFull(job.id)
        case _:
            raise UnexpectedReply(f"{job.id}: {reply!r}")


def _claimed(fields: list[Any]) -> Claimed:
    id, token, attempt, max_attempts, retry, timeout_ms, analysis, body, adopted = fields
    return Claimed(
        id.decode(), token.decode(), attempt, max_attempts, retry == b"1", int(timeout_ms) / 1000,
        analysis.decode(), body, adopted.decode().partition(" ")[2],
    )  # fmt: skip


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def _watch(terminal_only: bool) -> str:
    return "watch_end" if terminal_only else "watch"
