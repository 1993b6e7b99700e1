"""The heartbeat of a worker: a thread that renews leases while the worker is well, and lets go when it is not."""

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from millstream.background import Health
from millstream.store import keys
from millstream.store.store import Store
from millstream_worker.leases import Leases
from tests.integration.conftest import Client
from tests.integration.jobs import lease_runs_out, running
from tests.processes import Process, until

LEASE_S, STALL_S = 0.3, 3600
Make = Callable[[], Leases]


@pytest.fixture
def lost() -> list[tuple[str, str]]:
    """What the heartbeat told that it has lost."""
    return []


@pytest.fixture
def make(valkey: Process, client: Client, lost: list[Any]) -> Iterator[Make]:
    """Make heartbeats of a worker `w`, whose threads end with the test."""
    made: list[Leases] = []

    def make() -> Leases:
        leases = Leases(
            valkey.url, "w", lease_s=LEASE_S, stall_s=STALL_S, slots=7, queue="default",
            on_lost=lambda id, token: lost.append((id, token)), health=Health(),
        )  # fmt: skip
        made.append(leases)
        return leases

    yield make
    for leases in made:
        if leases.is_alive():
            leases.stop()


async def listed(client: Client) -> None:
    async def beats() -> bool:
        return bool(await client.exists(keys.WORKER + "w")) and await client.zscore(keys.WORKERS, "w") is not None

    await until(beats, what="a heartbeat")


async def test_a_worker_whose_loop_hangs_loses_its_leases_and_its_place_in_the_list(
    store: Store, client: Client, make: Make, lost: list[tuple[str, str]]
) -> None:
    job = await running(store)
    leases = make()
    leases.held.add((job.id, job.token))
    leases.start()
    await listed(client)
    assert await store.pipeline.call("GET", keys.LEASE + job.id) == job.token.encode()
    leases.last_tick = time.monotonic() - STALL_S - 1
    await lease_runs_out(store, job.id)

    async def unlisted() -> bool:
        return not await client.exists(keys.WORKER + "w")

    await until(unlisted, what="the heartbeat to run out")
    assert lost == []
    leases.last_tick = time.monotonic()  # it goes on after all
    await listed(client)

    async def told() -> bool:
        return (job.id, job.token) in lost

    await until(told, what="the worker to hear what it has lost")
    assert not await client.exists(keys.LEASE + job.id)


async def test_a_worker_that_leaves_is_off_the_list_at_once(client: Client, make: Make) -> None:
    leases = make()
    leases.start()
    await listed(client)
    await asyncio.to_thread(leases.stop)
    assert not leases.is_alive()
    assert not await client.exists(keys.WORKER + "w", keys.WORKERS)


async def test_a_heartbeat_that_the_store_refused_is_not_the_last(client: Client, make: Make) -> None:
    await client.set(keys.WORKERS, "not what it should be")
    leases = make()
    leases.start()

    async def begun() -> bool:
        return bool(await client.exists(keys.WORKER + "w"))  # the script wrote this, and failed at the next

    await until(begun, what="the first heartbeat")
    await client.delete(keys.WORKERS)
    await listed(client)
