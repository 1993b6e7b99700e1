"""After jobs of every kind, each key in the store goes away by itself, or is one of the few that are there for ever."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import redis.asyncio as redis
from arq.connections import RedisSettings, create_pool

from millstream.apikeys import new_key, write_keys
from millstream.store import keys
from tests.integration.conftest import ANALYSES, Stack, database
from tests.integration.rpc import Refused, plain, rpc
from tests.processes import Process, Processes, until

#: What shared/millstream/store/keys.py says lives for ever: bounded, however many jobs there were.
FOR_EVER = {keys.WORKERS, keys.ANALYSES, keys.bell("default")}
LIFE_S = 2 * (86_400 + 3600) + 60


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def used(valkey: Process, processes: Processes, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """A stack of its own, with keys and a rate limit, so that every kind of key comes about."""
    store, data = database(valkey, 6), tmp_path_factory.mktemp("used")
    text, kept = new_key("ann", ["submit", "read"], None)
    write_keys(data / "keys.json", [kept])
    (data / "key").write_text(text)
    api, worker, second = await asyncio.gather(
        processes.api(
            store, MILLSTREAM_API_KEYS_FILE=str(data / "keys.json"), MILLSTREAM_FAIR_WINDOW="2",
            MILLSTREAM_SUBMIT_RATE="20", MILLSTREAM_SUBMIT_BURST="1000",
        ),
        processes.worker(
            store, MILLSTREAM_ANALYSES=ANALYSES, MILLSTREAM_RETRY_BASE_S="0", MILLSTREAM_LEASE_S="0.5",
            MILLSTREAM_MAX_JOBS="4",
        ),
        processes.worker(store, MILLSTREAM_ANALYSES=ANALYSES, MILLSTREAM_RETRY_BASE_S="0", MILLSTREAM_LEASE_S="0.5"),
    )  # fmt: skip
    yield Stack(store, api, [worker, second], data)
    await asyncio.gather(api.kill(), worker.kill(), second.kill())


async def jobs_of_every_kind(stack: Stack, gate: Path) -> None:
    """Leaves the first worker killed."""
    headers = {"Authorization": f"Bearer {(stack.data / 'key').read_text()}"}
    async with (
        rpc(stack.api, additional_headers=headers) as client,
        plain(stack.api, additional_headers=headers) as simple,
    ):
        ends: dict[str, list[str]] = {"succeeded": [], "failed": [], "cancelled": []}
        ends["succeeded"].append(await client.submit("report", {"count": 20}))
        ends["succeeded"].append(await client.submit("flaky", {"good_from": 2}))
        ends["succeeded"].append(await client.submit("process", {"text": "later"}, delay_s=0.2))
        ends["succeeded"].append(await client.submit("process", {"text": "urgent"}, priority="high"))
        ends["succeeded"] += [
            await client.submit("process", {"text": "one of many"}, priority="low") for _ in range(30)
        ]
        ends["succeeded"].append(await client.submit("process", {"text": "once"}, key="k"))
        assert (await client.call("job.submit", analysis="process", params={"text": "once"}, key="k"))["duplicate"]
        with pytest.raises(Refused):
            await client.submit("process", {"text": "another"}, key="k")
        ends["failed"].append(await client.submit("stumble", {"text": "no"}))
        ends["failed"].append(await client.submit("hold", timeout_s=0.2))
        running = await client.submit("hold")
        await client.until(running, "log")
        queued = await client.submit("process", {"text": "never"}, delay_s=60)
        for job in (running, queued):
            await client.call("job.cancel", job=job)
            ends["cancelled"].append(job)
        await simple.send("hello")
        assert await simple.recv() == "Processed data: hello"

        lost = [await client.submit("hold", {"gate": str(gate)}, max_attempts=1) for _ in range(12)]
        for job in lost:
            await client.until(job, "log")
        stack.workers[0].signal(signal.SIGKILL)
        gate.touch()
        for end, jobs in ends.items():
            for job in jobs:
                await client.until(job, end)
        exhausted = [(await client.end(job))[-1]["data"].get("error", {}).get("code") for job in lost]
        assert "attempts_exhausted" in exhausted

    pool = await create_pool(
        RedisSettings.from_dsn(stack.store.url), job_serializer=written, job_deserializer=json.loads
    )
    for name, arguments in (("process", ["adopted"]), ("stumble", ["adopted"])):
        job_ = await pool.enqueue_job(name, *arguments)
        assert job_ is not None
        try:
            await job_.result(timeout=10, poll_delay=0.02)
        except RuntimeError:
            assert name == "stumble"
    await pool.aclose()


def written(value: dict[str, Any]) -> bytes:
    return json.dumps(value).encode()


async def test_every_key_that_jobs_leave_behind_goes_away_by_itself(used: Stack, tmp_path: Path) -> None:
    await jobs_of_every_kind(used, tmp_path / "gate")
    async with redis.Redis.from_url(used.store.url) as client:

        async def nothing_runs() -> bool:
            return not await client.keys(f"{keys.LANE}*") and not await client.keys(f"{keys.LEASE}*")

        await until(nothing_runs, what="the last jobs to end")
        left = {key.decode(): await client.ttl(key) for key in await client.keys("*")}
        assert {key for key, ttl in left.items() if ttl == -1} <= FOR_EVER
        assert all(ttl <= LIFE_S for ttl in left.values())
        kinds = {key.split(":", 2)[1] for key in left if key.startswith("ms:")}
        assert {"job", "log", "key", "jobs", "bucket", "worker", "workers", "analyses"} <= kinds
        assert not [
            key for key in left if key.startswith((keys.INFLIGHT, keys.FRONT, keys.BACK, keys.BODY, keys.RETRY))
        ]
        assert [key for key in left if key.startswith(keys.RESULT)]
        ended = [key for key in left if key.startswith((keys.JOB, keys.LOG, keys.KEY))]
        assert len(ended) > 80
        assert all(0 < left[key] <= 3600 for key in ended), "an hour after the end, not more"


async def test_a_worker_that_ends_leaves_no_trace(used: Stack, own_processes: Processes) -> None:
    worker = await own_processes.worker(used.store)
    async with redis.Redis.from_url(used.store.url) as client:
        assert await client.exists(keys.WORKER + worker.url)
        worker.signal(signal.SIGTERM)
        assert await worker.ended() == 0
        assert await client.keys(f"{keys.WORKER}{worker.url}*") == []
        assert worker.url.encode() not in await client.zrange(keys.WORKERS, 0, -1)
