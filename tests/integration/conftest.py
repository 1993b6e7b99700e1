"""A store that is empty at the start of each test."""

from collections.abc import AsyncIterator

import pytest
import redis.asyncio as redis

from shared.store import Limits, Store
from tests.processes import Process


@pytest.fixture
async def client(valkey: Process) -> AsyncIterator["redis.Redis"]:
    """A plain client of the store; the database is empty."""
    async with redis.Redis.from_url(valkey.url) as client:
        await client.flushdb()
        yield client


@pytest.fixture
async def store(valkey: Process, client: "redis.Redis") -> AsyncIterator[Store]:
    store = Store(valkey.url, name="tests", limits=Limits(), patience_s=5)
    await store.open(10)
    yield store
    await store.close()
