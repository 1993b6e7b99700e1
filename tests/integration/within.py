"""The whole API in the loop of the test, on a real socket and a real store: to hold up one of its calls, or to look at
what it keeps.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from millstream.store.embedded import free_port
from millstream_api.app import create_app, with_files
from millstream_api.jobs.commands import Commands
from millstream_api.jobs.hub import Follower
from millstream_api.jobs.websocket import Sockets
from millstream_api.server import connections_of
from millstream_api.settings import ApiSettings
from tests.processes import Process, until


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are pytest's."""
        yield


@dataclass
class Within:
    """`api` is its address, for the clients of rpc.py and web.py."""

    api: Process
    commands: Commands
    sockets: Sockets

    @property
    def followers(self) -> list[Follower]:
        """The places in logs that it keeps for its readers."""
        return [follower for followers in self.commands.relay.hub.followers.values() for follower in followers]

    async def left(self) -> None:
        """Wait until it has seen that the last socket is gone."""

        async def none_open() -> bool:
            return not any(self.sockets.count().values())

        await until(none_open, what="the sockets to be gone")


@asynccontextmanager
async def within(store: Process, **settings: Any) -> AsyncIterator[Within]:
    app = create_app(ApiSettings(_env_file=None, redis_url=store.url, **settings))
    port = free_port()
    config = uvicorn.Config(
        with_files(app), host="127.0.0.1", port=port, lifespan="on", log_level="warning", log_config=None,
        http=connections_of(app), ws="none",  # type: ignore[arg-type]
        timeout_graceful_shutdown=5,
    )  # fmt: skip
    server = _Server(config)
    running = asyncio.create_task(server.serve())

    async def started() -> bool:
        return server.started or running.done()

    try:
        await until(started, what="the server to start")
        api = Process([], {}, Path(), f"http://127.0.0.1:{port}")
        yield Within(api, app.state.commands, app.state.sources.sockets)
    finally:
        server.should_exit = True
        await running


@dataclass
class Held:
    """The calls of one method, which wait until `release` is set."""

    came: asyncio.Event = field(default_factory=asyncio.Event)  # one has come as far as it may
    release: asyncio.Event = field(default_factory=asyncio.Event)
    returned: asyncio.Event = field(default_factory=asyncio.Event)  # and in the same turn its caller went on
    results: list[Any] = field(default_factory=list)


def hold_reply(monkeypatch: pytest.MonkeyPatch, owner: object, method: str) -> Held:
    """The method is carried out; its reply comes late."""
    held = Held()
    call: Callable[..., Awaitable[Any]] = getattr(owner, method)

    async def slow(*arguments: Any, **options: Any) -> Any:
        result = await call(*arguments, **options)
        held.results.append(result)
        held.came.set()
        await held.release.wait()
        held.returned.set()
        return result

    monkeypatch.setattr(owner, method, slow)
    return held


def hold_call(monkeypatch: pytest.MonkeyPatch, owner: object, method: str) -> Held:
    """The method is carried out late."""
    held = Held()
    call: Callable[..., Awaitable[Any]] = getattr(owner, method)

    async def slow(*arguments: Any, **options: Any) -> Any:
        held.came.set()
        await held.release.wait()
        result = await call(*arguments, **options)
        held.results.append(result)
        held.returned.set()
        return result

    monkeypatch.setattr(owner, method, slow)
    return held
