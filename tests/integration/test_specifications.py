"""What is published about the interfaces is valid, complete, and what is really sent."""

import asyncio
import json
import re
from base64 import b64encode
from collections.abc import AsyncIterator
from functools import cache
from hashlib import sha256
from html.parser import HTMLParser
from typing import Any

import httpx
import jsonschema_rs
import pytest
from openapi_spec_validator import validate
from pydantic import TypeAdapter
from websockets.asyncio.client import connect
from websockets.typing import Subprotocol

from millstream.protocol.errors import JOB_FAILURES, PROBLEM_TYPES
from millstream.protocol.event_types import EVENT_TYPES
from millstream_api.jobs.methods import METHODS
from millstream_api.jobs.schemas import NOTIFICATIONS, JobEvent, ProblemDocument
from tests.integration.conftest import Stack
from tests.integration.rpc import Refused, Rpc, rpc
from tests.integration.web import JSONL, ended, events, submit, web

Json = dict[str, Any]
OUTSIDE = re.compile(r"(?:https?:)?//(?!127\.0\.0\.1|www\.w3\.org/)[\w.-]+\.\w+", re.IGNORECASE)


@pytest.fixture
async def http(stack: Stack) -> AsyncIterator[httpx.AsyncClient]:
    async with web(stack.api) as http:
        yield http


@pytest.fixture
async def openapi(http: httpx.AsyncClient) -> Json:
    answer = await http.get("/openapi.json")
    assert answer.status_code == 200
    return dict(answer.json())


@pytest.fixture
async def asyncapi(http: httpx.AsyncClient) -> Json:
    answer = await http.get("/asyncapi.json")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    return dict(answer.json())


