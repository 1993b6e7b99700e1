"""ASGI apps in the process of the test, to look at both sides of them: under uvicorn, or called as they are."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from millstream.apikeys import Keys
from millstream.confined_fs import ServedDirectory
from millstream.store.embedded import free_port
from millstream_api.files import tus
from millstream_api.files.app import Files
from millstream_api.files.sending import Traffic
from millstream_api.files.uploads import Uploads
from millstream_api.settings import ApiSettings
from millstream_api.wire.http_connection import HttpConnection, Limits
from millstream_api.wire.population import Population
from tests.processes import until

LIMITS = Limits(stall_s=10)


@asynccontextmanager
async def serving(app: ASGIApp, limits: Limits = LIMITS, **settings: Any) -> AsyncIterator[str]:
    """Its address. The app has a thread and an event loop of its own: uvloop's, as in earnest, unless `loop` says
    "asyncio". What the server logs reaches the root logger, and so a test's caplog. Nothing looks at deadlines.
    """
    number = free_port()
    ours: dict[str, Any] = {
        "http": partial(HttpConnection, limits=limits, population=Population(most=1000, most_of_address=1000)),
        "ws": "none", "loop": "uvloop", "log_level": "warning", "log_config": None, "lifespan": "off",
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


def open_here(path: Path) -> int:
    """How often this process has a file open."""
    found = 0
    for link in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            found += str(link.readlink()) == str(path)
    return found


def port(url: str) -> int:
    return int(url.rpartition(":")[2])


@asynccontextmanager
async def files_here(data: Path, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the file tier with these settings, without a server: where the system's calls can be watched and made
    to fail.
    """
    settings, directory = ApiSettings(_env_file=None, **options), ServedDirectory(data)
    uploads = Uploads(settings, directory)
    files = Files(settings, Keys(None), directory, uploads, Traffic(), asyncio.Event())
    resumable = tus.Tus(settings, Keys(None), directory, uploads)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await (resumable if scope["path"].startswith(tus.PREFIX) else files)(scope, receive, send)

    try:
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)  # 500, as under a server
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            yield http
    finally:
        directory.close()
