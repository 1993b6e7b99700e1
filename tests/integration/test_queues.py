"""Queues: an analysis names one, workers of that queue run its jobs, and the API knows of it."""

import asyncio
from pathlib import Path

import redis.asyncio as redis

from millstream.store import keys
from tests.integration.conftest import database
from tests.integration.web import Json, ended, events, following, submit, web
from tests.processes import Process, Processes, until

MODULE = "tests.integration.queued_analyses"


async def test_jobs_run_on_the_workers_of_their_analysis_queue_are_counted_there_and_expire_there(
    valkey: Process, own_processes: Processes, tmp_path: Path
) -> None:
    store = database(valkey, 14)
    api, worker = await asyncio.gather(
        own_processes.api(store, MILLSTREAM_CHECK_S="0.1"),
        own_processes.worker(
            store, MILLSTREAM_ANALYSES=MODULE, MILLSTREAM_QUEUE="slow", MILLSTREAM_MAX_JOBS="1"
        ),
    )  # fmt: skip
    gate = tmp_path / "gate"
    async with web(api) as http, redis.Redis.from_url(store.url) as client:
        known: list[Json] = []

        async def told() -> bool:
            known[:] = (await http.get("/analyses")).json()
            return bool(known)

        await until(told, what="the API to know the analyses")
        assert [(found["name"], found["queue"]) for found in known] == [("slow", "slow")], "and none of other queues"
        running = await submit(http, "slow", {"gate": str(gate)})
        assert (await http.get(f"/jobs/{running}")).json()["queue"] == "slow"
        async with following(http, running) as stream:
            await stream.until("started")
        waiting, doomed = [await submit(http, "slow") for _ in range(2)]

        async def of_queues() -> dict[str, tuple[int, int]]:
            found: list[Json] = (await http.get("/queues")).json()
            return {queue["name"]: (queue["running"], queue["depth"]) for queue in found}

        assert await of_queues() == {"default": (0, 0), "slow": (1, 2)}

        # The only worker has no free slot, so it is the API that ends what has waited too long.
        await client.delete(keys.BODY + doomed)  # as when its life is over
        snapshot = await ended(http, doomed)
        assert (snapshot["status"], snapshot["error"]["code"]) == ("failed", "expired")
        assert await of_queues() == {"default": (0, 0), "slow": (1, 1)}

        gate.touch()
        for job in (running, waiting):
            snapshot = await ended(http, job)
            assert (snapshot["status"], snapshot["result"]) == ("succeeded", "slow")
            (started,) = [event for event in await events(http, job) if event["type"] == "started"]
            assert started["data"]["worker"] == worker.url
        (beat,) = (await http.get("/workers")).json()
        assert (beat["worker"], beat["queue"]) == (worker.url, "slow")
