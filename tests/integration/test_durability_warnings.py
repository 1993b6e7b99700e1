"""A store that may lose what it accepted is told of in the log of each process that starts beside it."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
import redis.asyncio as redis

from millstream.store.limits import Limits
from millstream.store.store import Store
from tests.integration.conftest import Client
from tests.processes import Process, Processes

THROWS_AWAY, FORGETS = "maxmemory-policy is not noeviction", "appendonly is not yes"


@pytest.fixture
async def server(own_processes: Processes) -> Process:
    return await own_processes.store()


@pytest.fixture
async def admin(server: Process) -> AsyncIterator[Client]:
    async with redis.Redis.from_url(server.url) as admin:
        yield admin


async def warnings(server: Process) -> list[str]:
    store = await Store(server.url, name="d", limits=Limits()).open(10)
    found = await store.durability_warnings()
    await store.close()
    return [warning.partition(":")[0] for warning in found]


async def test_a_store_that_keeps_everything_has_no_warnings_and_each_setting_that_may_lose_jobs_has_one(
    server: Process, admin: Client
) -> None:
    assert await warnings(server) == []
    await admin.config_set("maxmemory-policy", "volatile-ttl")
    assert await warnings(server) == [THROWS_AWAY]
    await admin.config_set("appendonly", "no")
    assert await warnings(server) == [THROWS_AWAY, FORGETS]
    await admin.config_set("maxmemory-policy", "noeviction")
    assert await warnings(server) == [FORGETS]


async def test_a_store_that_does_not_tell_its_settings_is_used_all_the_same(server: Process, admin: Client) -> None:
    await admin.execute_command("ACL", "SETUSER", "default", "-config")
    assert await warnings(server) == []


async def test_an_api_and_a_worker_warn_of_a_store_that_may_lose_jobs(
    server: Process, admin: Client, own_processes: Processes
) -> None:
    await admin.config_set("maxmemory-policy", "allkeys-lru")
    await admin.config_set("appendonly", "no")
    for process in await asyncio.gather(own_processes.api(server), own_processes.worker(server)):
        lines = [json.loads(line) for line in process.log.read_text().splitlines() if line.startswith("{")]
        told = [(line["level"], line["warning"].partition(":")[0]) for line in lines if "warning" in line]
        assert told == [("warning", THROWS_AWAY), ("warning", FORGETS)], process.arguments
