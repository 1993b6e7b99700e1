"""Every fault test has its own processes: what it breaks belongs to no other test."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.processes import Processes


@pytest.fixture
async def processes(tmp_path: Path) -> AsyncIterator[Processes]:
    async with Processes(tmp_path) as processes:
        yield processes
