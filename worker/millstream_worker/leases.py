"""The heartbeat: renews the leases of running jobs, from a thread with a connection of its own, so that an event loop
that is busy does not lose them. A watchdog keeps a stalled loop from holding them for ever.
"""

import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable

import redis
import structlog
from redis.exceptions import RedisError

from millstream.background import Health
from millstream.protocol.events import rfc3339
from millstream.protocol.fleet import Heartbeat
from millstream.store import keys
from millstream.store.not_now import refusal
from millstream.store.pipeline import Argument
from millstream.store.scripts import load_scripts

# What redis-py raises for a store that is away, and for the refusals whose first word it takes off.
AWAY = (redis.ConnectionError, redis.TimeoutError, redis.ReadOnlyError, redis.exceptions.OutOfMemoryError)
TRIES = 10  # to renew the leases, in the time between two heartbeats, while the store is away

log = structlog.get_logger("millstream.worker")


class Leases(threading.Thread):
    """Holds what this worker has claimed: `held` is the set of (job, token), changed by the loop, read here. So is
    `ended`, which counts attempts by how they ended.

    `on_lost` is called, in this thread, for each pair that is no longer owned.
    """

    def __init__(
        self,
        url: str,
        worker: str,
        *,
        lease_s: float,
        stall_s: float,
        slots: int,
        queue: str,
        on_lost: Callable[[str, str], None],
        health: Health,
    ) -> None:
        super().__init__(name="leases", daemon=True)
        self.held: set[tuple[str, str]] = set()
        self.ended = Counter({"succeeded": 0, "failed": 0, "retrying": 0})
        self.last_tick = time.monotonic()
        self._worker = worker
        self._lease_ms = round(lease_s * 1000)
        self._stall_s = stall_s
        self._slots = slots
        self._queue = queue
        self._on_lost = on_lost
        self._health = health
        self._stopping = threading.Event()
        timeout = max(0.5, lease_s / 3)
        self._client = redis.Redis.from_url(url, socket_timeout=timeout, socket_connect_timeout=timeout)
        self._script = load_scripts()["renew"]
        self._renew = self._client.register_script(self._script.text)

    def run(self) -> None:
        unreachable = False
        while True:
            pause_s = self._lease_ms / 3000
            try:
                self._beat()
                self._health.succeeded("heartbeat")
                unreachable = False
            except Exception as error:
                if isinstance(error, AWAY) or refusal(error):
                    if not unreachable:
                        log.warning("leases could not be renewed", error=str(error))
                    unreachable = True
                    pause_s /= TRIES  # or a store that is back soon would find the leases run out
                else:
                    self._health.failed("heartbeat", error)
            if self._stopping.wait(pause_s):
                return

    def _beat(self) -> None:
        held = list(self.held.copy())
        stalled_s = time.monotonic() - self.last_tick
        if stalled_s > self._stall_s:
            if held:
                log.error("event loop stalled; releasing its jobs", stalled_s=round(stalled_s), jobs=len(held))
            return  # and no heartbeat: this worker is not well
        pairs = [part for pair in held for part in pair]
        heartbeat = self._heartbeat(len(held))
        given: dict[str, Argument] = {"worker": self._worker, "lease_ms": self._lease_ms, "heartbeat": heartbeat}
        lost = self._renew(args=self._script.bind(given, pairs))
        for id, token in zip(lost[::2], lost[1::2], strict=True):
            self._on_lost(id.decode(), token.decode())

    def _heartbeat(self, running: int) -> str:
        return Heartbeat(
            worker=self._worker,
            host=socket.gethostname(),
            pid=os.getpid(),
            queue=self._queue,
            slots=self._slots,
            running=running,
            rss=_rss_bytes(),
            at=rfc3339(time.time_ns() // 1_000_000),
            ended=dict(self.ended),
            failures=dict(self._health.failures),
        ).model_dump_json()

    def stop(self) -> None:
        """End the thread, and take this worker off the list of workers."""
        self._stopping.set()
        self.join(timeout=5)
        try:
            self._client.delete(keys.WORKER + self._worker)
            self._client.zrem(keys.WORKERS, self._worker)
        except RedisError:
            pass  # both run out by themselves
        self._client.close()


def _rss_bytes() -> int:
    try:
        with open("/proc/self/statm") as statm:  # noqa: PTH123 (a hot path)
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
