"""The ASGI application: which path is served by what, and what is opened at startup and closed at shutdown."""

import asyncio
import resource
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Annotated, Any

import structlog
from fastapi import FastAPI, Query, Request, Response
from pydantic_core import to_json
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from millstream.apikeys import RELOAD_INTERVAL_S, Keys
from millstream.background import Background
from millstream.confined_fs import ServedDirectory
from millstream.protocol.errors import Problem
from millstream.protocol.messages import SOCKET
from millstream.store.not_now import StoreRefuses
from millstream.store.pipeline import silence_for
from millstream.store.store import Store
from millstream_api.error_handlers import answer_unexpected_errors, answer_with_problems, has_head
from millstream_api.files.app import PREFIX as FILES
from millstream_api.files.app import STREAM, Files
from millstream_api.files.sending import Traffic
from millstream_api.files.tus import PREFIX as UPLOADS
from millstream_api.files.tus import Tus
from millstream_api.files.uploads import Uploads, sweep
from millstream_api.hosts import answering_hosts
from millstream_api.jobs import http as jobs
from millstream_api.jobs.commands import Commands
from millstream_api.jobs.relay import Relay
from millstream_api.jobs.schemas import TrafficInfo
from millstream_api.jobs.stores import Stores
from millstream_api.jobs.websocket import Sockets
from millstream_api.metrics import Sources, exposition
from millstream_api.prefix import below_prefix
from millstream_api.problems import plain_problem, problem_response, problems
from millstream_api.published.specifications import publish
from millstream_api.settings import ApiSettings
from millstream_api.wire.population import Population

log = structlog.get_logger("millstream.api")

QUERY_PARAMETERS = 100  # of a request that is not for files
SWEEP_S = 1
SPARE_DESCRIPTORS = 256  # of this process: the store's connections, logs, listeners, and RESERVE

METRICS: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/plain": {}, "application/openmetrics-text": {}}, "description": "the metrics"},
    **problems("unauthorized", "forbidden"),
}
EXPOSED = [
    "Location", "Link", "Preference-Applied", "RateLimit", "RateLimit-Policy", "Retry-After", "ETag", "Accept-Ranges",
    "Content-Range", "Content-Disposition", "Repr-Digest", "Tus-Resumable", "Tus-Version", "Tus-Extension",
    "Tus-Max-Size", "Tus-Checksum-Algorithm", "Upload-Offset", "Upload-Length", "Upload-Expires", "Upload-Metadata",
    "Allow", "WWW-Authenticate",
]  # fmt: skip


