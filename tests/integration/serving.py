"""An ASGI app under uvicorn in the process of the test, to look at both sides of it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import nullcontext

import uvicorn

from shared.embedded import free_port
from tests.processes import until


async def serving(app: object, **settings: object) -> AsyncIterator[str]:
    port = free_port()
    # No log_config: what uvicorn logs reaches the root logger, and so a test's caplog.
    quiet = {"log_level": "warning", "log_config": None, "lifespan": "off"}
    config = uvicorn.Config(app, host="127.0.0.1", port=port, **quiet, **settings)  # type: ignore[arg-type]
    server = uvicorn.Server(config)
    server.capture_signals = nullcontext  # type: ignore[method-assign,assignment]
    running = asyncio.create_task(server.serve())

    async def started() -> bool:
        return server.started

    await until(started, what="the server to start")
    yield f"{'https' if 'ssl_certfile' in settings else 'http'}://127.0.0.1:{port}"
    server.should_exit = True
    await running
