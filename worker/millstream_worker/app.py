"""A worker process: advertise its analyses and run the engine until a signal comes."""

import asyncio
import os
import secrets
import signal
import socket

import redis
import structlog
from redis.exceptions import RedisError

from millstream.authoring.analysis import Analysis
from millstream.background import Background
from millstream.heap import freeze_startup_heap
from millstream.store import keys
from millstream.store.pipeline import shown
from millstream.store.store import Store
from millstream_worker.engine import Engine
from millstream_worker.settings import WorkerSettings

log = structlog.get_logger("millstream.worker")


def worker_name() -> str:
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(2)}"


def alive(settings: WorkerSettings) -> int:
    """For a container's health check: 0 when the store has a heartbeat of a worker of this host, else 1 and why."""
    try:
        with redis.Redis.from_url(settings.redis_url, socket_timeout=3, socket_connect_timeout=3) as client:
            names = [name.decode() for name in client.zrange(keys.WORKERS, 0, -1)]
            beats = [client.get(keys.WORKER + name) for name in names if name.startswith(f"{socket.gethostname()}-")]
    except RedisError as error:
        print(f"The store cannot be reached: {error}")
        return 1
    if any(beats):
        return 0
    print("No worker on this host has sent a recent heartbeat.")
    return 1


async def serve(settings: WorkerSettings, analyses: dict[str, Analysis]) -> None:
    """Run one worker until SIGTERM or SIGINT. A second signal ends it at once; so does one that comes while it still
    waits for its store.
    """
    mine = {name: analysis for name, analysis in analyses.items() if analysis.queue == settings.queue}
    name = worker_name()
    advertised = [mine[key].advertisement(settings.timeout_s) for key in sorted(mine)]
    store = Store(
        settings.redis_url,
        name=name,
        limits=settings,
        patience_s=settings.store_patience_s,
        on_connect=lambda store: store.advertise(advertised),
    )
    engine: Engine | None = None
    draining: list[asyncio.Task[None]] = []
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        if engine is None:
            log.info("worker stopped before it was ready", worker=name)
            os._exit(0)
        if draining:
            os._exit(1)
        draining.append(loop.create_task(engine.drain()))

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    log.info("worker starting", worker=name, store=shown(settings.redis_url), analyses=sorted(mine))
    await store.open()
    for warning in await store.durability_warnings():
        log.warning("the store is not configured for durability", warning=warning)
    background = Background()
    engine = Engine(settings, mine, store, name, background)
    freeze_startup_heap()

    # The store forgets them when no worker says so, and may have been emptied while the connection stood.
    again_s = min(settings.lease_s, settings.life_s / 4)
    background.every(again_s, "advertise again", lambda: store.advertise(advertised, again=True))
    try:
        await engine.async_run()
    except asyncio.CancelledError:
        if not draining:
            raise
    finally:
        await background.close()
        if engine.tasks:  # they ignore being cancelled, and would keep the process alive
            engine.leases.stop()
            os._exit(1)
        await engine.close()
        await store.close()
    log.info("worker stopped", worker=name)
