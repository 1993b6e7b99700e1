"""The uvicorn server: its settings, and draining on SIGTERM before anything is closed."""

import asyncio
import os
import signal
from collections.abc import Callable
from functools import partial
from time import monotonic
from types import FrameType

import structlog
import uvicorn
from fastapi import FastAPI

from millstream.heap import freeze_startup_heap
from millstream_api.app import create_app, with_files
from millstream_api.settings import ApiSettings
from millstream_api.wire.http_connection import HttpConnection, Limits

log = structlog.get_logger("millstream.api")

BACKLOG = 2048  # connections that the system holds until they are taken


class Server(uvicorn.Server):
    """SIGTERM or SIGINT drains the server, then stops it; a second signal stops it immediately, and so does one that
    comes while it still waits for its store.
    """

    def __init__(self, config: uvicorn.Config, app: FastAPI, drain_s: float) -> None:
        super().__init__(config)
        self._app = app
        self._drain_s = drain_s
        self._draining: asyncio.Task[None] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if not self.started:  # it holds nothing yet, and has no client
            log.info("stopped before it was ready", signal=signal.Signals(sig).name)
            os._exit(0)
        if self._draining is None:
            log.info("draining", signal=signal.Signals(sig).name)
            loop = self._loop
            loop.call_soon_threadsafe(self._start_draining)
        else:
            self.force_exit = True
            self.should_exit = True

    def _start_draining(self) -> None:
        self._draining = self._loop.create_task(self._drain())

    async def _drain(self) -> None:
        began = monotonic()
        try:
            await self._app.state.drain()
        finally:
            left = self._drain_s - (monotonic() - began)  # for downloads still in progress
            self.config.timeout_graceful_shutdown = max(0.1, left)  # type: ignore[assignment]  # fractions are fine
            self.should_exit = True

    async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets=sockets)  # type: ignore[arg-type]
        if self.started:
            port = self.servers[0].sockets[0].getsockname()[1]
            freeze_startup_heap()
            log.info("listening", host=self.config.host, port=port)


def make_server(settings: ApiSettings, host: str, port: int) -> Server:
    app = create_app(settings)
    config = uvicorn.Config(
        with_files(app),
        host=host,
        port=port,
        loop="uvloop",
        http=connections_of(app),  # type: ignore[arg-type]  # any callable will do
        ws="none",  # HttpConnection speaks both
        backlog=BACKLOG,
        log_config=None,
        access_log=False,
        proxy_headers=False,  # see app.py
    )
    return Server(config, app, settings.drain_s)


def connections_of(app: FastAPI) -> Callable[..., HttpConnection]:
    """What uvicorn makes for each client, with what was set."""
    settings: ApiSettings = app.state.settings
    limits = Limits(
        head_bytes=settings.head_bytes,
        fields=settings.head_fields,
        message_bytes=settings.max_body_bytes,
        fragments=settings.fragments,
        head_s=settings.head_s,
        body_s=settings.body_s,
        idle_s=settings.idle_s,
        stall_s=settings.send_timeout_s,
    )
    return partial(HttpConnection, limits=limits, population=app.state.population)
