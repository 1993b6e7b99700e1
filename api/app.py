"""The ASGI application: what is served where, what is opened at the start and closed at the end."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Annotated

import structlog
from fastapi import FastAPI, Query, Response
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import WebSocketRoute

from api import files, jobs
from api.commands import Commands
from api.problems import answer_with_problems, problem_response
from api.relay import Relay
from api.settings import ApiSettings
from api.specifications import publish
from api.websocket import Sockets
from shared.apikeys import Keys
from shared.errors import Problem
from shared.store import Store

log = structlog.get_logger("millstream.api")


def create_app(settings: ApiSettings) -> FastAPI:
    """The API as an app. `app.state.drain()` starts the drain: no new jobs, every socket told to reconnect and
    closed.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        store = Store(settings.redis_url, name="api", limits=settings.limits, patience_s=settings.store_patience_s)
        relay = Relay(settings.redis_url, store, check_s=settings.check_s)
        commands = Commands(settings, store, relay, Keys(settings.api_keys_file))
        sockets = Sockets(commands)
        app.state.commands = commands
        app.router.routes.append(WebSocketRoute("/ws", sockets.serve))

        async def drain() -> None:
            commands.draining.set()
            await sockets.drain()

        app.state.drain = drain
        await store.open()
        for doubt in await store.doubts():
            log.warning("this store does not keep everything", doubt=doubt)
        await relay.open()
        refreshing = asyncio.create_task(_keep_catalog(commands))
        try:
            yield
        finally:
            refreshing.cancel()
            await relay.close()
            await store.close()

    app = FastAPI(
        title="Millstream", lifespan=lifespan, docs_url=None, redoc_url=None, max_body_size=settings.max_body_bytes
    )
    app.state.settings = settings
    answer_with_problems(app)
    app.include_router(jobs.router)
    app.include_router(files.router)
    publish(app)
    if settings.cors_origins:
        allowed = [origin.strip() for origin in settings.cors_origins.split(",")]
        app.add_middleware(
            CORSMiddleware,
            allow_origins=allowed,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "Idempotency-Key", "Last-Event-ID", "Prefer"],
            expose_headers=["Location", "Link", "Preference-Applied", "RateLimit", "RateLimit-Policy", "Retry-After"],
        )

    @app.get("/async_route")
    async def async_route(
        delay: Annotated[float, Query(ge=0, le=60, allow_inf_nan=False, description="seconds")] = 2,
    ) -> dict[str, str]:
        """Wait without blocking, then answer."""
        await asyncio.sleep(delay)
        return {"message": "协程路由响应"}

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Does this process run? No I/O."""
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz() -> Response:
        """Should this process get traffic? The store answers, and it is not draining."""
        commands: Commands = app.state.commands
        if commands.draining.is_set():
            return problem_response(Problem("draining", "This server is restarting.", retry_after_s=1), "/readyz")
        with suppress(Exception):
            async with asyncio.timeout(2):
                await commands.store.pipeline.call("PING")
            return Response(b'{"status":"ready"}', media_type="application/json")
        return problem_response(Problem("store_unavailable", "The store does not answer.", retry_after_s=1), "/readyz")

    return app


async def _keep_catalog(commands: Commands) -> None:
    """Read what workers advertise at the start, and again whenever they say that it changed."""
    changed = commands.relay.catalog_changed
    while True:
        changed.clear()
        await commands.refresh()
        await changed.wait()
