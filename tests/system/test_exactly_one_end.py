"""Everything at once: whatever is killed, paused, drained or cut off, each accepted job ends, once."""

import asyncio
import random
import signal
from collections import Counter

import pytest

from millstream.client.client import Client
from millstream.store import keys
from tests.processes import Process, Processes, until
from tests.system.stack import Stack, start
from tests.system.witness import Json, check_whole, logged

JOBS = 500
AT_A_TIME = 50
SEED = 20261124
DEED_EVERY = 12  # jobs that end between one fault and the next


class Chaos:
    """Does harm to a stack, one fault at a time. Some workers are always awake, and an API is there again soon."""

    def __init__(self, stack: Stack) -> None:
        self.done: Counter[str] = Counter()
        self._stack = stack
        self._random = random.Random(SEED)
        self._paused: Process | None = None

    async def strike(self) -> None:
        faults = (
            self.kill_worker,
            self.kill_worker,
            self.pause_worker,
            self.pause_worker,
            self.drain_worker,
            self.kill_api,
            self.drain_api,
            self.cut_off,
        )
        fault = self._random.choice(faults)
        self.done[fault.__name__] += 1
        await fault()

    def _awake(self) -> Process:
        return self._random.choice([worker for worker in self._stack.workers if worker is not self._paused])

    async def kill_worker(self) -> None:
        worker = self._awake()
        await worker.kill()
        self._stack.workers.remove(worker)
        await self._stack.worker()

    async def drain_worker(self) -> None:
        worker = self._awake()
        worker.signal(signal.SIGTERM)
        assert await worker.ended() == 0
        self._stack.workers.remove(worker)
        await self._stack.worker()

    async def pause_worker(self) -> None:
        """It sleeps until another is paused."""
        worker = self._awake()
        worker.signal(signal.SIGSTOP)
        self.wake_up()
        self._paused = worker

    def wake_up(self) -> None:
        if self._paused:
            self._paused.signal(signal.SIGCONT)
        self._paused = None

    async def kill_api(self) -> None:
        await self._stack.api.kill()
        await self._stack.restart(self._stack.api)

    async def drain_api(self) -> None:
        self._stack.api.signal(signal.SIGTERM)
        assert await self._stack.api.ended() == 0
        await self._stack.restart(self._stack.api)

    async def cut_off(self) -> None:
        """All connections to the store break."""
        await self._stack.cut_off("pubsub", "normal")


@pytest.mark.timeout(150)
async def test_each_accepted_job_ends_once_whatever_happens(processes: Processes) -> None:
    stack = await start(processes, workers=4, lease_s=1, MILLSTREAM_RETRY_BASE_S="0.1")
    chaos = Chaos(stack)
    heard: dict[str, list[Json]] = {}
    ended: list[str] = []
    numbers = iter(range(JOBS))

    async with Client(stack.api.ws) as client:

        async def one_by_one() -> None:
            for number in numbers:
                params = {"to": 1 + number % 7, "pause_s": 0.01 + number % 11 / 40}
                job = await client.submit("counts", params, max_attempts=50, key=f"job {number}")
                heard[job.id] = [event async for event in job]
                ended.append(job.id)

        submitting = asyncio.gather(*(one_by_one() for _ in range(AT_A_TIME)))
        for goal in range(DEED_EVERY, JOBS, DEED_EVERY):

            async def reached(goal: int = goal) -> bool:
                return len(ended) >= goal

            await until(reached, what=f"{goal} jobs to end", within_s=30)
            await chaos.strike()
        chaos.wake_up()
        await submitting
        assert client.gaps == 0
    print(f"{chaos.done.total()} faults: {dict(chaos.done)}")
    async with stack.client() as store:
        assert len(await store.keys(keys.JOB + "*")) == len(heard) == JOBS
        assert await store.zcard(keys.lane()) == 0
    attempts = Counter[int]()
    for job, events in heard.items():
        end = check_whole(events, after=1)
        assert end["type"] == "succeeded"
        assert (await logged(stack.store, job))[1:] == events
        chunks = [event["data"][0] for event in _last_run(events) if event["type"] == "chunk"]
        assert chunks == list(range(1, end["data"]["result"] + 1))
        attempts[end["attempt"]] += 1
    print("jobs by attempts needed:", dict(sorted(attempts.items())))


def _last_run(events: list[Json]) -> list[Json]:
    """What a client keeps: it drops the chunks of earlier runs when the job is started again."""
    starts = [n for n, event in enumerate(events) if event["type"] == "started"]
    return events[starts[-1] :]
