"""An ASGI app under uvicorn in the process of the test, to look at both sides of it."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from millstream.store.embedded import free_port
from tests.processes import until


@asynccontextmanager
async def serving(app: ASGIApp, **settings: Any) -> AsyncIterator[str]:
    """Its address. The app has a thread and an event loop of its own: uvloop's, as in earnest, unless `loop` says
    "asyncio". What uvicorn logs reaches the root logger, and so a test's caplog.
    """
    number = free_port()
    ours = {
        "http": "httptools", "loop": "uvloop", "log_level": "warning", "log_config": None, "lifespan": "off",
        "timeout_graceful_shutdown": 5,  # a client that a failed test left behind does not hold it up
    }  # fmt: skip
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=number, **(ours | settings)))
    running = threading.Thread(target=server.run, daemon=True)
    running.start()

    async def started() -> bool:
        return server.started

    try:
        await until(started, what="the server to start")
        yield f"{'https' if 'ssl_certfile' in settings else 'http'}://127.0.0.1:{number}"
    finally:
        server.should_exit = True
        await asyncio.to_thread(running.join, 20)
    assert not running.is_alive()


def port(url: str) -> int:
    return int(url.rpartition(":")[2])
