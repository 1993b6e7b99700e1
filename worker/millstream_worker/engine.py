"""The engine: an arq worker whose claiming, leasing and ending are scripts of our own on arq's own keys.

Kept from arq.Worker: the slots, the tasks, the counters, the function table, `close()`. Replaced: `main()` (the same
loop), `_poll_iteration` (it claims, then waits for the bell) and `run_job` (it runs an attempt). The
signatures of both, and of what they touch, are held by tests/unit/test_arq_contract.py.
"""

import asyncio
import random
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import structlog
from arq.connections import ArqRedis
from arq.utils import poll
from arq.worker import Worker, func
from redis.asyncio import ConnectionPool

from millstream.authoring.analysis import Analysis
from millstream.background import Background
from millstream.confined_fs import ServedDirectory
from millstream.protocol.errors import StoreUnavailable
from millstream.store import keys
from millstream.store.pipeline import Pipeline, silence_for
from millstream.store.store import Claimed, Store
from millstream_worker.attempt import Attempt, Stop
from millstream_worker.executor import Executor, InLoop
from millstream_worker.leases import Leases
from millstream_worker.settings import WorkerSettings

log = structlog.get_logger("millstream.worker")

IDLE_POLL_S = 0.5  # how often a worker polls: for jobs of stock arq, and for lost bells
CLAIM = 16  # jobs taken at a time, so that a burst is shared out among workers


