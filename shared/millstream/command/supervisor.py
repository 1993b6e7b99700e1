"""A complete Millstream on one machine: store, API and workers as child processes, restarted when they end."""

import asyncio
import ctypes
import os
import signal
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from millstream.backoff import backoff_s
from millstream.store.embedded import EmbeddedStore, NoStore, free_port, start_embedded
from millstream.store.pipeline import shown

USAGE_ERROR = 2  # exit code of a child that was started wrongly: starting it again would not help
PR_SET_PDEATHSIG = 1
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy leads to this machine


class CannotRun(Exception):
    """Nothing can be started or kept running; the message says why and what to do."""


@dataclass(slots=True)
class Child:
    """One child process and how to start it again."""

    name: str
    arguments: list[str]
    environment: dict[str, str]
    process: asyncio.subprocess.Process | None = None
    restarts: int = 0

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    async def start(self) -> None:
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", *self.arguments, env={**os.environ, **self.environment},
            stdin=asyncio.subprocess.DEVNULL, start_new_session=True, preexec_fn=end_with_parent,
        )  # fmt: skip

    def send(self, number: signal.Signals) -> None:
        if self.process and self.process.returncode is None:
            self.process.send_signal(number)


@dataclass(slots=True)
class Supervisor:
    """Start everything with `start()`, keep it running with `run()`, end it with `stop()`.

    `redis_url` None: an embedded store, whose data are kept below `data`. `say` is called with each line to
    print.
    """

    host: str
    port: int
    workers: int
    data: Path
    redis_url: str | None = None
    drain_s: float = 15
    settings: dict[str, str] = field(default_factory=dict)
    say: Callable[[str], None] = print
    store: EmbeddedStore | None = None
    api: Child | None = None
    worker_children: list[Child] = field(default_factory=list)
    _stopping: bool = False
    _keepers: list[asyncio.Task[None]] = field(default_factory=list)
    _failed: asyncio.Event = field(default_factory=asyncio.Event)
    _reason: str = ""

    @property
    def url(self) -> str:
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    async def start(self) -> None:
        """Start the store, the API and the workers, and wait until they answer. Raises CannotRun, NoStore."""
        self.port = self.port or free_port(self.host)
        check_port(self.host, self.port)
        self.data.mkdir(parents=True, exist_ok=True)
        if self.redis_url is None:
            self.store = await start_embedded(self.data / ".store", preexec=end_with_parent)
            self.redis_url = self.store.url
            self._keep(self._keep_store(self.store))
        environment = {
            **self.settings,
            "MILLSTREAM_REDIS_URL": self.redis_url,
            "MILLSTREAM_DATA_DIR": str(self.data),
        }
        self.api = Child("api", ["millstream_api", "--host", self.host, "--port", str(self.port)], environment)
        self.worker_children = [
            Child(f"worker {n}", ["millstream_worker"], environment) for n in range(1, self.workers + 1)
        ]
        for child in [self.api, *self.worker_children]:
            await child.start()
            self._keep(self._keep_child(child))
        await self._ready()
        where = f"embedded, kept in {self.data / '.store'}" if self.store else "given"
        pids = ", ".join(str(child.pid) for child in self.worker_children) or "none"
        self.say(f"store    {shown(self.redis_url)} ({where})")
        self.say(f"api      {self.url}  {self.url.replace('http', 'ws', 1)}/ws  (pid {self.api.pid})")
        self.say(f"workers  {self.workers} (pids {pids})")
        self.say(f"files    {self.data}")

    async def run(self) -> None:
        """Keep everything running until `stop()`. Raises CannotRun when a part cannot be kept running."""
        await self._failed.wait()
        if self._reason:
            raise CannotRun(self._reason)

    def _keep(self, coroutine: object) -> None:
        self._keepers.append(asyncio.create_task(coroutine))  # type: ignore[arg-type]

    async def _keep_child(self, child: Child) -> None:
        while True:
            began = time.monotonic()
            assert child.process is not None
            pid, code = child.pid, await child.process.wait()
            if self._stopping:
                return
            if code == USAGE_ERROR:
                self._fail(f"{child.name} could not be started; see its output above.")
                return
            child.restarts = 0 if time.monotonic() - began > 10 else child.restarts + 1
            await asyncio.sleep(backoff_s(child.restarts, first_s=0.2, max_s=5) if child.restarts else 0)
            if self._stopping:
                return
            await child.start()
            if self._stopping:
                child.send(signal.SIGKILL)
                return
            self.say(f"{child.name} (pid {pid}) {ending(code)}; started again as pid {child.pid}")

    async def _keep_store(self, store: EmbeddedStore) -> None:
        while True:
            pid, code = store.process.pid, await store.process.wait()
            if self._stopping:
                return
            try:
                await store.restart(preexec=end_with_parent)
            except NoStore as error:
                self._fail(f"The embedded store {ending(code)} and could not be started again. {error}")
                return
            self.say(f"store (pid {pid}) {ending(code)}; started again as pid {store.process.pid}")

    def _fail(self, reason: str) -> None:
        self._reason = reason
        self._failed.set()

    async def _ready(self) -> None:
        for _ in range(600):
            if self._failed.is_set():
                raise CannotRun(self._reason)
            if await asyncio.to_thread(_answers, f"{self.url}/readyz"):
                return
            await asyncio.sleep(0.05)
        raise CannotRun("The API did not become ready within 30 s.")

    async def stop(self) -> None:
        """Drain: workers hand their jobs back, the API tells its clients to reconnect, then the store is stopped."""
        if self._stopping:
            return
        self._stopping = True
        children = [child for child in [self.api, *self.worker_children] if child and child.process]
        for child in children:
            child.send(signal.SIGTERM)
        with suppress(TimeoutError):
            async with asyncio.timeout(self.drain_s):
                await asyncio.gather(*(child.process.wait() for child in children if child.process))
        self.kill()
        if self.store:
            await self.store.stop()
        for task in self._keepers:
            task.cancel()
        self._failed.set()

    def kill(self) -> None:
        """End everything but the store immediately."""
        self._stopping = True
        for child in [self.api, *self.worker_children]:
            if child:
                child.send(signal.SIGKILL)


def end_with_parent() -> None:
    """In a child, before it becomes its program: end when the parent ends, in whatever way (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def check_port(host: str, port: int) -> None:
    """Raises CannotRun when nothing can listen there."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise CannotRun(
                f"Port {port} of {host} cannot be used ({error.strerror}). Choose another with --port."
            ) from None


def ending(code: int) -> str:
    """How a process ended, in words."""
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def _answers(url: str) -> bool:
    asked = urllib.request.Request(url, headers={"Host": "localhost"})  # is answered whatever MILLSTREAM_HOSTS says
    try:
        with DIRECT.open(asked, timeout=2) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False
