"""A store, an API and workers for one fault test, and what a test may want to know of them."""

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

import redis.asyncio as redis
from pydantic_core import from_json

from millstream.store import keys
from tests.processes import Process, Processes

ANALYSES = "tests.system.analyses_for_faults"


@dataclass
class Stack:
    processes: Processes
    store: Process
    api: Process
    workers: list[Process]
    settings: dict[str, str] = field(default_factory=dict)

    async def worker(self) -> Process:
        """One more, with the settings of the others."""
        worker = await self.processes.worker(self.store, **self.settings)
        self.workers.append(worker)
        return worker

    async def restart(self, process: Process) -> None:
        """Start an API or a store again after its end, at the same port."""
        await process.start()
        await self.processes.answers(process)

    def client(self) -> "redis.Redis":
        client: redis.Redis = redis.Redis.from_url(self.store.url)
        return client

    async def cut_off(self, *kinds: str) -> int:
        """Kill the store's connections of some kinds (`normal`, `pubsub`). Returns how many there were."""
        async with self.client() as client:
            killed = [await client.client_kill_filter(_type=kind, skipme=True) for kind in kinds]
        return sum(killed)

    async def leased(self, job: str) -> bool:
        async with self.client() as client:
            return bool(await client.exists(keys.LEASE + job))

    async def lease_ends(self, jobs: list[str]) -> tuple[float, dict[str, float]]:
        """The time, and when each job's lease runs out, by the store's clock (Unix seconds)."""
        async with self.client() as client, client.pipeline() as pipeline:
            pipeline.time()
            for job in jobs:
                pipeline.pexpiretime(keys.LEASE + job)
            (seconds, microseconds), *ends = await pipeline.execute()
        assert min(ends) > 0, "each job has a lease"
        return seconds + microseconds / 1e6, {job: end / 1000 for job, end in zip(jobs, ends, strict=True)}

    async def running_on(self, worker: Process) -> int:
        """How many jobs a worker runs, by its last heartbeat."""
        async with self.client() as client:
            beat = await client.get(keys.WORKER + worker.url)
        return int(from_json(beat)["running"]) if beat else -1


async def start(
    processes: Processes, *, workers: int = 1, lease_s: float = 2, api: dict[str, str] | None = None, **settings: str
) -> Stack:
    """Start a whole stack. `api` and `settings` (those of the workers) are environment variables."""
    store = await processes.store()
    settings = {"MILLSTREAM_ANALYSES": ANALYSES, "MILLSTREAM_LEASE_S": f"{lease_s:g}", **settings}
    first, *rest = await asyncio.gather(
        processes.api(store, None, **(api or {})), *(processes.worker(store, **settings) for _ in range(workers))
    )
    return Stack(processes, store, first, rest, settings)


def runs(directory: Path) -> str:
    """A directory in which analyses leave their marks."""
    (marks := directory / "runs").mkdir()
    return str(marks)
