"""The store goes away and comes back, with all it held, with less, or with nothing: no process must be restarted."""

import asyncio
import shutil
import signal
from urllib.parse import urlsplit

import redis.asyncio as redis
from websockets.asyncio.client import connect

from millstream.client.client import Client, Job, JobFailed
from millstream.store import keys
from tests.processes import Process, Processes, until
from tests.system.stack import Stack, start
from tests.system.witness import JOB_FAILURES, Json, check_one_worker_wrote_it, check_whole, logged, witness


def alive(*processes: Process) -> bool:
    return all(process.running and process.running.returncode is None for process in processes)


async def restart_store(stack: Stack, number: signal.Signals) -> None:
    stack.store.signal(number)
    await stack.store.ended()
    await stack.restart(stack.store)


async def test_nothing_is_lost_in_a_restart_that_kept_everything(processes: Processes) -> None:
    """On SIGTERM the store writes out all that it has answered."""
    stack = await start(processes, workers=2, MILLSTREAM_MAX_JOBS="20")
    heard: dict[str, list[Json]] = {}
    listeners: list[asyncio.Task[None]] = []

    async def listen(job: Job) -> None:
        async for event in job:
            heard.setdefault(job.id, []).append(event)

    async with Client(stack.api.ws) as client, witness(stack.api) as other:
        first = await other.submit("counts", {"to": 1500, "pause_s": 0.003})

        async def submit() -> None:
            for _ in range(30):  # more than there are slots, so that some wait
                job = await client.submit("counts", {"to": 20, "pause_s": 0.02})
                listeners.append(asyncio.create_task(listen(job)))

        submitting = [asyncio.create_task(submit()) for _ in range(10)]
        for chunks in (50, 300, 600):
            await other.until([first], "chunk", times=chunks)
            await restart_store(stack, signal.SIGTERM)
        await asyncio.gather(*submitting)
        await asyncio.gather(*listeners)
        await other.ends(first)
        assert client.gaps == 0
        assert not other.notices
    assert len(heard) == 300
    for job, events in heard.items():
        assert check_whole(events, after=1)["data"]["result"] == 20
        assert (await logged(stack.store, job))[1:] == events
    assert alive(stack.api, *stack.workers)


async def test_the_kill_of_a_store_ends_no_job_twice_and_hides_no_loss(processes: Processes) -> None:
    """What a killed store has lost (up to a second of it) is told; what it has kept ends once."""
    stack = await start(processes, workers=2)
    async with witness(stack.api) as client:
        jobs = [await client.submit("counts", {"to": 400, "pause_s": 0.005}) for _ in range(20)]
        for chunks in (50, 200):
            await client.until(jobs[:1], "chunk", times=chunks)
            await restart_store(stack, signal.SIGKILL)
        await client.until(jobs, *JOB_FAILURES)
        after = await client.submit("process", {"text": "still here"})
        assert (await client.ends(after))[after]["data"]["result"] == "Processed data: still here"
        gaps = {notice["params"]["job"] for notice in client.notices}
        for job in jobs:
            assert check_whole(await logged(stack.store, job))["data"]["result"] == 400
            if job not in gaps:
                assert (await logged(stack.store, job))[1:] == client.of(job)
    assert alive(stack.api, *stack.workers)


async def test_plain_clients_get_their_answers_after_a_restart(processes: Processes) -> None:
    stack = await start(processes)
    async with connect(stack.api.ws + "?analysis=later") as client:
        for n in range(20):
            await client.send(str(n))
        async with stack.client() as store:

            async def all_accepted() -> bool:
                return len(await store.keys(keys.JOB + "*")) == 20

            await until(all_accepted, what="all of them to be jobs")
        await restart_store(stack, signal.SIGTERM)
        await client.send("20")
        assert [await asyncio.wait_for(client.recv(), 20) for _ in range(21)] == [str(n) for n in range(21)]


async def test_workers_that_lost_the_store_for_long_take_up_their_work_again(processes: Processes) -> None:
    """Longer than leases last and calls wait: what ran is lost to its worker, and runs again."""
    stack = await start(
        processes, workers=2, lease_s=0.5, api={"MILLSTREAM_STORE_PATIENCE_S": "0.5"}, MILLSTREAM_STORE_PATIENCE_S="0.5"
    )
    async with witness(stack.api) as client:
        options = {"max_attempts": 20}  # a lease so short is lost to a busy machine too
        jobs = [await client.submit("counts", {"to": 200, "pause_s": 0.01}, **options) for _ in range(10)]
        await client.until(jobs, "chunk", times=10)
        stack.store.signal(signal.SIGTERM)
        await stack.store.ended()
        for _ in range(3):  # each waits for the store as long as a call waits
            refused = await client.request("job.submit", analysis="process", params={"text": ""})
            assert refused["error"]["data"]["type"] == "/problems/store_unavailable"
        await stack.restart(stack.store)
        ends = await client.ends(*jobs)
        assert not client.notices
    for job in jobs:
        assert ends[job]["type"] == "succeeded"
        assert ends[job]["attempt"] > 1
        last = ends[job]["attempt"]
        chunks = [event["data"][0] for event in client.of(job, "chunk") if event["attempt"] == last]
        assert chunks == list(range(1, 201))
    assert alive(stack.api, *stack.workers)


