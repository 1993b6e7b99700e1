"""A client that closes its side of the connection after its request, as `nc -N` does, is answered all the same.

The app is called as a server calls it that reports a disconnect when the client's side is closed, while its own side is
open until `Connection` says that it is closing.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.types import Message

from millstream.store.store import Store
from millstream_api.app import create_app
from millstream_api.jobs.hub import Hub
from millstream_api.settings import ApiSettings
from millstream_api.wire.connection import CONNECTION, ClientGone
from tests.integration.conftest import Stack
from tests.integration.web import JSONL, SSE, raw
from tests.processes import until


@dataclass
class Connection:
    """Enough of one for an app to know whether the client may still read."""

    closing: bool = False

    def is_closing(self) -> bool:
        return self.closing


@dataclass
class Exchange:
    """A request and what is sent for it. `left` is set when the client has closed its side, or all of it."""

    app: FastAPI
    connection: Connection | None = field(default_factory=Connection)
    left: asyncio.Event = field(default_factory=asyncio.Event)
    sent: list[Message] = field(default_factory=list)
    error: Exception | None = None  # of sending
    body: bytes = b""

    async def ask(self, method: str, path: str, body: Any = None, **headers: str) -> None:
        listed = {"host": "x", "content-type": "application/json", **headers}.items()
        self.body = b"" if body is None else json.dumps(body).encode()
        path, _, query = path.partition("?")
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "scheme": "http", "method": method,
            "path": path, "raw_path": path.encode(), "query_string": query.encode(), "server": ("x", 80),
            "headers": [(name.encode(), value.encode()) for name, value in listed],
            "extensions": {CONNECTION: self.connection} if self.connection else {},
        }  # fmt: skip
        await self.app(scope, self._receive, self._send)

    async def _receive(self) -> Message:
        body, self.body = self.body, b""
        if body:
            return {"type": "http.request", "body": body, "more_body": False}
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if self.error:
            raise self.error
        self.sent.append(message)

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def text(self) -> str:
        return b"".join(message.get("body", b"") for message in self.sent[1:]).decode()

    @property
    def complete(self) -> bool:
        return bool(self.sent) and not self.sent[-1].get("more_body", len(self.sent) == 1)


@pytest.fixture
async def app(stack: Stack) -> AsyncIterator[FastAPI]:
    app = create_app(ApiSettings(_env_file=None, redis_url=stack.store.url))
    async with app.router.lifespan_context(app):
        yield app


def hub(app: FastAPI) -> Hub:
    found: Hub = app.state.commands.relay.hub
    return found


HOLD: dict[str, Any] = {"analysis": "hold"}


async def held(app: FastAPI, **options: Any) -> str:
    """A job that runs until it is cancelled."""
    exchange = Exchange(app)
    await exchange.ask("POST", "/jobs", HOLD | options)
    assert exchange.status == 202, exchange.text
    job: str = json.loads(exchange.text)["job"]
    return job


async def status(app: FastAPI, job: str) -> str:
    exchange = Exchange(app)
    await exchange.ask("GET", f"/jobs/{job}")
    return str(json.loads(exchange.text)["status"])


async def logged(app: FastAPI, job: str, type: str) -> None:
    store: Store = app.state.commands.stores.only

    async def found() -> bool:
        page = await store.attach(job)
        return page is not None and any(event.type == type for event in page.events)

    await until(found, what=f"an event {type}")


@pytest.mark.parametrize("accept", [SSE, JSONL])
async def test_a_stream_is_sent_as_far_as_it_goes_and_ends(app: FastAPI, accept: str) -> None:
    job = await held(app)
    await logged(app, job, "log")
    exchange = Exchange(app)
    exchange.left.set()
    await exchange.ask("GET", f"/jobs/{job}/events", accept=accept)
    assert [type for type in ("queued", "started", "log") if f'"type":"{type}"' in exchange.text] == [
        "queued", "started", "log",
    ]  # fmt: skip
    assert (exchange.status, exchange.complete) == (200, True)
    assert hub(app).followers == {}
    assert await status(app, job) == "running"


async def test_a_stream_that_waits_ends_when_the_client_closes_its_side(app: FastAPI) -> None:
    job = await held(app)
    exchange = Exchange(app)
    reading = asyncio.create_task(exchange.ask("GET", f"/jobs/{job}/events", accept=JSONL))

    async def came() -> bool:
        return '"type":"log"' in exchange.text

    await until(came, what="what there is")
    exchange.left.set()
    async with asyncio.timeout(10):
        await reading
    assert exchange.complete


@pytest.mark.parametrize("on_disconnect", ["continue", "cancel"])
async def test_closing_ones_side_is_leaving_for_a_job_that_is_to_be_cancelled_then(
    app: FastAPI, on_disconnect: str
) -> None:
    exchange = Exchange(app)
    exchange.left.set()
    await exchange.ask("POST", "/jobs", HOLD | {"on_disconnect": on_disconnect}, accept=JSONL)
    job = json.loads(exchange.text.splitlines()[0])["job"]
    assert exchange.complete
    assert (await status(app, job) == "cancelled") is (on_disconnect == "cancel")


@pytest.mark.parametrize("connection", [Connection(closing=True), None], ids=["closed", "not known"])
async def test_nothing_is_read_for_a_client_whose_connection_is_closed(
    app: FastAPI, connection: Connection | None
) -> None:
    exchange = Exchange(app, connection)
    exchange.left.set()
    await exchange.ask("GET", f"/jobs/{await held(app)}/events", accept=JSONL)
    assert exchange.text == ""
    assert hub(app).followers == {}


@pytest.mark.parametrize("error", [OSError("gone"), ClientGone("gone")], ids=repr)
async def test_a_stream_that_cannot_be_sent_ends(app: FastAPI, error: Exception) -> None:
    job = await held(app)
    await Exchange(app, error=error).ask("GET", f"/jobs/{job}/events", accept=JSONL)
    assert hub(app).followers == {}


async def test_a_wait_goes_on_for_a_client_that_may_still_read(app: FastAPI) -> None:
    exchange = Exchange(app)
    exchange.left.set()
    await exchange.ask("POST", "/jobs", {"analysis": "process", "params": {"text": "x"}}, prefer="wait=20")
    assert (exchange.status, json.loads(exchange.text)["result"]) == (200, "Processed data: x")


@pytest.mark.parametrize(
    ("connection", "on_disconnect"),
    [(Connection(), "cancel"), (Connection(closing=True), "continue"), (Connection(closing=True), "cancel")],
    ids=["half closed, cancel", "closed, continue", "closed, cancel"],
)
async def test_a_wait_ends_for_a_client_that_has_left(app: FastAPI, connection: Connection, on_disconnect: str) -> None:
    exchange = Exchange(app, connection)
    exchange.left.set()
    async with asyncio.timeout(15):
        await exchange.ask("POST", "/jobs", HOLD | {"on_disconnect": on_disconnect}, prefer="wait=40")
    assert hub(app).followers == {}
    found = json.loads(exchange.text)["status"]
    assert (found == "cancelled") is (on_disconnect == "cancel")


async def test_over_a_real_socket_a_wait_and_a_stream_are_answered(stack: Stack) -> None:
    body = b'{"analysis":"process","params":{"text":"x","delay_s":0.05}}'
    head = b"POST /jobs HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n%b\r\n\r\n"
    async with raw(stack.api) as (reader, writer):
        writer.write(head % (len(body), b"Prefer: wait=20") + body)
        writer.write_eof()
        answer = await reader.read()
    assert answer.startswith(b"HTTP/1.1 200 ")
    job = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert job["result"] == "Processed data: x"
    async with raw(stack.api) as (reader, writer):
        writer.write(
            b"GET /jobs/%b/events HTTP/1.1\r\nHost: x\r\nAccept: %b\r\n\r\n" % (job["job"].encode(), JSONL.encode())
        )
        writer.write_eof()
        answer = await reader.read()
    assert answer.count(b'"seq":') == 3
    assert answer.endswith(b"0\r\n\r\n"), "the stream is complete"
