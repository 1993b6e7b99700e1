"""HTTP clients for tests, and what they expect of every answer."""

import asyncio
import json
import resource
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from millstream.protocol.errors import JOB_FAILURES, PROBLEM_TYPES
from tests.processes import Process

Json = dict[str, Any]
END = ("succeeded", "failed", "cancelled")
SSE, JSONL, NDJSON = "text/event-stream", "application/jsonl", "application/x-ndjson"


def web(api: Process, key: str | None = None) -> httpx.AsyncClient:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    limits = httpx.Limits(max_connections=100)
    return httpx.AsyncClient(base_url=api.url, headers=headers, timeout=20, limits=limits, trust_env=False)


@asynccontextmanager
async def raw(api: Process) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection, for what no client library would send."""
    async with asyncio.timeout(20):
        reader, writer = await asyncio.open_connection("127.0.0.1", int(api.url.rpartition(":")[2]))
        try:
            yield reader, writer
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()


def memory(process: Process) -> int:
    """Resident bytes."""
    return int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * resource.getpagesize()


def everything(home: Path) -> list[str]:
    """The files below a directory, hidden ones too."""
    return sorted(str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()) if home.exists() else []


def problem(response: httpx.Response, slug: str) -> Json:
    """The problem document of an answer, which must be the one of this slug and complete (RFC 9457)."""
    kind = PROBLEM_TYPES.get(slug) or JOB_FAILURES[slug]
    assert response.headers["content-type"] == "application/problem+json", response.text
    document: Json = response.json()
    assert (document["type"], document["status"]) == (f"/problems/{slug}", kind.status), document
    assert response.status_code == kind.status
    assert document["title"] == kind.title
    assert document["detail"]
    assert document["instance"] == response.request.url.path
    return document


def pointers(document: Json) -> set[str]:
    return {error["pointer"] for error in document["errors"]}


async def submit(http: httpx.AsyncClient, analysis: str, params: Json | None = None, **options: Any) -> str:
    """Submit a job; returns its id."""
    response = await http.post("/jobs", json={"analysis": analysis, "params": params or {}, **options})
    assert response.status_code == 202, response.text
    job: str = response.json()["job"]
    return job


async def ended(http: httpx.AsyncClient, job: str) -> Json:
    """Wait for the end of a job by its stream; returns its snapshot."""
    last = (await events(http, job))[-1]
    assert last["type"] in END
    snapshot: Json = (await http.get(f"/jobs/{job}")).json()
    return snapshot


async def events(http: httpx.AsyncClient, job: str, after: str | None = None, **query: Any) -> list[Json]:
    """A job's events from a cursor on, up to its end."""
    query |= {"after": after} if after else {}
    response = await http.get(f"/jobs/{job}/events", params=query, headers={"Accept": JSONL})
    assert response.status_code == 200, response.text
    return [json.loads(line) for line in response.text.splitlines() if line]


@dataclass
class Sent:
    """One server-sent event (WHATWG HTML §9.2.6)."""

    id: str = ""
    event: str = "message"
    data: str = ""
    retry: str = ""


def server_sent(text: str) -> list[Sent]:
    """The events of a whole stream."""
    assert text == "" or text.endswith("\n\n")
    found = []
    for block in text.split("\n\n")[:-1]:
        fields = [line.partition(": ") for line in block.split("\n") if not line.startswith(":")]
        if fields:
            found.append(Sent(**{name: value for name, _, value in fields}))
    return found


@dataclass
class Follower:
    """A stream that is read while it is sent."""

    response: httpx.Response
    lines: AsyncIterator[str]

    async def next(self) -> str:
        """The next line that is not empty."""
        async with asyncio.timeout(15):
            while not (line := await anext(self.lines)):
                pass
        return line

    async def until(self, type: str) -> list[str]:
        """JSON Lines up to the first event of a type."""
        found = [await self.next()]
        while json.loads(found[-1])["type"] != type:
            found.append(await self.next())
        return found


@asynccontextmanager
async def following(http: httpx.AsyncClient, job: str, accept: str = JSONL, **query: str) -> AsyncIterator[Follower]:
    async with http.stream("GET", f"/jobs/{job}/events", params=query, headers={"Accept": accept}) as response:
        assert response.status_code == 200
        yield Follower(response, response.aiter_lines())