async def test_everything_lost_is_told_to_those_who_wait_and_work_goes_on(processes: Processes) -> None:
    stack = await start(processes, workers=2, api={"MILLSTREAM_CHECK_S": "0.5"})
    async with (
        witness(stack.api) as client,
        Client(stack.api.ws) as other,
        connect(stack.api.ws + "?analysis=later") as plain,
    ):
        running = await client.submit("counts", {"to": 10_000, "pause_s": 0.01})
        quiet = await client.submit("process", {"text": "", "delay_s": 3600})
        late = await client.submit("process", {"text": ""}, delay_s=3600, events="terminal")
        watched = await other.submit("process", {"text": "", "delay_s": 3600})
        await client.until([running], "chunk", times=20)
        await plain.send("one")
        await plain.send("two")
        async with stack.client() as store:

            async def all_queued() -> bool:
                return int(await store.zcard(keys.lane())) == 6

            await until(all_queued, what="all of them to be queued")
            await store.flushall()
        await stack.cut_off("normal", "pubsub")

        async def told() -> bool:
            return {notice["params"]["job"] for notice in client.notices} == {running, quiet, late}

        await until(told, what="a gap for each job")
        assert all(notice["method"] == "job.gap" for notice in client.notices)
        assert all(notice["params"]["snapshot"] is None for notice in client.notices)
        answers = [await asyncio.wait_for(plain.recv(), 10) for _ in range(2)]
        assert all(str(answer).startswith("Error: ") for answer in answers)
        try:
            await asyncio.wait_for(watched.done(), 10)
        except JobFailed as error:
            assert "lost" in str(error)  # noqa: PT017 (what else could it be?)
        else:
            raise AssertionError("a lost job cannot succeed")

        async def advertised() -> bool:
            async with stack.client() as store:
                return b"process" in await store.hkeys(keys.ANALYSES)  # type: ignore[misc]

        await until(advertised, what="the workers to advertise their analyses again")
        fresh = [await client.submit("counts", {"to": 5}) for _ in range(10)]
        await client.ends(*fresh)
        await plain.send("three")
        assert await asyncio.wait_for(plain.recv(), 10) == "three"
    assert alive(stack.api, *stack.workers)
    async with witness(await processes.api(stack.store)) as newcomer:
        await newcomer.ends(await newcomer.submit("process", {"text": ""}))


class Rollback:
    """Puts a store back to an earlier state, as if it had lost what came since (AOF `everysec` may lose a second)."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._data = stack.processes.directory / f"store-{urlsplit(stack.store.url).port}"
        self._earlier = self._data.with_name("earlier")

    async def remember(self) -> None:
        self._stack.store.signal(signal.SIGTERM)
        await self._stack.store.ended()
        shutil.copytree(self._data, self._earlier)
        await self._stack.restart(self._stack.store)

    async def return_to_it(self) -> None:
        await self._stack.store.kill()
        shutil.rmtree(self._data)
        shutil.copytree(self._earlier, self._data)
        await self._stack.restart(self._stack.store)


async def test_a_store_that_comes_back_with_older_data_lets_no_two_attempts_write_as_one(processes: Processes) -> None:
    """The jobs are queued again in it, and claimed again, while workers still run them: each claim is another one."""
    stack = await start(processes, workers=2, lease_s=5)
    rollback = Rollback(stack)
    async with witness(stack.api) as client:
        jobs = [await client.submit("identifies", {"wait_s": 2}, delay_s=3) for _ in range(30)]
        await rollback.remember()
        await client.until(jobs, "started")
        await rollback.return_to_it()
        await client.until(jobs, *JOB_FAILURES)
        assert {notice["params"]["job"] for notice in client.notices} == set(jobs)
    for job in jobs:
        check_one_worker_wrote_it(await logged(stack.store, job))


async def test_an_attempt_of_which_the_store_has_lost_a_part_is_made_again(processes: Processes) -> None:
    """It must not look whole: some of its chunks are gone, and only the worker knows."""
    stack = await start(processes, workers=1, lease_s=3)
    rollback = Rollback(stack)
    async with witness(stack.api) as client:
        talking = [await client.submit("counts", {"to": 300, "pause_s": 0.01}) for _ in range(5)]
        silent = [await client.submit("identifies", {"wait_s": 0.5, "rest_s": 1.5}) for _ in range(5)]
        await client.until(talking, "chunk", times=10)
        await rollback.remember()
        await client.until(talking, "chunk", times=60)
        await client.until(silent, "chunk", times=3)
        await rollback.return_to_it()
        await client.until(talking + silent, *JOB_FAILURES)
    for job in talking:
        log = await logged(stack.store, job)
        assert check_whole(log)["data"]["result"] == 300
        chunks = [event["data"][0] for event in log if event["type"] == "chunk" and event["attempt"] == 2]
        assert chunks == list(range(1, 301))
    for job in silent:
        check_one_worker_wrote_it(await logged(stack.store, job))


async def test_a_store_that_is_emptied_under_standing_connections_hears_of_the_analyses_again(
    processes: Processes,
) -> None:
    stack = await start(processes)
    async with redis.Redis.from_url(stack.store.url) as client:
        await client.flushall()

        async def told() -> bool:
            return bool(await client.hgetall(keys.ANALYSES))

        await until(told, what="a worker to advertise its analyses again")
    async with connect(stack.api.ws) as plain:
        await plain.send("hello")
        assert await plain.recv() == "Processed data: hello"