def create_app(settings: ApiSettings) -> FastAPI:
    """The API without files. `await app.state.drain()` drains it: no new jobs are accepted, and every WebSocket is told
    to reconnect and closed.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        store = Store(settings.redis_url, name="api", limits=settings, patience_s=settings.store_patience_s)
        stores = Stores(store)
        relay = Relay(settings.redis_url, stores, silence_for(settings.store_patience_s))
        background = Background()
        commands = Commands(settings, stores, relay, app.state.keys, draining)
        sockets = Sockets(commands)
        app.state.commands = commands
        app.state.background = background
        app.state.sources = Sources(commands, sockets, app.state.traffic, app.state.population, background)
        app.state.sockets = sockets

        async def drain() -> None:
            draining.set()
            await sockets.drain()

        app.state.drain = drain
        await store.open()
        for warning in await store.durability_warnings():
            log.warning("the store is not configured for durability", warning=warning)
        await relay.open()
        app.openapi()  # it takes long the first time
        background.when(relay.catalog_changed, "read the catalog", commands.refresh)
        background.every(settings.check_s, "expire jobs", commands.expire)
        background.every(settings.check_s, "check quiet logs", relay.check)
        background.every(RELOAD_INTERVAL_S, "close sockets of revoked keys", sockets.close_revoked)
        background.every(SWEEP_S, "end connections whose time is over", app.state.population.sweep)
        background.every(resumable.sweep_interval_s, "sweep unfinished uploads", resumable.sweep)
        background.once("sweep broken uploads", lambda: sweep(directory))
        try:
            yield
        finally:
            await background.close()
            await relay.close()
            await store.close()

    draining, directory = asyncio.Event(), ServedDirectory(settings.data_dir)
    # No redirects to paths with or without a slash: their Location would be made of what the client sent as Host.
    app = FastAPI(title="Millstream", lifespan=lifespan, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.state.settings = settings
    app.state.keys = Keys(settings.api_keys_file, unreadable_s=settings.api_keys_unreadable_s)
    app.state.draining = draining
    app.state.directory = directory
    app.state.uploads = Uploads(settings, directory)
    app.state.resumable = resumable = Tus(settings, app.state.keys, directory, app.state.uploads)
    app.state.traffic = Traffic()
    possible = connections_possible(settings.total_connections, settings.streams)
    if possible < settings.total_connections and "total_connections" in settings.model_fields_set:
        log.warning("fewer connections than were asked for: raise `ulimit -n`", possible=possible)
    app.state.population = Population(
        most=possible,
        most_of_address=settings.address_connections,
        exempt=settings.is_trusted,
    )
    answer_with_problems(app)
    app.include_router(jobs.router)
    publish(app, settings.root_path)

    @app.get("/streams", tags=["server"], responses=problems("unauthorized", "forbidden"))
    async def streams(who: jobs.Who) -> TrafficInfo:
        """File downloads: how many are open, and how much and how fast the server sends."""
        who.require("admin")
        traffic: Traffic = app.state.traffic
        return TrafficInfo(**traffic.as_dict())

    @app.get("/async_route", tags=["server"], responses=problems("invalid_params", "draining"))
    async def async_route(
        delay: Annotated[float, Query(ge=0, le=60, allow_inf_nan=False, description="seconds")] = 2,
    ) -> dict[str, str]:
        """Wait without blocking, then answer. When the server starts to drain, the wait ends at once."""
        with suppress(TimeoutError):
            async with asyncio.timeout(delay):
                await draining.wait()
                raise Problem("draining", "This server is restarting.", retry_after_s=1)
        return {"message": "协程路由响应"}

    @app.get("/healthz", tags=["server"])
    async def healthz() -> dict[str, str]:
        """Liveness: the process is running. No I/O."""
        return {"status": "ok"}

    @app.get("/readyz", tags=["server"], responses=problems("draining", "store_unavailable"))
    async def readyz() -> Response:
        """Readiness: the store takes writes, and this process is not draining. `failing`: background tasks that do."""
        commands: Commands = app.state.commands
        if draining.is_set():
            return problem_response(Problem("draining", "This server is restarting.", retry_after_s=1), "/readyz")
        try:
            async with asyncio.timeout(2):
                await commands.stores.only.check_writable()
            return Response(to_json({"status": "ready", **_failing(app)}), media_type="application/json")
        except StoreRefuses as error:
            detail = str(error)
        except Exception:
            detail = "The store does not answer."
        return problem_response(Problem("store_unavailable", detail, retry_after_s=1), "/readyz")

    @app.get("/metrics", tags=["server"], response_class=Response, responses=METRICS)
    async def metrics(request: Request, who: jobs.Who) -> Response:
        """Metrics of this process, and of queues and workers as the store has them, in a Prometheus format."""
        who.require("metrics")
        text, media_type = await exposition(app.state.sources, request.headers.get("accept", ""))
        return Response(text, headers={"Content-Type": media_type})

    return app


def with_files(app: FastAPI) -> ASGIApp:
    """The whole API. Files and uploads bypass FastAPI, which costs more than sending a small file. Where the server
    offers it, files are sent without copying.
    """
    settings: ApiSettings = app.state.settings
    keys, directory = app.state.keys, app.state.directory
    files = Files(settings, keys, directory, app.state.uploads, app.state.traffic, app.state.draining)

    async def app_or_socket(scope: Scope, receive: Receive, send: Send) -> None:
        await (app.state.sockets.serve if scope["type"] == "websocket" else app)(scope, receive, send)

    # Tells them what client and scheme a proxy saw; files and uploads have no use for it.
    behind_proxy: ASGIApp = ProxyHeadersMiddleware(app_or_socket, settings.trusted_proxies)  # type: ignore[arg-type, assignment]

    async def route(scope: Scope, receive: Receive, send: Send) -> None:
        kind, path = scope["type"], scope.get("path", "")
        if kind == "websocket" and path == SOCKET:
            await behind_proxy(scope, receive, send)
        elif kind == "websocket":
            await plain_problem(404, "Not Found", path, f"The WebSocket is at {SOCKET}.")(scope, receive, send)
        elif kind == "http" and (path.startswith(FILES) or path == STREAM):
            await files(scope, receive, send)
        elif kind == "http" and (path == UPLOADS or path.startswith(UPLOADS + "/")):
            await app.state.resumable(scope, receive, send)
        elif kind == "http" and scope["query_string"].count(b"&") >= QUERY_PARAMETERS:
            detail = f"The query has more than {QUERY_PARAMETERS} parameters."
            await plain_problem(400, "Bad Request", path, detail)(scope, receive, send)
        elif path == SOCKET:
            upgrade = {"Upgrade": "websocket", "Connection": "Upgrade"}
            detail = "This path is a WebSocket: ask for it with Upgrade: websocket."
            await plain_problem(426, "Upgrade Required", path, detail, upgrade)(scope, receive, send)
        elif kind == "http" and scope["method"] == "HEAD" and has_head(path):
            await behind_proxy({**scope, "method": "GET"}, receive, send)  # the server omits the body
        else:
            await behind_proxy(scope, receive, send)

    whole: ASGIApp = route
    if settings.cors_origins:
        whole = CORSMiddleware(
            answer_unexpected_errors(route),  # so that these answers too say who may read them
            allow_origins=settings.cors_origins.split(","),
            allow_methods=["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"],
            allow_headers=["*"],
            expose_headers=EXPOSED,
        )
    return below_prefix(answering_hosts(whole, settings), settings.root_path)


def connections_possible(most: int, streams: int) -> int:
    """How many connections fit the descriptors that this process may open, beside those of as many file streams."""
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if descriptors == resource.RLIM_INFINITY:
        return most
    left = max(1, descriptors - SPARE_DESCRIPTORS)
    return min(most, max(left - streams, (left + 1) // 2))


def _failing(app: FastAPI) -> dict[str, list[str]]:
    background: Background = app.state.background
    return {"failing": sorted(background.failing)} if background.failing else {}
