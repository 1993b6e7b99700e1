"""A live server for each test, and Debian's Chromium."""

import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.async_api import Browser, async_playwright

from tests.processes import Process, Processes

CHROMIUM = "/usr/bin/chromium"
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
ANALYSES = {"MILLSTREAM_ANALYSES": "tests.browser.analyses_for_browser"}


@dataclass
class Live:
    processes: Processes
    store: Process
    api: Process
    data: Path


@pytest.fixture
async def live(tmp_path: Path) -> AsyncIterator[Live]:
    data = tmp_path / "data"
    data.mkdir()
    async with Processes(tmp_path) as processes:
        store = await processes.store()
        api = await processes.api(store, None, MILLSTREAM_DATA_DIR=str(data))
        await processes.worker(store, MILLSTREAM_DATA_DIR=str(data), **ANALYSES)
        yield Live(processes, store, api, data)


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    if not Path(CHROMIUM).exists():
        assert not os.environ.get("CI"), "CI must have Debian's chromium"
        pytest.skip("there is no /usr/bin/chromium here")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        await browser.close()
