"""A job's events over HTTP: server-sent events and JSON Lines, from a cursor on, to the end."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis.asyncio as redis

from millstream.store import keys
from millstream.store.store import Store
from millstream_api.jobs.hub import State
from tests.integration.conftest import Stack
from tests.integration.jobs import running
from tests.integration.web import (
    JSONL,
    NDJSON,
    SSE,
    ended,
    events,
    following,
    pointers,
    problem,
    server_sent,
    submit,
    web,
)  # fmt: skip
from tests.integration.within import within
from tests.processes import Process, until

REPORT: dict[str, Any] = {"analysis": "report", "params": {"count": 25}}


@pytest.fixture
async def http(stack: Stack) -> AsyncIterator[httpx.AsyncClient]:
    async with web(stack.api) as http:
        yield http


@pytest.fixture
async def job(http: httpx.AsyncClient) -> str:
    """A job that has ended."""
    job = await submit(http, **REPORT)
    await ended(http, job)
    return job


def whole(found: list[dict[str, Any]]) -> None:
    """These are all events of one job, and each is complete."""
    assert [event["seq"] for event in found] == list(range(1, len(found) + 1))
    assert [event["type"] for event in found[:2]] == ["queued", "started"]
    assert found[-1]["type"] == "succeeded"
    assert len({event["job"] for event in found}) == 1
    for event in found:
        assert list(event) == ["job", "seq", "cursor", "attempt", "type", "at", "data"]
    assert [event["data"]["number"] for event in found if event["type"] == "chunk"] == list(range(25))


async def test_a_post_that_accepts_server_sent_events_gets_the_events_at_once(http: httpx.AsyncClient) -> None:
    answer = await http.post("/jobs", json=REPORT, headers={"Accept": SSE})
    assert answer.status_code == 200
    assert answer.headers["content-type"].split(";")[0] == SSE
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-accel-buffering"] == "no", "a proxy is not to hold it back"
    sent = server_sent(answer.text)
    found = [json.loads(item.data) for item in sent]
    whole(found)
    assert [(item.id, item.event) for item in sent] == [(event["cursor"], event["type"]) for event in found]
    assert answer.headers["location"] == f"/jobs/{found[0]['job']}"


@pytest.mark.parametrize("accept", [JSONL, NDJSON])
async def test_a_post_that_accepts_json_lines_gets_the_events_at_once(http: httpx.AsyncClient, accept: str) -> None:
    answer = await http.post("/jobs", json=REPORT, headers={"Accept": accept})
    assert (answer.status_code, answer.headers["content-type"].split(";")[0]) == (200, accept)
    assert answer.text.endswith("\n")
    whole([json.loads(line) for line in answer.text.splitlines()])


@pytest.mark.parametrize("accept", [SSE, JSONL, NDJSON])
async def test_a_proxy_is_told_not_to_hold_a_stream_back(http: httpx.AsyncClient, job: str, accept: str) -> None:
    for answer in (
        await http.post("/jobs", json=REPORT, headers={"Accept": accept}),
        await http.get(f"/jobs/{job}/events", headers={"Accept": accept}),
        await http.get(f"/jobs/{job}/events?follow=false", headers={"Accept": accept}),
    ):
        assert answer.headers["content-type"].split(";")[0] == accept
        assert (answer.headers["x-accel-buffering"], answer.headers["cache-control"]) == ("no", "no-cache")


async def test_events_come_while_the_job_runs(http: httpx.AsyncClient) -> None:
    body = {"analysis": "hold"}
    async with http.stream("POST", "/jobs", json=body, headers={"Accept": JSONL}) as answer:
        lines = answer.aiter_lines()
        async with asyncio.timeout(10):
            first = [json.loads(await anext(lines)) for _ in range(3)]
            assert [event["type"] for event in first] == ["queued", "started", "log"]
            await http.delete(answer.headers["location"], params={"reason": "seen"})
            last = [json.loads(line) async for line in lines]
    assert [(event["type"], event["data"]) for event in last] == [("cancelled", {"reason": "seen"})]


async def test_a_post_with_a_key_that_is_known_streams_the_known_job_from_its_start(http: httpx.AsyncClient) -> None:
    headers = {"Accept": JSONL, "Idempotency-Key": "streamed"}
    first = await http.post("/jobs", json=REPORT, headers=headers)
    again = await http.post("/jobs", json=REPORT, headers=headers)
    assert first.text == again.text


async def test_a_post_that_cannot_be_accepted_is_a_problem_whatever_it_accepts(http: httpx.AsyncClient) -> None:
    for accept in (SSE, JSONL):
        answer = await http.post("/jobs", json={"analysis": "nothing"}, headers={"Accept": accept})
        problem(answer, "unknown_analysis")


@pytest.mark.parametrize(
    ("accept", "type"),
    [
        (None, SSE), ("*/*", SSE), (SSE, SSE), (JSONL, JSONL), (NDJSON, NDJSON), ("Application/JSONL; q=0.5", JSONL),
        (f"{SSE};q=0.1, {JSONL};q=0.9", JSONL), (f"{SSE}, {JSONL};q=0.9", SSE), (f"{SSE};q=0, {NDJSON}", NDJSON),
        (f"{JSONL};q=0.9, application/json", JSONL), ("application/*", JSONL),
    ],
)  # fmt: skip
async def test_accept_chooses_the_format(http: httpx.AsyncClient, job: str, accept: str | None, type: str) -> None:
    answer = await http.get(f"/jobs/{job}/events", headers={"Accept": accept} if accept else {})
    assert (answer.status_code, answer.headers["content-type"].split(";")[0]) == (200, type)


async def test_a_post_that_prefers_json_is_answered_in_json(http: httpx.AsyncClient) -> None:
    for accept in (
        "*/*",
        "application/json",
        f"application/json, {SSE};q=0.5",
        f"{SSE};q=0",
        "text/html",
        f"{SSE};q=0.1, */*",
    ):
        answer = await http.post("/jobs", json=REPORT, headers={"Accept": accept})
        assert (answer.status_code, answer.headers["content-type"]) == (202, "application/json")


async def test_every_format_has_the_same_events(http: httpx.AsyncClient, job: str) -> None:
    url = f"/jobs/{job}/events"
    by_lines = (await http.get(url, headers={"Accept": JSONL})).text.splitlines()
    by_ndjson = (await http.get(url, headers={"Accept": NDJSON})).text.splitlines()
    by_sse = [item.data for item in server_sent((await http.get(url, headers={"Accept": SSE})).text)]
    assert by_lines == by_ndjson == by_sse
    whole([json.loads(line) for line in by_lines])


async def test_a_cursor_is_gone_on_from_and_last_event_id_overrides_it(http: httpx.AsyncClient, job: str) -> None:
    url = f"/jobs/{job}/events"
    every = await events(http, job)
    assert await events(http, job, after=every[4]["cursor"]) == every[5:]
    for query in ({}, {"after": every[0]["cursor"]}, {"after": every[-1]["cursor"]}):
        headers = {"Last-Event-ID": every[9]["cursor"], "Accept": JSONL}
        answer = await http.get(url, params=query, headers=headers)
        assert [json.loads(line) for line in answer.text.splitlines()] == every[10:]


async def test_a_reader_that_has_read_the_end_of_an_ended_job_need_not_come_back(
    http: httpx.AsyncClient, job: str
) -> None:
    last = (await events(http, job))[-1]["cursor"]
    for headers, query in (({"Last-Event-ID": last}, {}), ({}, {"after": last}), ({"Accept": JSONL}, {"after": last})):
        answer = await http.get(f"/jobs/{job}/events", params=query, headers=headers)
        assert (answer.status_code, answer.content) == (204, b"")


async def test_without_following_there_is_only_what_is_there_now(http: httpx.AsyncClient) -> None:
    job = await submit(http, "hold")
    async with following(http, job) as stream:
        await stream.until("log")
    now = await events(http, job, follow="false")
    assert [event["type"] for event in now] == ["queued", "started", "log"]
    assert await events(http, job, after=now[-1]["cursor"], follow="false") == []
    as_sse = await http.get(f"/jobs/{job}/events?follow=false")
    assert [item.event for item in server_sent(as_sse.text)] == ["queued", "started", "log"]
    await http.delete(f"/jobs/{job}")
    assert (await events(http, job, follow="false"))[-1]["type"] == "cancelled"


async def test_a_reader_may_want_the_last_event_only(http: httpx.AsyncClient, job: str) -> None:
    assert [event["type"] for event in await events(http, job, events="terminal")] == ["succeeded"]
    held = await submit(http, "hold")
    reading = asyncio.create_task(events(http, held, events="terminal"))
    async with following(http, held) as stream:
        await stream.until("started")
    await http.delete(f"/jobs/{held}")
    assert [event["type"] for event in await reading] == ["cancelled"]


@pytest.mark.parametrize("cursor", ["x", "1", "1-", "-1-1", "01-1", "1-1-1", "9" * 16 + "-1"])
async def test_a_cursor_that_is_none_is_pointed_at(http: httpx.AsyncClient, job: str, cursor: str) -> None:
    answer = await http.get(f"/jobs/{job}/events", headers={"Last-Event-ID": cursor, "Accept": JSONL})
    problem(answer, "invalid_params")
    answer = await http.get(f"/jobs/{job}/events", params={"after": cursor})
    assert pointers(problem(answer, "invalid_params")) == {"/after"}


@pytest.mark.parametrize("query", [{}, {"follow": "false"}, {"after": "0-0"}, {"events": "terminal"}])
async def test_a_log_that_the_store_has_lost_is_a_gap_and_the_stream_ends(
    http: httpx.AsyncClient, stack: Stack, query: dict[str, str]
) -> None:
    job = await submit(http, "process", {"text": "x"})
    snapshot = await ended(http, job)
    async with redis.Redis.from_url(stack.store.url) as client:
        await client.delete(f"{keys.LOG}{job}")
    (gap,) = await events(http, job, **query)
    assert (gap["type"], gap["after"], gap["replay_from"]) == ("gap", "0-0", snapshot["cursor"])
    assert gap["snapshot"]["status"] == "succeeded"


async def test_a_beginning_that_the_store_has_lost_is_a_gap_before_what_is_left(
    http: httpx.AsyncClient, stack: Stack, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    job = await submit(http, "hold", {"gate": str(gate)})

    async def running() -> bool:
        return bool((await http.get(f"/jobs/{job}")).json()["status"] == "running")

    await until(running, what="the job to run")
    async with redis.Redis.from_url(stack.store.url) as client:
        await client.xtrim(f"{keys.LOG}{job}", maxlen=1, approximate=False)
        left = int((await client.xrange(f"{keys.LOG}{job}"))[0][0].split(b"-")[0])
    gate.touch()
    gap, *rest = await events(http, job)
    assert (gap["type"], gap["after"], gap["replay_from"]) == ("gap", "0-0", "0-0")
    assert [event["seq"] for event in rest] == list(range(left, left + len(rest)))
    assert (left > 1, rest[-1]["type"]) == (True, "succeeded")


async def test_a_cursor_that_the_log_does_not_hold_is_answered_with_a_gap(http: httpx.AsyncClient, job: str) -> None:
    snapshot = (await http.get(f"/jobs/{job}")).json()
    for cursor in ("3-1", "999-1"):
        gap, *rest = await events(http, job, after=cursor)
        assert gap == {"type": "gap", "job": job, "after": cursor, "snapshot": snapshot, "replay_from": "0-0"}
        whole(rest)
        sent = server_sent((await http.get(f"/jobs/{job}/events", params={"after": cursor})).text)
        assert (sent[0].event, sent[0].id, json.loads(sent[0].data)) == ("gap", "0-0", gap)
        assert [json.loads(item.data) for item in sent[1:]] == rest


async def test_a_large_log_is_streamed_whole_to_many_readers_at_once(http: httpx.AsyncClient) -> None:
    job = await submit(http, "report", {"count": 3000, "size": 500})
    streams = await asyncio.gather(*(events(http, job) for _ in range(5)))
    for found in streams:
        assert [event["seq"] for event in found] == list(range(1, len(found) + 1))
        assert [e["data"]["number"] for e in found if e["type"] == "chunk"] == list(range(3000))


async def test_text_of_any_kind_passes_a_stream_as_it_is(http: httpx.AsyncClient) -> None:
    text = "a\nb\r\n\u2028\u2029\x00\x85ü😀 data: x\n\n: c"
    answer = await http.post("/jobs", json={"analysis": "process", "params": {"text": text}}, headers={"Accept": SSE})
    assert json.loads(server_sent(answer.text)[-1].data)["data"]["result"] == "Processed data: " + text


async def test_a_client_that_leaves_its_stream_changes_nothing_for_the_job(http: httpx.AsyncClient) -> None:
    job = await submit(http, "report", {"count": 20, "pause_s": 0.02})
    async with following(http, job) as stream:
        await stream.until("chunk")
    found = await events(http, job)
    assert [event["seq"] for event in found] == list(range(1, len(found) + 1))
    assert found[-1]["type"] == "succeeded"


@pytest.mark.parametrize(("accept", "sign"), [(SSE, ": still here"), (JSONL, ""), (NDJSON, "")])
async def test_a_quiet_stream_has_a_sign_of_life_now_and_then(stack: Stack, accept: str, sign: str) -> None:
    async with within(stack.store, heartbeat_s=0.02) as here, web(here.api) as http:
        job = await submit(http, "process", {"text": "x"}, delay_s=60)
        async with following(http, job, accept) as stream, asyncio.timeout(15):
            await stream.next()
            for _ in range(3):
                while await anext(stream.lines) != sign:
                    pass
            await http.delete(f"/jobs/{job}")
            rest = [line async for line in stream.lines]
            assert any("cancelled" in line for line in rest)


@pytest.mark.parametrize(
    "bounds", [{"reader_events": 4, "reader_bytes": 2**40}, {"reader_events": 2**20, "reader_bytes": 200_000}], ids=str
)
async def test_for_a_stream_that_is_read_slowly_only_so_much_is_held_and_it_misses_nothing(
    valkey: Process, store: Store, bounds: dict[str, int]
) -> None:
    job = await running(store)
    async with within(valkey, **bounds) as here, web(here.api) as http, following(http, job.id) as stream:
        await stream.until("started")
        (follower,) = here.followers

        async def live() -> bool:
            return follower.state is State.LIVE

        await until(live, what="the stream to have all that there is")
        count = 0
        for count in range(1, 500):
            await store.append(job, count, [("chunk", b'"%0*d"' % (100_000, count))])
            if follower.state is not State.LIVE:
                break
        assert follower.state is State.BEHIND, "so much is not held for a reader"
        await store.finish(job, "succeeded", b'{"result":null,"elapsed_s":1.0}', events=count)
        rest = [json.loads(line) async for line in stream.lines]
        assert [event["seq"] for event in rest] == list(range(3, count + 4))
        assert [int(event["data"][-4:]) for event in rest[:-1]] == list(range(1, count + 1))
        assert rest[-1]["type"] == "succeeded"


@pytest.mark.parametrize("wanted", [{"Accept": SSE}, {"Accept": JSONL}, {"Prefer": "wait=20"}], ids=str)
async def test_who_leaves_a_stream_or_a_wait_cancels_the_job_if_that_was_wanted(
    http: httpx.AsyncClient, stack: Stack, tmp_path: Path, wanted: dict[str, str]
) -> None:
    gate = tmp_path / "gate"

    async def statuses() -> list[str]:
        """Of the jobs of this test, in the order in which they were submitted."""
        jobs = (await http.get("/jobs", params={"analysis": "hold", "limit": 500})).json()
        return [job["status"] for job in reversed(jobs) if job["job"] not in before]

    async def ask(on_disconnect: str) -> None:
        body = {"analysis": "hold", "params": {"gate": str(gate)}, "on_disconnect": on_disconnect}
        async with web(stack.api) as leaving, leaving.stream("POST", "/jobs", json=body, headers=wanted) as answer:
            async for _ in answer.aiter_bytes():
                pass

    async def statuses_are(*expected: str) -> bool:
        return await statuses() == [*expected]

    before = {job["job"] for job in (await http.get("/jobs", params={"analysis": "hold", "limit": 500})).json()}
    stays = asyncio.create_task(ask("continue"))
    await until(lambda: statuses_are("running"), what="the first job to run")
    goes = asyncio.create_task(ask("cancel"))
    await until(lambda: statuses_are("running", "running"), what="both jobs to run")
    for asking in (stays, goes):
        asking.cancel()
        await asyncio.wait({asking})
    await until(lambda: statuses_are("running", "cancelled"), what="the later of the two to be cancelled")
    gate.touch()
    await until(lambda: statuses_are("succeeded", "cancelled"), what="the earlier one to run to its end")


@pytest.mark.parametrize("path", ["/jobs/{job}/events", "/files/?prefix=", "/healthz", "/nothing"])
async def test_a_client_of_http_1_0_gets_no_chunks(stack: Stack, job: str, path: str) -> None:
    (stack.data / "some-file").write_text("x")
    reader, writer = await asyncio.open_connection("127.0.0.1", int(stack.api.url.rpartition(":")[2]))
    writer.write(f"GET {path.format(job=job)} HTTP/1.0\r\nAccept: {JSONL}\r\n\r\n".encode())
    head, _, body = (await asyncio.wait_for(reader.read(), 10)).partition(b"\r\n\r\n")
    writer.close()
    assert b"transfer-encoding" not in head.lower()
    assert b"connection: close" in head.lower()
    lines = [json.loads(line) for line in body.splitlines()]
    assert len(lines) >= (25 if "events" in path else 1)
