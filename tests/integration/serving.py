"""An ASGI app under uvicorn in the process of the test, to look at both sides of it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from shared.embedded import free_port
from tests.processes import until


@asynccontextmanager
async def serving(app: ASGIApp, **settings: Any) -> AsyncIterator[str]:
    """Its address. The app has a thread and an event loop of its own: uvloop's, as in earnest, unless `loop` says
    "asyncio". What uvicorn logs reaches the root logger, and so a test's caplog.
    """
    number = free_port()
    ours = {"http": "httptools", "loop": "uvloop", "log_level": "warning", "log_config": None, "lifespan": "off"}
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=number, **(ours | settings)))
    running = asyncio.create_task(asyncio.to_thread(server.run))

    async def started() -> bool:
        return server.started

    try:
        await until(started, what="the server to start")
        yield f"{'https' if 'ssl_certfile' in settings else 'http'}://127.0.0.1:{number}"
    finally:
        server.should_exit = True
        await running


def port(url: str) -> int:
    return int(url.rpartition(":")[2])