class Links(HTMLParser):
    """What a page loads or links to."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if name in ("src", "href", "action") and value]


# HTTP.


async def test_the_openapi_document_is_valid(openapi: Json) -> None:
    validate(openapi)
    for reference in re.findall(r"\"#/([^\"]+)\"", json.dumps(openapi)):
        found: Any = openapi
        for part in reference.split("/"):
            found = found[part]
    assert openapi["openapi"].startswith("3.1")


async def test_every_route_of_the_contract_is_documented(openapi: Json) -> None:
    documented = {(method.upper(), path) for path, operations in openapi["paths"].items() for method in operations}
    assert documented >= {
        ("POST", "/jobs"), ("GET", "/jobs"), ("GET", "/jobs/{job}"), ("GET", "/jobs/{job}/events"),
        ("GET", "/jobs/{job}/result"), ("DELETE", "/jobs/{job}"), ("GET", "/analyses"), ("GET", "/analyses/{name}"),
        ("GET", "/workers"), ("GET", "/queues"), ("GET", "/async_route"), ("GET", "/healthz"), ("GET", "/readyz"),
    }  # fmt: skip


async def test_every_documented_route_is_there(openapi: Json, http: httpx.AsyncClient) -> None:
    job = await submit(http, "process", {"text": "x"})
    await ended(http, job)
    for path, operations in openapi["paths"].items():
        for method in operations:
            url = path.replace("{job}", job).replace("{name}", "process")
            if "{" in url or path in ("/stream/file", "/uploads"):  # the last two: test_files_get.py, test_files_put.py
                continue
            answer = await http.request(method, url, params={"delay": 0} if path == "/async_route" else {})
            assert answer.status_code not in (404, 405), (method, path)
            assert str(answer.status_code) in operations[method]["responses"], f"{method} {path}: {answer.status_code}"


async def test_parameters_and_the_body_are_documented(openapi: Json) -> None:
    post = openapi["paths"]["/jobs"]["post"]
    assert {"prefer", "idempotency-key"} <= {parameter["name"] for parameter in post["parameters"]}
    assert post["requestBody"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Submit"}
    assert set(openapi["components"]["schemas"]["Submit"]["properties"]) >= {"analysis", "params", "key", "timeout_s"}
    stream = openapi["paths"]["/jobs/{job}/events"]["get"]
    assert {"after", "follow", "last-event-id"} <= {parameter["name"] for parameter in stream["parameters"]}
    assert {"text/event-stream", "application/jsonl"} <= set(stream["responses"]["200"]["content"])


async def test_what_routes_answer_is_what_they_say(openapi: Json, http: httpx.AsyncClient) -> None:
    job = await submit(http, "report", {"count": 3})
    await ended(http, job)
    asked = {
        "/jobs/{job}": f"/jobs/{job}", "/jobs": "/jobs?limit=20", "/analyses": "/analyses", "/workers": "/workers",
        "/analyses/{name}": "/analyses/text.stats", "/queues": "/queues",
    }  # fmt: skip
    for path, url in asked.items():
        answer = await http.get(url)
        schema = openapi["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
        conforms(answer.json(), schema, openapi)
    post = openapi["paths"]["/jobs"]["post"]["responses"]
    body = {"analysis": "process", "params": {"text": "x"}}
    conforms(
        (await http.post("/jobs", json=body)).json(), post["202"]["content"]["application/json"]["schema"], openapi
    )
    reference = "#/components/schemas/JobEvent"
    assert {"$ref": reference} == post["200"]["content"]["application/jsonl"]["schema"]
    for event in await events(http, job):
        conforms(event, {"$ref": reference}, openapi)


def conforms(value: Any, schema: Json, document: Json) -> None:
    """Is this value what the schema of a document says?"""
    whole = {**schema, "components": document["components"]}
    errors = [f"{error.instance_path}: {error.message}" for error in jsonschema_rs.iter_errors(whole, value)]
    assert not errors, errors


async def test_problems_are_what_the_documents_say(openapi: Json, asyncapi: Json, http: httpx.AsyncClient) -> None:
    requests = [
        ("GET", "/jobs/x", None), ("GET", "/jobs?limit=x", None), ("POST", "/jobs", {"analysis": "nothing"}),
        ("POST", "/jobs", {"analysis": "process"}), ("GET", "/nothing", None),
    ]  # fmt: skip
    for method, url, body in requests:
        document = (await http.request(method, url, json=body)).json()
        ProblemDocument.model_validate(document)
        for published in (openapi, asyncapi):
            conforms(document, {"$ref": "#/components/schemas/ProblemDocument"}, published)


# Pages.


@pytest.mark.parametrize("slug", [*PROBLEM_TYPES, *JOB_FAILURES])
async def test_every_problem_has_a_page_that_names_it(http: httpx.AsyncClient, slug: str) -> None:
    kind = PROBLEM_TYPES.get(slug) or JOB_FAILURES[slug]
    answer = await http.get(f"/problems/{slug}")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    for text in (f"<code>{slug}</code>", str(kind.status), str(kind.code or "")):
        assert text in answer.text
    assert f"/problems/{slug}" in Links((await http.get("/problems")).text).found


@pytest.mark.parametrize("page", ["/docs", "/asyncapi", "/problems", "/problems/queue_full"])
async def test_a_page_needs_no_other_site_and_all_it_loads_is_served(http: httpx.AsyncClient, page: str) -> None:
    answer = await http.get(page)
    assert answer.status_code == 200
    assert not OUTSIDE.findall(answer.text)
    for link in Links(answer.text).found:
        assert link.startswith(("/", "#")), link
        if not link.startswith("#"):
            assert (await http.get(link)).status_code == 200, link
    for link in re.findall(r"url: *'([^']+)'", answer.text):
        assert (await http.get(link)).status_code == 200


@pytest.mark.parametrize("page", ["/docs", "/asyncapi", "/problems", "/problems/queue_full"])
async def test_a_page_runs_only_what_is_its_own_and_is_framed_by_none(http: httpx.AsyncClient, page: str) -> None:
    answer = await http.get(page)
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
    assert (policy["default-src"], policy["frame-ancestors"], policy["base-uri"]) == ("'none'", "'none'", "'none'")
    for tag in ("script", "style"):
        inline = re.findall(f"<{tag}>(.*?)</{tag}>", answer.text, re.DOTALL)
        digests = [b64encode(sha256(text.encode()).digest()).decode() for text in inline]
        assert policy[f"{tag}-src"].split() == ["'self'", *(f"'sha256-{digest}'" for digest in digests)]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"


async def test_the_page_of_the_socket_tells_of_every_method_event_and_error(http: httpx.AsyncClient) -> None:
    text = (await http.get("/asyncapi")).text
    for name in (*METHODS, *NOTIFICATIONS, *EVENT_TYPES, *PROBLEM_TYPES):
        assert f"<code>{name}</code>" in text, name
    for method in METHODS.values():
        for member in method.params.model_fields:
            assert f"<code>{member}</code>" in text


# The socket.


async def test_the_asyncapi_document_has_all_that_the_socket_knows(asyncapi: Json) -> None:
    assert asyncapi["asyncapi"] == "3.0.0"
    titles = {operation["title"]: operation["action"] for operation in asyncapi["operations"].values()}
    assert titles == {**dict.fromkeys(METHODS, "receive"), **dict.fromkeys(NOTIFICATIONS, "send")}
    schemas = asyncapi["components"]["schemas"]
    assert set(schemas["JobEvent"]["properties"]["type"]["enum"]) == set(EVENT_TYPES)
    assert {f"{kind.capitalize()}Data" for kind in EVENT_TYPES} <= set(schemas)
    codes = schemas["Error"]["properties"]["error"]["properties"]["code"]["enum"]
    assert set(codes) == {kind.code for kind in PROBLEM_TYPES.values()}
    for reference in re.findall(r'"\$ref": *"#/([^"]+)"', json.dumps(asyncapi)):
        found: Any = asyncapi
        for part in reference.split("/"):
            found = found[part]


@cache
def adapter(shape: Any) -> TypeAdapter[Any]:
    return TypeAdapter(shape)


async def use_everything(client: Rpc) -> list[tuple[str, Any]]:
    """Call every method and bring about every type of event; returns what was answered, by method."""
    answers: list[tuple[str, Any]] = [(name, await client.call(name)) for name in ("ping", "analysis.list")]

    async def submitted(analysis: str, params: Json, **options: Any) -> str:
        answers.append(("job.submit", await client.call("job.submit", analysis=analysis, params=params, **options)))
        return str(answers[-1][1]["job"])

    jobs = [
        await submitted("report", {"count": 12}, key="specified"),
        await submitted("stumble", {"text": "over"}),
        await submitted("flaky", {"good_from": 2}, max_attempts=3),
        await submitted("boast", {"count": 2, "size": 3}),
        await submitted("hold", {}, timeout_s=0.1),
        await submitted("anything", {"value": "object"}),
    ]
    held = await submitted("hold", {})
    await client.until(held, "started")
    answers.append(("job.get", await client.call("job.get", job=held)))
    answers.append(("job.cancel", await client.call("job.cancel", job=held, reason="seen")))
    for job in (*jobs, held):
        await client.end(job)
    await submitted("report", {"count": 12}, key="specified")
    for after in ({}, {"after": "3-1"}):
        await client.call("job.detach", job=jobs[0])
        before = client.types(jobs[0]).count("succeeded")
        answers.append(("job.attach", await client.call("job.attach", job=jobs[0], **after)))
        await client.until(jobs[0], "succeeded", times=before + 1)
    answers.append(("job.detach", await client.call("job.detach", job=jobs[1])))
    return answers


async def test_what_the_socket_really_sends_is_what_is_published(stack: Stack, asyncapi: Json) -> None:
    schemas, messages = asyncapi["components"]["schemas"], asyncapi["components"]["messages"]
    by_title = {message["name"]: message["payload"] for message in messages.values()}
    async with rpc(stack.api) as client:
        answers = await use_everything(client)
        refusals: tuple[tuple[str, Json], ...] = (
            ("job.get", {"job": "x"}), ("job.submit", {"analysis": "process"}), ("job.nothing", {}), ("ping", {"x": 1}),
            ("job.submit", {"analysis": "nothing"}),
        )  # fmt: skip
        for method, params in refusals:
            with pytest.raises(Refused):
                await client.call(method, **params)
        await client.send("{")
        await client.reply(None)
        frames = client.frames
    for method, result in answers:
        adapter(METHODS[method].result).validate_python(result)
        conforms(result, schemas[f"{''.join(p.capitalize() for p in method.split('.'))}Result"], asyncapi)
    assert {method for method, _ in answers} == set(METHODS)
    seen = set()
    for frame in frames:
        method = frame.get("method")
        if method:
            NOTIFICATIONS[method].model_validate(frame["params"])
            conforms(frame, by_title[method], asyncapi)
            seen.add(method)
            if method == "job.event":
                event = frame["params"]
                seen.add(event["type"])
                adapter(EVENT_TYPES[event["type"]].data).validate_python(event["data"])
                conforms(event["data"], schemas[f"{event['type'].capitalize()}Data"], asyncapi)
        elif "error" in frame:
            conforms(frame, by_title["error"], asyncapi)
    assert seen >= {"job.event", "job.gap", *EVENT_TYPES}


async def test_what_is_sent_by_http_are_the_same_events(stack: Stack, http: httpx.AsyncClient) -> None:
    answer = await http.post("/jobs", json={"analysis": "report", "params": {"count": 2}}, headers={"Accept": JSONL})
    for line in answer.text.splitlines():
        event = JobEvent.model_validate_json(line)
        adapter(EVENT_TYPES[event.type].data).validate_python(event.data)


async def test_requests_as_they_are_published_are_understood(stack: Stack, asyncapi: Json) -> None:
    requests = [
        {"jsonrpc": "2.0", "id": 1, "method": "job.submit", "params": {"analysis": "process", "params": {"text": "x"}}},
        {"jsonrpc": "2.0", "id": 2, "method": "ping"},
    ]
    payloads = {message["name"]: message["payload"] for message in asyncapi["components"]["messages"].values()}
    async with connect(stack.api.ws, subprotocols=[Subprotocol("millstream.v1")]) as socket:
        for request in requests:
            conforms(request, payloads[str(request["method"])], asyncapi)
            await socket.send(json.dumps(request))
            async with asyncio.timeout(10):
                while json.loads(await socket.recv()).get("id") != request["id"]:
                    pass


async def test_each_operation_says_what_it_does_in_a_sentence(openapi: Json) -> None:
    summaries = [
        operation["summary"]
        for path in openapi["paths"].values()
        for method, operation in path.items()
        if method != "parameters"
    ]
    assert len(summaries) > 20
    assert {"Submit a job", "Liveness: the process is running", "List the available analyses"} <= set(summaries)
    assert [text for text in summaries if len(text) < 10 or len(text) > 120] == []
