"""One cursor for every transport: a reader goes on over HTTP where it left the socket, and back, and misses nothing."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.typing import Subprotocol

from tests.integration.conftest import Stack
from tests.integration.rpc import rpc
from tests.integration.web import JSONL, SSE, events, following, server_sent, submit, web

COUNT = 40


def numbered(found: list[str]) -> list[dict[str, Any]]:
    """Events as they were sent, parsed; each is there once, none is missing."""
    parsed = [json.loads(text) for text in found]
    assert [event["seq"] for event in parsed] == list(range(1, len(parsed) + 1))
    assert parsed[-1]["type"] == "succeeded"
    assert [event["data"] for event in parsed if event["type"] == "chunk"] == list(range(COUNT))
    return parsed


async def test_a_job_begun_on_the_socket_is_followed_by_sse_and_finished_by_json_lines(
    stack: Stack, tmp_path: Path
) -> None:
    gates = [tmp_path / "first", tmp_path / "second"]
    async with web(stack.api) as http:
        async with rpc(stack.api) as client:
            params = {"to": COUNT, "gates": {"10": str(gates[0]), "25": str(gates[1])}}
            job = await client.submit("gated", params)
            await client.until(job, "chunk", times=10)
            first = [json.dumps(event) for event in client.events(job)]
        found = [json.dumps((await events(http, job, follow="false"))[0]), *first]
        cursor = json.loads(found[-1])["cursor"]
        gates[0].touch()
        by_sse: list[str] = []
        async with following(http, job, SSE, after=cursor) as stream:
            while len(by_sse) < 15 or json.loads(by_sse[-1])["cursor"] != cursor:
                line = await stream.next()
                if line.startswith("id: "):
                    cursor = line.removeprefix("id: ")
                if line.startswith("data: "):
                    by_sse.append(line.removeprefix("data: "))
        found += by_sse
        gates[1].touch()
        answer = await http.get(f"/jobs/{job}/events", headers={"Accept": JSONL, "Last-Event-ID": cursor})
        found += answer.text.splitlines()
        parsed = numbered(found)

        # After the end, from every place in the log, every transport has the same rest.
        async with rpc(stack.api) as client:
            for place in (0, 1, 11, len(parsed) - 1):
                after = parsed[place - 1]["cursor"] if place else None
                assert await events(http, job, after=after) == parsed[place:]
                query = {"after": after} if after else {}
                sent = server_sent((await http.get(f"/jobs/{job}/events", params=query)).text)
                assert [json.loads(item.data) for item in sent] == parsed[place:]
                seen = len(client.events(job))
                await client.call("job.attach", job=job, **query)
                await client.wait(lambda: len(client.events(job)) == seen + len(parsed) - place, what="the rest")  # noqa: B023
                assert client.events(job)[seen:] == parsed[place:]
                await client.call("job.detach", job=job)


async def test_a_job_begun_over_http_is_finished_on_the_socket(stack: Stack, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    async with web(stack.api) as http, rpc(stack.api) as client:
        job = await submit(http, "gated", {"to": COUNT, "gates": {"20": str(gate)}})
        async with following(http, job) as stream:
            found = [line for _ in range(20) for line in await stream.until("chunk")]
        await client.call("job.attach", job=job, after=json.loads(found[-1])["cursor"])
        gate.touch()
        numbered([*found, *(json.dumps(event) for event in await client.end(job))])


async def test_an_event_is_the_same_bytes_on_every_transport(stack: Stack) -> None:
    async with web(stack.api) as http:
        job = await submit(http, "report", {"count": 12, "size": 3})
        await events(http, job)
        by_lines = (await http.get(f"/jobs/{job}/events", headers={"Accept": JSONL})).text.splitlines()
        by_sse = [item.data for item in server_sent((await http.get(f"/jobs/{job}/events")).text)]
        async with connect(stack.api.ws, subprotocols=[Subprotocol("millstream.v1")]) as socket:
            await socket.send(json.dumps({"jsonrpc": "2.0", "id": 1, "method": "job.attach", "params": {"job": job}}))
            frames = [str(await socket.recv()) for _ in range(len(by_lines) + 1)]
    head, tail = '{"jsonrpc":"2.0","method":"job.event","params":', "}"
    by_socket = [frame.removeprefix(head).removesuffix(tail) for frame in frames if frame.startswith(head)]
    assert by_lines == by_sse == by_socket


@pytest.mark.parametrize("accept", [SSE, JSONL])
async def test_a_reader_that_reconnects_after_every_few_events_misses_none(stack: Stack, accept: str) -> None:
    async with web(stack.api) as http:
        job = await submit(http, "report", {"count": 60, "pause_s": 0.005})
        found: list[dict[str, Any]] = []
        while not found or found[-1]["type"] != "succeeded":
            query = {"after": found[-1]["cursor"]} if found else {}
            async with following(http, job, accept, **query) as stream:
                for _ in range(7):
                    try:
                        line = await stream.next()
                    except StopAsyncIteration:
                        break
                    if accept == JSONL or line.startswith("data: "):
                        found.append(json.loads(line.removeprefix("data: ")))
        assert [event["seq"] for event in found] == list(range(1, len(found) + 1))
        assert [e["data"]["number"] for e in found if e["type"] == "chunk"] == list(range(60))


async def test_two_api_processes_show_the_same_job(stack: Stack, processes: Any) -> None:
    other = await processes.api(stack.store)
    async with web(stack.api) as here, web(other) as there:
        job = await submit(here, "report", {"count": 30, "pause_s": 0.01})
        found, same = await asyncio.gather(events(here, job), events(there, job))
        assert found == same
        assert (await there.get(f"/jobs/{job}")).json() == (await here.get(f"/jobs/{job}")).json()
    await other.kill()
