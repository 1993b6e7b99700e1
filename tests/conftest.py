"""One store for the whole run, started when the first test asks for it."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from hypothesis import settings

from tests.processes import Process, Processes

# The same examples every time, so that a red run can be made again. New ones: pytest --hypothesis-profile=search
settings.register_profile("run", deadline=None, derandomize=True)
settings.register_profile("search", deadline=None, max_examples=2000)
settings.load_profile("run")


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def processes(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Processes]:
    async with Processes(tmp_path_factory.mktemp("processes")) as processes:
        yield processes


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def valkey(processes: Processes) -> Process:
    """A store that every test may use: those of the store in database 0, each group of processes in one of its own."""
    return await processes.store()
