"""A store that is empty at the start of each test; and APIs and workers that run for the whole session."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import redis.asyncio as redis

from millstream.store.limits import Limits
from millstream.store.store import Store
from tests.integration.rpc import Rpc, rpc
from tests.processes import Process, Processes

Client = Any  # redis.asyncio.Redis, whose types do not say which of its methods are to be awaited
ANALYSES = "tests.integration.analyses_for_tests"


@pytest.fixture
async def client(valkey: Process) -> AsyncIterator[Client]:
    """A plain client of the store; the database is empty."""
    async with redis.Redis.from_url(valkey.url) as client:
        await client.flushdb()
        yield client


@pytest.fixture
async def store(valkey: Process, client: Client) -> AsyncIterator[Store]:
    store = Store(valkey.url, name="tests", limits=Limits(), patience_s=5)
    await store.open(10)
    yield store
    await store.close()


@pytest.fixture
async def own_processes(tmp_path: Path) -> AsyncIterator[Processes]:
    """For what a test starts itself: only the loop that started a process can wait for its end."""
    async with Processes(tmp_path) as processes:
        yield processes


@dataclass(frozen=True)
class Stack:
    """An API and workers in a database of their own."""

    store: Process
    api: Process
    workers: list[Process]
    data: Path


def database(valkey: Process, number: int) -> Process:
    return replace(valkey, url=valkey.url.removesuffix("0") + str(number))


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def stack(valkey: Process, processes: Processes, tmp_path_factory: pytest.TempPathFactory) -> Stack:
    """One API and two workers, with the settings of a real one but for short waits."""
    store, data = database(valkey, 1), tmp_path_factory.mktemp("data")
    worker = {"MILLSTREAM_ANALYSES": ANALYSES, "MILLSTREAM_RETRY_BASE_S": "0.05"}
    api, *workers = await asyncio.gather(
        processes.api(store, MILLSTREAM_DATA_DIR=str(data), MILLSTREAM_CHECK_S="0.5"),
        processes.worker(store, **worker),
        processes.worker(store, **worker),
    )
    return Stack(store, api, list(workers), data)


@pytest.fixture
async def client_rpc(stack: Stack) -> AsyncIterator[Rpc]:
    async with rpc(stack.api) as client:
        yield client


@pytest.fixture
def home(stack: Stack, request: pytest.FixtureRequest) -> Path:
    """A directory for the files of one test, below the served one; it is not there yet."""
    name: str = request.node.name
    return stack.data / name.replace("[", "-").replace("]", "")
