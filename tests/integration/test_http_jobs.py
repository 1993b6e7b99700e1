"""Jobs over HTTP: submit, wait, look, cancel, list; analyses, workers and queues."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import pytest_asyncio
import redis.asyncio as redis

from millstream.apikeys import new_key, write_keys
from millstream.store import keys
from tests.integration.conftest import ANALYSES, Stack, database
from tests.integration.web import JSONL, SSE, ended, following, pointers, problem, submit, web
from tests.integration.within import within
from tests.processes import Process, Processes, until


@pytest.fixture
async def http(stack: Stack) -> AsyncIterator[httpx.AsyncClient]:
    async with web(stack.api) as http:
        yield http


PROCESS = {"analysis": "process", "params": {"text": "hello"}}


async def test_a_submitted_job_is_answered_with_202_its_place_and_its_snapshot(http: httpx.AsyncClient) -> None:
    response = await http.post("/jobs", json=PROCESS)
    assert response.status_code == 202
    snapshot = response.json()
    assert set(snapshot) == {
        "job", "analysis", "status", "attempt", "max_attempts", "owner", "queue", "created_at", "started_at",
        "finished_at", "cursor", "progress", "result", "error",
    }  # fmt: skip
    assert response.headers["location"] == f"/jobs/{snapshot['job']}"
    assert (snapshot["analysis"], snapshot["queue"], snapshot["owner"]) == ("process", "default", None)
    found = await ended(http, snapshot["job"])
    assert (await http.get(response.headers["location"])).json() == found
    assert (found["status"], found["result"], found["error"]) == ("succeeded", "Processed data: hello", None)
    assert found["created_at"] <= found["started_at"] <= found["finished_at"]


async def test_without_a_rate_limit_there_is_no_ratelimit_header(http: httpx.AsyncClient) -> None:
    assert not {"ratelimit", "ratelimit-policy"} & set((await http.post("/jobs", json=PROCESS)).headers)


async def test_a_job_has_the_options_that_the_socket_knows_too(http: httpx.AsyncClient, stack: Stack) -> None:
    options = {"timeout_s": 5, "max_attempts": 2, "priority": "low", "delay_s": 60}
    job = await submit(http, "flaky", {"good_from": 2}, **options)
    snapshot = (await http.get(f"/jobs/{job}")).json()
    assert (snapshot["status"], snapshot["max_attempts"]) == ("queued", 2)
    async with redis.Redis.from_url(stack.store.url) as client:
        assert await client.hmget(f"{keys.JOB}{job}", "timeout", "retry") == [b"5000", b"1"]
        due_ms = await client.zscore(keys.lane(priority="low"), job)
        first_ms = int(snapshot["cursor"].partition("-")[2])
    assert due_ms is not None, "it is among those of low priority"
    assert 60_000 <= due_ms - first_ms < 60_001
    assert (await http.delete(f"/jobs/{job}")).json()["status"] == "cancelled"


async def test_a_stream_of_a_submit_may_be_of_the_last_event_only(http: httpx.AsyncClient) -> None:
    answer = await http.post("/jobs", json={**PROCESS, "events": "terminal"}, headers={"Accept": JSONL})
    (event,) = map(json.loads, answer.text.splitlines())
    assert (event["type"], event["data"]["result"]) == ("succeeded", "Processed data: hello")


# Idempotency.


async def test_the_same_idempotency_key_gives_the_same_job(http: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": "http-same"}
    first = await http.post("/jobs", json=PROCESS, headers=headers)
    again = await http.post("/jobs", json=PROCESS, headers=headers)
    quoted = await http.post("/jobs", json=PROCESS, headers={"Idempotency-Key": '"http-same"'})
    in_body = await http.post("/jobs", json={**PROCESS, "key": "http-same"})
    both = await http.post("/jobs", json={**PROCESS, "key": "http-same"}, headers=headers)
    answers = [first, again, quoted, in_body, both]
    assert [answer.status_code for answer in answers] == [202] * 5
    assert len({answer.json()["job"] for answer in answers}) == 1
    assert len({answer.headers["location"] for answer in answers}) == 1


async def test_many_at_once_with_one_key_make_one_job(http: httpx.AsyncClient) -> None:
    answers = await asyncio.gather(
        *(http.post("/jobs", json=PROCESS, headers={"Idempotency-Key": "at-once"}) for _ in range(20))
    )
    assert len({answer.json()["job"] for answer in answers}) == 1


async def test_a_key_used_for_another_request_is_a_conflict(http: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": "http-other"}
    await http.post("/jobs", json=PROCESS, headers=headers)
    other: list[dict[str, Any]] = [
        {**PROCESS, "params": {"text": "other"}}, {**PROCESS, "priority": "high"}, {**PROCESS, "timeout_s": 9},
        {**PROCESS, "delay_s": 9}, {**PROCESS, "max_attempts": 2}, {**PROCESS, "analysis": "measure"},
    ]  # fmt: skip
    for body in other:
        problem(await http.post("/jobs", json=body, headers=headers), "idempotency_conflict")


@pytest.mark.parametrize("key", ["", '""', "x" * 201, "another"])
async def test_a_key_that_is_empty_too_long_or_differs_from_the_bodys_is_refused(
    http: httpx.AsyncClient, key: str
) -> None:
    answer = await http.post("/jobs", json={**PROCESS, "key": "one"}, headers={"Idempotency-Key": key})
    assert pointers(problem(answer, "invalid_params")) == {"/idempotency-key"}


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ([], "POST /jobs: Input should be an object."), ("x", "POST /jobs: Input should be an object."),
        ({"analysis": "process", "params": []}, "POST /jobs: params: Input should be an object."),
    ],
)  # fmt: skip
async def test_a_body_that_is_no_object_is_told_so_in_the_words_of_json(
    http: httpx.AsyncClient, body: Any, told: str
) -> None:
    assert problem(await http.post("/jobs", json=body), "invalid_params")["detail"] == told


async def test_lines_of_a_header_that_is_a_list_count_as_one(http: httpx.AsyncClient) -> None:
    async with http.stream(
        "POST", "/jobs", json=PROCESS, headers=[("Accept", "text/html"), ("Accept", "application/jsonl")]
    ) as stream:
        assert stream.headers["content-type"] == "application/jsonl"
        assert "succeeded" in (await stream.aread()).decode()
    answer = await http.post("/jobs", json=PROCESS, headers=[("Prefer", "respond-async"), ("Prefer", "wait=9")])
    assert (answer.status_code, answer.json()["status"]) == (200, "succeeded")


# Prefer: wait.


@pytest.mark.parametrize("prefer", ["wait=10", "respond-async, wait=10", 'WAIT="10"', "handling=lenient; x, wait = 10"])
async def test_prefer_wait_answers_with_the_finished_job(http: httpx.AsyncClient, prefer: str) -> None:
    answer = await http.post("/jobs", json=PROCESS, headers={"Prefer": prefer})
    assert (answer.status_code, answer.headers["preference-applied"]) == (200, "wait=10")
    assert (answer.json()["status"], answer.json()["result"]) == ("succeeded", "Processed data: hello")
    assert answer.headers["location"] == f"/jobs/{answer.json()['job']}"


async def test_prefer_wait_answers_with_the_failed_job_too(http: httpx.AsyncClient) -> None:
    answer = await http.post(
        "/jobs", json={"analysis": "stumble", "params": {"text": "oh"}}, headers={"Prefer": "wait=9"}
    )
    assert (answer.status_code, answer.json()["status"], answer.json()["error"]["message"]) == (200, "failed", "oh")


async def test_prefer_wait_answers_202_when_the_job_does_not_end_in_time(http: httpx.AsyncClient) -> None:
    answer = await http.post("/jobs", json={"analysis": "hold"}, headers={"Prefer": "wait=1"})
    assert (answer.status_code, answer.headers["preference-applied"]) == (202, "wait=1")
    assert answer.json()["status"] in ("queued", "running")
    assert (await http.delete(f"/jobs/{answer.json()['job']}")).status_code == 202


async def test_prefer_wait_is_honoured_for_as_long_as_the_server_allows(stack: Stack) -> None:
    async with within(stack.store, wait_s=0.2) as here, web(here.api) as http:
        answer = await http.post("/jobs", json={"analysis": "hold"}, headers={"Prefer": "wait=60"})
        assert (answer.status_code, answer.headers["preference-applied"]) == (202, "wait=0")
        await http.delete(answer.headers["location"])


async def test_prefer_wait_with_a_key_of_an_ended_job_answers_with_it(http: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": "waits", "Prefer": "wait=10"}
    first = await http.post("/jobs", json=PROCESS, headers=headers)
    assert (await http.post("/jobs", json=PROCESS, headers=headers)).json() == first.json()


@pytest.mark.parametrize("prefer", ["wait=0", "wait=-1", "wait=soon", "wait", "return=minimal", "await=10"])
async def test_a_preference_that_is_none_is_ignored(http: httpx.AsyncClient, prefer: str) -> None:
    answer = await http.post("/jobs", json={"analysis": "hold"}, headers={"Prefer": prefer})
    assert answer.status_code == 202
    assert "preference-applied" not in answer.headers
    await http.delete(answer.headers["location"])


# Results and ends.


@pytest.mark.parametrize(
    ("analysis", "params", "result"),
    [
        ("process", {"text": "ü"}, '"Processed data: ü"'),
        ("count_up", {"to": 1}, '{"counted":1}'),
        ("anything", {"value": None}, "null"),
        ("anything", {"value": [1, 2.5, {"a": False}]}, '[1,2.5,{"a":false}]'),
    ],
)
async def test_the_result_comes_bare(http: httpx.AsyncClient, analysis: str, params: Any, result: str) -> None:
    job = await submit(http, analysis, params)
    await ended(http, job)
    answer = await http.get(f"/jobs/{job}/result")
    assert (answer.status_code, answer.headers["content-type"], answer.text) == (200, "application/json", result)


async def test_before_the_end_there_is_no_result_and_cancelling_ends_it(http: httpx.AsyncClient) -> None:
    job = await submit(http, "hold")
    answer = await http.get(f"/jobs/{job}/result")
    problem(answer, "result_not_ready")
    assert answer.headers["retry-after"] == "1"
    cancelled = await http.delete(f"/jobs/{job}", params={"reason": "enough"})
    assert (cancelled.status_code, cancelled.json()["status"]) == (202, "cancelled")
    assert cancelled.json()["finished_at"]
    assert "cancelled" in problem(await http.get(f"/jobs/{job}/result"), "cancelled")["detail"]


async def test_cancelling_what_has_ended_changes_nothing_and_is_no_error(http: httpx.AsyncClient) -> None:
    job = await submit(http, "process", {"text": "x"})
    before = await ended(http, job)
    answer = await http.delete(f"/jobs/{job}")
    assert (answer.status_code, answer.json()) == (202, before)


async def test_a_reason_that_is_too_long_is_refused(http: httpx.AsyncClient) -> None:
    job = await submit(http, "hold")
    assert pointers(problem(await http.delete(f"/jobs/{job}?reason={'x' * 1001}"), "invalid_params")) == {"/reason"}
    await http.delete(f"/jobs/{job}")


async def test_failures_are_problems_where_the_result_is_asked_for(http: httpx.AsyncClient) -> None:
    failed = await submit(http, "stumble", {"text": "over a stone"})
    late = await submit(http, "hold", timeout_s=0.1)
    hopeless = await submit(http, "hopeless")
    again = await submit(http, "ask_again", {"times": 9}, max_attempts=2)
    for job in (failed, late, hopeless, again):
        assert (await ended(http, job))["status"] == "failed"
    assert problem(await http.get(f"/jobs/{failed}/result"), "analysis_error")["detail"] == "over a stone"
    problem(await http.get(f"/jobs/{late}/result"), "timeout")
    problem(await http.get(f"/jobs/{hopeless}/result"), "analysis_error")
    problem(await http.get(f"/jobs/{again}/result"), "attempts_exhausted")


@pytest.mark.parametrize("path", ["/jobs/nobody", "/jobs/nobody/result", "/jobs/nobody/events", "/jobs/%00%0a\u00fc"])
async def test_a_job_that_is_not_there_is_not_found(http: httpx.AsyncClient, path: str) -> None:
    assert (await http.get(path)).json()["type"] == "/problems/job_not_found"
    if path.count("/") == 2:
        assert (await http.delete(path)).json()["type"] == "/problems/job_not_found"


# The list.


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def owned(stack: Stack, processes: Processes, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Any]:
    """An API with keys for one owner a name, in the store of the stack."""
    path: Path = tmp_path_factory.mktemp("owners") / "keys.json"
    made = {name: new_key(name, ["submit", "read"], None) for name in ("lister", "pager", "other")}
    write_keys(path, [key for _, key in made.values()])
    api = await processes.api(stack.store, MILLSTREAM_API_KEYS_FILE=str(path))
    yield lambda name: web(api, made[name][0])
    await asyncio.shield(api.kill())


async def test_the_list_has_the_owners_jobs_newest_first_and_can_be_filtered(owned: Any) -> None:
    async with owned("lister") as mine, owned("other") as other:
        assert (await mine.get("/jobs")).json() == []
        theirs = await submit(other, "process", {"text": "theirs"})
        done = [await submit(mine, "process", {"text": str(n)}) for n in range(3)]
        failed = await submit(mine, "stumble")
        for job in (*done, failed):
            await ended(mine, job)
        held = await submit(mine, "hold")
        async with following(mine, held) as stream:
            await stream.until("log")

        async def listed(**query: Any) -> list[str]:
            answer = await mine.get("/jobs", params=query)
            assert answer.status_code == 200
            return [snapshot["job"] for snapshot in answer.json()]

        newest = [held, failed, *reversed(done)]
        created = [(await mine.get(f"/jobs/{job}")).json() for job in newest]
        assert (await mine.get("/jobs")).json() == created
        assert (await mine.get("/jobs?status=&analysis=&limit=&before=")).json() == created
        assert {snapshot["owner"] for snapshot in created} == {"lister"}
        assert await listed(limit=2) == newest[:2]
        assert await listed(status="running") == [held]
        assert await listed(status="failed") == [failed]
        assert await listed(status="queued") == []
        assert await listed(analysis="process") == newest[2:]
        assert await listed(analysis="process", status="succeeded", limit=1) == newest[2:3]
        assert await listed(analysis="nothing") == []
        refused = await mine.get("/jobs", params={"before": theirs})
        assert pointers(problem(refused, "invalid_params")) == {"/before"}
        await mine.delete(f"/jobs/{held}")


async def test_pages_by_link_show_every_job_once_though_new_ones_come(owned: Any) -> None:
    async with owned("pager") as http:
        jobs = [await submit(http, "process", {"text": str(n)}, delay_s=0 if n % 2 else 600) for n in range(23)]
        seen: list[str] = []
        url = "/jobs?limit=5&analysis=process"
        while url:
            answer = await http.get(url)
            page = [snapshot["job"] for snapshot in answer.json()]
            seen += page
            assert len(page) <= 5
            await submit(http, "process", {"text": "new"})
            link = answer.links.get("next")
            url = str(link["url"]) if link else ""
            assert urlsplit(url).netloc == ""
        assert sorted(seen) == sorted(jobs)


@pytest.mark.parametrize(
    ("query", "pointer"),
    [
        ("status=done", "/status"),
        ("limit=0", "/limit"),
        ("limit=501", "/limit"),
        ("limit=x", "/limit"),
        ("before=x", "/before"),
    ],
)
async def test_a_query_that_is_wrong_is_pointed_at(http: httpx.AsyncClient, query: str, pointer: str) -> None:
    assert pointers(problem(await http.get(f"/jobs?{query}"), "invalid_params")) == {pointer}


# Analyses, workers, queues.


async def test_analyses_are_listed_with_their_schemas(http: httpx.AsyncClient) -> None:
    listed = {entry["name"]: entry for entry in (await http.get("/analyses")).json()}
    assert {"process", "text.stats", "typed", "hold"} <= set(listed)
    typed = listed["typed"]
    assert set(typed) == {"name", "description", "params_schema", "result_schema", "timeout_s", "queue"}
    assert (typed["timeout_s"], typed["queue"], typed["description"]) == (7.5, "default", "Say the text n times.")
    assert typed["params_schema"]["properties"]["n"]["maximum"] == 9
    for name, entry in listed.items():
        assert (await http.get(f"/analyses/{name}")).json() == entry
    problem(await http.get("/analyses/nothing"), "unknown_analysis")


async def test_workers_are_shown_by_their_last_heartbeat(stack: Stack, http: httpx.AsyncClient) -> None:
    workers = {worker["worker"]: worker for worker in (await http.get("/workers")).json()}
    assert set(workers) == {worker.url for worker in stack.workers}
    for process in stack.workers:
        worker = workers[process.url]
        assert (worker["pid"], worker["queue"], worker["slots"]) == (process.pid, "default", 100)
        assert worker["rss"] > 10_000_000
        assert worker["at"].endswith("Z")


async def test_queues_show_what_waits_what_runs_and_what_is_not_due(valkey: Process, processes: Processes) -> None:
    store = database(valkey, 11)
    api, worker = await asyncio.gather(
        processes.api(store), processes.worker(store, MILLSTREAM_ANALYSES=ANALYSES, MILLSTREAM_MAX_JOBS="1")
    )
    async with web(api) as http:

        async def queue() -> dict[str, Any]:
            (found,) = (await http.get("/queues")).json()
            return dict(found)

        assert await queue() == {
            "name": "default", "depth": 0, "by_priority": {"high": 0, "default": 0, "low": 0},
            "running": 0, "delayed": 0, "oldest_age_s": 0,
        }  # fmt: skip
        held = await submit(http, "hold")
        async with following(http, held) as stream:
            await stream.until("started")
        for priority in ("low", "default", "low"):
            await submit(http, "hold", priority=priority)
        await submit(http, "hold", delay_s=60)

        found = await queue()
        assert (found["depth"], found["running"], found["delayed"]) == (3, 1, 1)
        assert found["by_priority"] == {"high": 0, "default": 1, "low": 2}

        async def aged() -> bool:
            return bool((await queue())["oldest_age_s"] > 0.05)

        await until(aged, what="the oldest to have waited")
    await asyncio.gather(api.kill(), worker.kill())


@pytest.mark.parametrize("accept", ["application/json", SSE, JSONL])
async def test_an_answer_that_depends_on_accept_says_so(http: httpx.AsyncClient, accept: str) -> None:
    body = {"analysis": "process", "params": {"text": "x"}}
    answer = await http.post("/jobs", json=body, headers={"Accept": accept})
    assert answer.headers["vary"] == "Accept"
    stream = await http.get(answer.headers["location"] + "/events", headers={"Accept": accept})
    assert stream.headers["vary"] == "Accept"
