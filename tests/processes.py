"""Real processes for tests and benchmarks: a store, APIs, workers, each with its own log, all ended at the end.

async with Processes(tmp_path) as processes:
    store = await processes.store()
    api = await processes.api(store)
    worker = await processes.worker(store, MILLSTREAM_LEASE_S="2")
    worker.signal(signal.SIGKILL)
"""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import httpx
import redis.asyncio as redis
from redis.exceptions import RedisError

from millstream.store.embedded import find_server, free_port
from millstream.store.keys import WORKERS

START_S = 45  # what a process may take to start, on a machine that starts several at once


async def until(condition: Callable[[], Awaitable[bool]], *, what: str, within_s: float = 15) -> float:
    """Wait until a condition holds; returns the seconds that took. Raises AssertionError when it does not in time."""
    began = time.monotonic()
    while not await condition():
        assert time.monotonic() - began < within_s, f"timed out after {within_s} s waiting for {what}"
        await asyncio.sleep(0.01)
    return time.monotonic() - began


@dataclass
class Process:
    """A running program. `url` is where it answers: redis://… (a store), http://… (an API); a worker's is its name."""

    arguments: list[str]
    environment: dict[str, str]
    log: Path
    url: str = ""
    running: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        with self.log.open("ab") as log:
            self.running = await asyncio.create_subprocess_exec(
                *self.arguments, env={**os.environ, **self.environment}, stdin=asyncio.subprocess.DEVNULL,
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    @property
    def pid(self) -> int:
        assert self.running is not None
        return self.running.pid

    def signal(self, number: signal.Signals) -> None:
        assert self.running is not None
        self.running.send_signal(number)

    async def ended(self, within_s: float = 15) -> int:
        """Wait for the end; returns the exit code."""
        assert self.running is not None
        async with asyncio.timeout(within_s):
            return await self.running.wait()

    async def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        if self.running and self.running.returncode is None:
            self.running.kill()
            await self.running.wait()

    @property
    def ws(self) -> str:
        return self.url.replace("http://", "ws://") + "/ws"

    def rss_bytes(self) -> int:
        """Resident memory now."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@dataclass
class Processes:
    directory: Path
    started: list[Process] = field(default_factory=list)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        alive = [process for process in self.started if process.running and process.running.returncode is None]
        for process in alive:
            with suppress(ProcessLookupError):  # it ended by itself just now
                os.killpg(process.pid, signal.SIGKILL)  # each leads a session: its children end with it
        for process in alive:
            await process.ended()

    async def _start(self, name: str, arguments: list[str], environment: dict[str, str], url: str) -> Process:
        log = self.directory / f"{name}-{len(self.started)}.log"
        process = Process(arguments, environment, log, url)
        self.started.append(process)
        await process.start()
        return process

    async def store(self, port: int | None = None) -> Process:
        """A store with AOF, as compose runs it. `start()` again after a kill: same port, same data."""
        port = port or free_port()
        data = self.directory / f"store-{port}"
        data.mkdir(exist_ok=True)
        options = {
            "port": port, "bind": "127.0.0.1", "dir": data, "appendonly": "yes", "save": "", "loglevel": "warning",
            "auto-aof-rewrite-min-size": "256mb", "maxmemory-policy": "noeviction",
        }  # fmt: skip
        arguments = [find_server(), *(part for name, value in options.items() for part in (f"--{name}", str(value)))]
        process = await self._start("store", arguments, {}, f"redis://127.0.0.1:{port}/0")
        await self.answers(process)
        return process

    async def api(self, store: Process, port: int | None = None, **environment: str) -> Process:
        port = port or free_port()
        arguments = [sys.executable, "-P", "-m", "millstream_api", "--port", str(port)]
        settings = {"MILLSTREAM_REDIS_URL": store.url, "MILLSTREAM_HOSTS": "x", **environment}  # of requests by hand
        process = await self._start("api", arguments, settings, f"http://127.0.0.1:{port}")
        await self.answers(process)
        return process

    async def worker(self, store: Process, **environment: str) -> Process:
        """A worker that has announced itself. Its name in events and heartbeats ends up in `url`."""
        settings = {"MILLSTREAM_REDIS_URL": store.url, "MILLSTREAM_LEASE_S": "2", **environment}
        process = await self._start("worker", [sys.executable, "-P", "-m", "millstream_worker"], settings, "")
        async with redis.Redis.from_url(store.url) as client:

            async def announced() -> bool:
                names = [name.decode() for name in await client.zrange(WORKERS, 0, -1)]
                process.url = next((name for name in names if f"-{process.pid}-" in name), "")
                return bool(process.url)

            await until(announced, what=f"worker {process.pid} to announce itself", within_s=START_S)
        return process

    async def answers(self, process: Process, path: str = "/readyz") -> None:
        """Wait until a store or an API answers."""

        async def answering() -> bool:
            ended = process.running is None or process.running.returncode is not None
            assert not ended, process.log.read_text()[-2000:]
            try:
                if process.url.startswith("redis"):
                    async with redis.Redis.from_url(process.url) as client:
                        return bool(await client.ping())
                return (await http.get(f"{process.url}{path}")).status_code == 200
            except (RedisError, OSError, httpx.HTTPError):
                return False

        async with httpx.AsyncClient(trust_env=False) as http:
            await until(answering, what=f"{process.url} to answer", within_s=START_S)


def open_files(api: Process, path: Path) -> int:
    """How often a process has a file open."""
    found = 0
    for link in Path(f"/proc/{api.pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            found += str(link.readlink()) == str(path)
    return found