class Engine(Worker):
    """Runs the jobs of one queue. Create it inside a running loop; `main()` runs until `drain()`."""

    def __init__(
        self, settings: WorkerSettings, analyses: dict[str, Analysis], store: Store, name: str, background: Background
    ) -> None:
        super().__init__(
            functions=[func(_claimed_only, name=analysis) for analysis in analyses],
            queue_name=keys.QUEUE,
            redis_pool=ArqRedis(ConnectionPool.from_url(settings.redis_url)),
            max_jobs=settings.max_jobs,
            poll_delay=0,
            handle_signals=False,
            health_check_key=f"{keys.WORKER}{name}:arq",
        )
        self.name = name
        self.attempts: dict[tuple[str, str], Attempt] = {}
        self._settings = settings
        self._analyses = analyses
        self._arq_queues = [name for name in map(str.strip, settings.arq_queues.split(",")) if name]
        self._known = "\n" + "\n".join(analyses) + "\n"
        self._store = store
        self._background = background
        self._directory = ServedDirectory(settings.data_dir)
        self._executor: Executor = InLoop()
        silent_s = silence_for(settings.store_patience_s)
        self._bell = Pipeline(settings.redis_url, name=f"{name}-bell", silence_s=IDLE_POLL_S + silent_s)
        self._stops = Pipeline(
            settings.redis_url, name=f"{name}-stops", on_connect=self._listen, on_push=self._on_push,
            silence_s=silent_s,
        )  # fmt: skip
        self._claimed: dict[str, Claimed] = {}
        self._claiming = asyncio.Lock()
        self._slot_freed = asyncio.Event()
        self._drained = asyncio.Event()
        self.leases = Leases(
            settings.redis_url,
            name,
            lease_s=settings.lease_s,
            stall_s=settings.stall_s,
            slots=settings.max_jobs,
            queue=settings.queue,
            on_lost=self._lose,
            health=background,
        )

    async def main(self) -> None:
        await asyncio.gather(self._bell.open(), self._stops.open())
        self.leases.start()
        self._background.every(min(1, self._settings.stall_s / 4), "tick", self._tick)
        # Stock arq clients enqueue and leave word in sets, and ring no bell.
        self._background.every(IDLE_POLL_S, "adopt from stock arq", self._adopt)
        self._background.every(IDLE_POLL_S, "abort for stock arq", self._store.abort)
        async for _ in poll(self.poll_delay_s):  # as arq's own, which also asks for INFO: not every user may
            await self._poll_iteration()

    async def close(self) -> None:
        await super().close()
        with ThreadPoolExecutor(1) as own:  # those of the loop may all be taken, by what analyses have left there
            await self.loop.run_in_executor(own, self.leases.stop)
        await asyncio.gather(self._bell.close(), self._stops.close())

    async def _tick(self) -> None:
        self.leases.last_tick = time.monotonic()

    async def _adopt(self) -> None:
        settings = self._settings
        queues = self._arq_queues or [keys.arq_queue(settings.queue)]
        known = {name: analysis.max_attempts for name, analysis in self._analyses.items()}
        await self._store.adopt(settings.queue, queues, known, settings.max_attempts)

    # Claiming.

    async def _poll_iteration(self) -> None:
        """Take what is due, as far as there are free slots, and wait until there may be more."""
        try:
            async with self._claiming:
                due_s = await self._claim()
            await self._wait(due_s)
            self._background.succeeded("claim jobs")
        except StoreUnavailable:
            if self.allow_pick_jobs:
                await asyncio.sleep(random.uniform(0.05, 0.2))
                await self._store.pipeline.connected.wait()
        except Exception as error:
            pause_s = self._background.failed("claim jobs", error)
            if self.allow_pick_jobs:
                await asyncio.sleep(pause_s)

    async def _claim(self) -> float | None:
        """Returns the seconds until the next job falls due (0: more may be due now)."""
        free = self.max_jobs - self.job_counter
        self._slot_freed.clear()
        if not self.allow_pick_jobs or free <= 0:
            return None
        wanted = min(free, CLAIM)
        settings = self._settings
        due_s, jobs = await self._store.claim(self.name, settings.lease_s, wanted, self._known, settings.queue)
        for job in jobs:
            await self._start(job)
        return 0 if len(jobs) == wanted else due_s

    async def _start(self, job: Claimed) -> None:
        await self.sem.acquire()
        self.job_counter += 1
        self.leases.held.add((job.id, job.token))
        key = f"{job.id} {job.token}"
        self._claimed[key] = job
        task = self.loop.create_task(self.run_job(key, 0))
        self.tasks[key] = task
        task.add_done_callback(lambda _: self._ended(key, job))

    def _ended(self, key: str, job: Claimed) -> None:
        self.leases.held.discard((job.id, job.token))
        self.attempts.pop((job.id, job.token), None)
        task = self.tasks.pop(key)
        if not task.cancelled() and (error := task.exception()):  # a defect: the job runs again when the lease expires
            log.error("attempt failed unexpectedly", job=job.id, exc_info=error)
        self._release_sem_dec_counter_on_complete()
        self._slot_freed.set()

    async def _wait(self, due_s: float | None) -> None:
        if not self.allow_pick_jobs:
            await self._drained.wait()
        elif self.job_counter >= self.max_jobs:
            await self._slot_freed.wait()
        elif due_s is None or due_s > 0:
            timeout = IDLE_POLL_S if due_s is None else min(IDLE_POLL_S, due_s + 0.001)
            await self._bell.call("BLPOP", keys.bell(self._settings.queue), f"{timeout:.3f}")

    # Running.

    async def run_job(self, job_id: str, score: int) -> None:
        """Run what was claimed under this key (`id token`; the score is arq's and not used)."""
        job = self._claimed.pop(job_id)
        analysis = self._analyses.get(job.analysis)
        attempt = Attempt(job, analysis, self._store, self._settings, self.name, self._directory)
        self.attempts[job.id, job.token] = attempt
        if not self.allow_pick_jobs:  # it was being claimed when the drain began
            attempt.stop(Stop.DRAIN)
        outcome = await attempt.run(self._executor)
        self.leases.ended[outcome] += 1
        if outcome == "succeeded":
            self.jobs_complete += 1
        elif outcome == "failed":
            self.jobs_failed += 1
        else:
            self.jobs_retried += 1

    def stop(self, id: str, token: str, why: Stop) -> None:
        """Stop a running attempt, if it runs here."""
        if attempt := self.attempts.get((id, token)):
            attempt.stop(why)
        elif why is Stop.LOST:
            self.leases.held.discard((id, token))

    def _lose(self, id: str, token: str) -> None:
        """Called by the heartbeat's thread."""
        with suppress(RuntimeError):  # the loop may have ended already
            self.loop.call_soon_threadsafe(self.stop, id, token, Stop.LOST)

    async def _listen(self, pipeline: Pipeline) -> None:
        pipeline.send("SUBSCRIBE", keys.STOP + self.name)

    def _on_push(self, message: list[Any]) -> None:
        if message[0] == b"message":
            id, _, token = message[2].decode().rpartition("\n")
            self.stop(id, token, Stop.CANCELLED)

    # Leaving.

    async def drain(self) -> None:
        """Take no more jobs, hand over those that run, and let `main()` end."""
        self.allow_pick_jobs = False
        settings = self._settings
        log.info("draining", running=len(self.tasks))
        await self._bell.close()  # or this worker would take bells that are meant for others
        with suppress(TimeoutError):
            async with asyncio.timeout(settings.finish_s):
                while self.tasks:
                    await asyncio.wait(self.tasks.values())
        self._hand_over()
        with suppress(TimeoutError):
            async with asyncio.timeout(settings.drain_s):
                async with self._claiming:  # what was being claimed just now is handed over too
                    self._hand_over()
                while self.tasks:
                    await asyncio.wait(self.tasks.values())
        if self.tasks:
            log.warning("jobs did not stop before the drain deadline", jobs=[key.split()[0] for key in self.tasks])
        self._drained.set()
        if self.main_task:
            self.main_task.cancel()

    def _hand_over(self) -> None:
        for attempt in list(self.attempts.values()):
            attempt.stop(Stop.DRAIN)


async def _claimed_only(ctx: dict[Any, Any]) -> None:
    """A placeholder: arq's table of functions may not be empty. `run_job` never calls it."""
    raise AssertionError("jobs are run by Engine.run_job")
