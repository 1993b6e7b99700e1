"""The uvicorn server: its settings, and draining on SIGTERM before anything is closed."""

import asyncio
import logging
import signal
from functools import partial
from time import monotonic
from types import FrameType

import structlog
import uvicorn
from fastapi import FastAPI

from millstream.heap import freeze_startup_heap
from millstream_api.app import create_app, with_files
from millstream_api.settings import ApiSettings
from millstream_api.wire.protocols import HttpProtocol, SocketProtocol

log = structlog.get_logger("millstream.api")


class Server(uvicorn.Server):
    """SIGTERM or SIGINT drains the server, then stops it; a second signal stops it immediately."""

    def __init__(self, config: uvicorn.Config, app: FastAPI, drain_s: float) -> None:
        super().__init__(config)
        self._app = app
        self._drain_s = drain_s
        self._draining: asyncio.Task[None] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._draining is None and self.started:
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


# Logged by uvicorn as errors, but expected: a handshake that the app refused, a client's text frame that is not UTF-8.
EXPECTED_MESSAGES = (
    "ASGI callable returned without completing handshake",
    "Invalid UTF-8 sequence received from client",
)


def _is_error(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(EXPECTED_MESSAGES)


def make_server(settings: ApiSettings, host: str, port: int) -> Server:
    logging.getLogger("uvicorn.error").addFilter(_is_error)
    app = create_app(settings)
    config = uvicorn.Config(
        with_files(app),
        host=host,
        port=port,
        loop="uvloop",
        http=partial(HttpProtocol, head_bytes=settings.head_bytes),  # type: ignore[arg-type]  # any callable will do
        ws=SocketProtocol,
        ws_max_size=settings.max_body_bytes,
        ws_per_message_deflate=False,
        ws_ping_interval=20,
        # No ping timeout: a slow reader, or a client whose messages we do not read for now, cannot reply in time. TCP
        # reports the clients that are gone.
        ws_ping_timeout=None,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # see app.py
    )
    return Server(config, app, settings.drain_s)
