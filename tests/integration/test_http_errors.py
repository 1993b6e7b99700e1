"""What HTTP answers to requests that are wrong: always a problem document (RFC 9457)."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis.asyncio as redis
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from millstream.confined_fs import ServedDirectory
from millstream.store import keys
from millstream_api.app import create_app, with_files
from millstream_api.settings import ApiSettings
from tests.integration.conftest import Stack
from tests.integration.serving import serving
from tests.integration.web import pointers, problem, web
from tests.processes import Processes

JSON = {"Content-Type": "application/json"}
MIB = 1024 * 1024


@pytest.fixture
async def http(stack: Stack) -> AsyncIterator[httpx.AsyncClient]:
    async with web(stack.api) as http:
        yield http


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404), ("GET", "/problems/nothing", 404), ("GET", "/docs/static/nothing.js", 404),
        ("PUT", "/jobs", 405), ("POST", "/jobs/x", 405), ("POST", "/healthz", 405), ("DELETE", "/analyses", 405),
        ("GET", "/analyses/x/y", 404), ("POST", "/%2e%2e/jobs", 404),
    ],
)  # fmt: skip
async def test_what_the_framework_refuses_is_a_problem_too(
    http: httpx.AsyncClient, method: str, path: str, status: int
) -> None:
    answer = await http.request(method, path)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json"), answer.headers
    document = answer.json()
    assert (document["type"], document["status"]) == ("about:blank", status)
    assert document["instance"] == path.replace("%2e%2e", "..")
    assert document["detail"].startswith(document["title"])
    assert (status == 405) == ("allow" in answer.headers)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/jobs", {"GET", "HEAD", "POST"}), ("POST", "/jobs/x", {"GET", "HEAD", "DELETE"}),
        ("POST", "/healthz", {"GET", "HEAD"}), ("HEAD", "/jobs/x/events", {"GET"}),
        ("PATCH", "/docs/static/x.js", {"GET", "HEAD"}),
        ("PATCH", "/files/x", {"GET", "HEAD", "PUT", "DELETE"}), ("OPTIONS", "/analyses", {"GET", "HEAD"}),
    ],
)  # fmt: skip
async def test_what_is_not_allowed_is_told_with_all_that_is(
    http: httpx.AsyncClient, method: str, path: str, allowed: set[str]
) -> None:
    answer = await http.request(method, path)
    assert (answer.status_code, set(answer.headers["allow"].split(", "))) == (405, allowed)


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/jobs", "/analyses", "/analyses/process", "/docs",
                                  "/openapi.json", "/problems", "/jobs/x"])  # fmt: skip
async def test_head_is_get_without_the_body(http: httpx.AsyncClient, path: str) -> None:
    got, head = await http.get(path), await http.head(path)
    assert (head.status_code, head.content) == (got.status_code, b"")
    assert head.headers["content-type"] == got.headers["content-type"]
    if path not in ("/metrics", "/jobs"):  # which change
        assert head.headers["content-length"] == got.headers["content-length"]
    assert (await http.get("/healthz")).status_code == 200, "the connection is in order"


async def test_an_instance_is_a_reference(http: httpx.AsyncClient) -> None:
    for path in ("/files/no%20such%0a%22file%22%20%C3%A9", "/nothing%20here"):
        assert (await http.get(path)).json()["instance"] == path.replace("%0a", "%0A")


@pytest.mark.parametrize("path", ["/jobs/", "/analyses/", "/healthz/", "/docs/", "/problems/", "/files",
                                  "/stream/file/", "/docs/static", "/jobs/x/"])  # fmt: skip
async def test_no_path_leads_to_where_the_host_header_says(http: httpx.AsyncClient, path: str) -> None:
    for method in ("GET", "POST"):
        answer = await http.request(method, path, headers={"Host": "x"})  # which is listed
        assert (answer.status_code, answer.headers.get("location")) == (404, None)
        assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("path", ["/ws/", "/nothing", "/jobs"])
async def test_a_socket_elsewhere_is_not_found(stack: Stack, path: str) -> None:
    with pytest.raises(InvalidStatus) as caught:
        async with connect(stack.api.url.replace("http", "ws") + path, proxy=None):
            pass
    response = caught.value.response
    assert (response.status_code, response.headers["content-type"]) == (404, "application/problem+json")


async def test_what_nobody_thought_of_is_a_problem_without_a_traceback(
    own_processes: Processes, stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = await own_processes.api(stack.store, None, MILLSTREAM_DATA_DIR=str(tmp_path))
    async with redis.Redis.from_url(stack.store.url) as store, web(api) as http:
        await store.set(keys.JOB + "broken", "this is no record")
        problem(await http.get("/jobs/broken"), "internal_error")
        await store.delete(keys.JOB + "broken")
        assert (await http.get("/healthz")).status_code == 200
    log = api.log.read_text()
    assert '"event": "request failed"' in log
    assert "Traceback" in log, "for the operator"

    def fail(*_: object) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr(ServedDirectory, "open_cached", fail)
    for origins in ("", "https://app.example"):
        app = with_files(create_app(ApiSettings(data_dir=tmp_path, cors_origins=origins)))
        async with serving(app) as url, httpx.AsyncClient(base_url=url, trust_env=False) as http:
            answer = await http.get("/files/f", headers={"Origin": "https://app.example"})
            problem(answer, "internal_error")
            assert "secret" not in answer.text
            assert answer.headers.get("access-control-allow-origin", "") == origins


NO_JSON = [
    b"", b"{", b"not json", b'{"analysis":"process",}', b"\xff\xfe", b'{"analysis":"\xff"}', b"{'analysis':1}",
    b'{"analysis":"process","params":{"text":"\\ud800"}}', b'{"analysis":"anything","params":{"value":NaN}}',
    b'{"analysis":"anything","params":{"value":-Infinity}}', b'{"analysis":"anything","params":{"value":' + b"[" * 300,
    b'{"analysis":"anything","params":{"value":' + b"[" * 20_000 + b"]" * 20_000 + b"}}",
    b'{"analysis":"anything","params":{"value":' + b"[" * 300 + b"]" * 300 + b"}}",
]  # fmt: skip


@pytest.mark.parametrize("body", NO_JSON, ids=lambda body: repr(body[:50]))
async def test_a_body_that_is_not_json_is_a_parse_error(http: httpx.AsyncClient, body: bytes) -> None:
    answer = await http.post("/jobs", content=body, headers=JSON)
    problem(answer, "parse_error")


@pytest.mark.parametrize("value", ["1e999", "-1e999", "[1e400]"])
async def test_a_number_that_is_too_large_is_refused(http: httpx.AsyncClient, value: str) -> None:
    body = f'{{"analysis":"anything","params":{{"value":{value}}}}}'
    answer = await http.post("/jobs", content=body, headers=JSON)
    assert answer.json()["type"] in ("/problems/parse_error", "/problems/invalid_params")


@pytest.mark.parametrize("digits", [20, 5000])
async def test_a_whole_number_of_any_size_is_no_defect(http: httpx.AsyncClient, digits: int) -> None:
    body = f'{{"analysis":"anything","params":{{"value":{"9" * digits}}}}}'
    answer = await http.post("/jobs", content=body, headers=JSON)
    assert answer.status_code in (202, 400, 422), answer.text
    if answer.status_code != 202:
        assert answer.json()["type"] in ("/problems/parse_error", "/problems/invalid_params")


@pytest.mark.parametrize("type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", None])
async def test_a_body_of_another_type_is_an_invalid_request(http: httpx.AsyncClient, type: str | None) -> None:
    body = b'{"analysis":"process","params":{"text":"x"}}'
    answer = await http.post("/jobs", content=body, headers={"Content-Type": type} if type else {})
    assert "application/json" in problem(answer, "invalid_request")["detail"]


@pytest.mark.parametrize("type", ["application/json", "application/json; charset=utf-8", "Application/JSON"])
async def test_json_by_any_spelling_is_json(http: httpx.AsyncClient, type: str) -> None:
    body = b'{"analysis":"process","params":{"text":"x"}}'
    assert (await http.post("/jobs", content=body, headers={"Content-Type": type})).status_code == 202
    problem(await http.post("/jobs", content=b'{"analysis":1}', headers={"Content-Type": type}), "invalid_params")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, {"/analysis"}),
        ({"analysis": ""}, {"/analysis"}),
        ({"analysis": 7, "params": []}, {"/analysis", "/params"}),
        ({"analysis": "process", "colour": "red"}, {"/colour"}),
        ({"analysis": "process", "colour": "red", "size": 1}, {"/colour", "/size"}),
        ({"analysis": "process", "timeout_s": "5"}, {"/timeout_s"}),
        ({"analysis": "process", "timeout_s": 0, "delay_s": -1}, {"/timeout_s", "/delay_s"}),
        ({"analysis": "process", "max_attempts": 1.5}, {"/max_attempts"}),
        ({"analysis": "process", "priority": "urgent"}, {"/priority"}),
        ({"analysis": "process", "params": {}}, {"/params"}),
        ({"analysis": "process", "params": {"text": 1, "delay_s": -1}}, {"/params/text", "/params/delay_s"}),
        ({"analysis": "process", "params": {"text": "x", "more": 1}}, {"/params"}),
        ({"analysis": "typed", "params": {"text": "x", "n": 10}}, {"/params/text", "/params/n"}),
    ],
)
async def test_each_member_that_is_wrong_is_pointed_at(
    http: httpx.AsyncClient, body: dict[str, Any], expected: set[str]
) -> None:
    document = problem(await http.post("/jobs", json=body), "invalid_params")
    assert pointers(document) == expected
    for error in document["errors"]:
        assert error["detail"]


@pytest.mark.parametrize("body", ["[]", "7", '"process"', "null"])
async def test_a_body_that_is_no_object_is_refused(http: httpx.AsyncClient, body: str) -> None:
    document = problem(await http.post("/jobs", content=body, headers=JSON), "invalid_params")
    assert len(document["errors"]) == 1


async def test_an_unknown_analysis_is_named_beside_those_there_are(http: httpx.AsyncClient) -> None:
    document = problem(await http.post("/jobs", json={"analysis": "nothing"}), "unknown_analysis")
    assert "'nothing'" in document["detail"]
    assert "process" in document["detail"]


# Size.


def sized(size: int) -> bytes:
    head, tail = b'{"analysis":"measure","params":{"text":"', b'"}}'
    return head + b"x" * (size - len(head) - len(tail)) + tail


async def pieces(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), 65536):
        yield body[start : start + 65536]


async def test_a_body_of_one_mebibyte_passes_and_one_byte_more_does_not(http: httpx.AsyncClient) -> None:
    for content in (lambda size: sized(size), lambda size: pieces(sized(size))):
        fits = await http.post("/jobs", content=content(MIB), headers=JSON)
        assert fits.status_code == 202, fits.text
        problem(await http.post("/jobs", content=content(MIB + 1), headers=JSON), "payload_too_large")


@asynccontextmanager
async def connection(stack: Stack) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    host, port = stack.api.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield reader, writer
    finally:
        writer.close()


def head(*headers: str) -> bytes:
    lines = ["POST /jobs HTTP/1.1", "Host: x", "Content-Type: application/json", *headers]
    return "\r\n".join([*lines, "", ""]).encode()


async def test_a_body_that_says_it_is_too_large_is_refused_before_it_is_sent(stack: Stack) -> None:
    async with connection(stack) as (reader, writer), asyncio.timeout(5):
        writer.write(head(f"Content-Length: {100 * MIB}"))
        assert (await reader.readline()).startswith(b"HTTP/1.1 413 ")
        assert b"application/problem+json" in await reader.readuntil(b"\r\n\r\n")


async def test_a_body_without_an_end_is_refused_once_it_is_too_large(stack: Stack) -> None:
    async with connection(stack) as (reader, writer), asyncio.timeout(10):
        writer.write(head("Transfer-Encoding: chunked"))
        for _ in range(17):
            writer.write(b"10000\r\n" + b" " * 65536 + b"\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 413 ")


async def test_slow_bodies_hold_no_other_request_up(stack: Stack, http: httpx.AsyncClient) -> None:
    body = sized(1000)
    async with connection(stack) as (reader, writer):
        writer.write(head(f"Content-Length: {len(body)}") + body[:100])
        await writer.drain()
        answer = await http.post(
            "/jobs", json={"analysis": "process", "params": {"text": "x"}}, headers={"Prefer": "wait=9"}
        )
        assert answer.status_code == 200
        writer.write(body[100:])
        async with asyncio.timeout(10):
            assert (await reader.readline()).startswith(b"HTTP/1.1 202 ")


async def test_a_client_that_leaves_while_it_sends_its_body_is_no_error(stack: Stack, http: httpx.AsyncClient) -> None:
    before = stack.api.log.read_text()
    async with connection(stack) as (_, writer):
        writer.write(head("Content-Length: 1000") + b'{"analysis"')
        await writer.drain()
    assert (await http.get("/healthz")).json() == {"status": "ok"}
    assert "error" not in [
        json.loads(line).get("level") for line in stack.api.log.read_text()[len(before) :].splitlines()
    ]


HEAD_BYTES = 64 * 1024


@pytest.mark.parametrize("form", ["one header", "many headers", "a long path"])
@pytest.mark.parametrize("size", [HEAD_BYTES - 1000, HEAD_BYTES + 1000, 3 * MIB])
@pytest.mark.parametrize("piece", [10_000, 4 * MIB])
async def test_a_head_over_the_limit_is_refused_however_it_comes(
    stack: Stack, form: str, size: int, piece: int
) -> None:
    line = {"one header": "X: " + "x" * size, "many headers": "\r\n".join(["X: " + "x" * 95] * (size // 100))}
    path = "/healthz?" + ("x" * size if form == "a long path" else "")
    head = f"GET {path} HTTP/1.1\r\nHost: x\r\n{line.get(form, 'Y: y')}\r\n\r\n".encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", int(stack.api.url.rpartition(":")[2]))
    if size < HEAD_BYTES:
        head = head * 2 + b"GET /healthz HTTP/1.0\r\n\r\n"  # on one connection, which ends with the last
    with suppress(ConnectionError):
        for start in range(0, len(head), piece):
            writer.write(head[start : start + piece])
            await writer.drain()
    answer = b""
    with suppress(ConnectionError):  # a client that goes on sending may lose the answer
        while received := await asyncio.wait_for(reader.read(MIB), 10):
            answer += received
    if size < HEAD_BYTES:
        assert (answer.count(b"HTTP/1.1 200 "), answer.count(b"HTTP/1.1 ")) == (3, 3)
    elif answer or size < MIB:
        assert answer.startswith(b"HTTP/1.1 431 Request Header Fields Too Large\r\n")
        assert b"\r\ncontent-type: application/problem+json\r\n" in answer
        assert f"exceed {HEAD_BYTES} bytes".encode() in answer
    writer.close()
    async with web(stack.api) as http:
        assert (await http.get("/healthz")).status_code == 200


@pytest.mark.parametrize("begin", ["GET /", "GET / HTTP/1.1\r\nX: ", "GET / HTTP/1.1\r\nX: x\r\nX"])
async def test_a_head_without_an_end_is_not_waited_for(stack: Stack, begin: str) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(stack.api.url.rpartition(":")[2]))
    writer.write(begin.encode())
    answer = b""
    with suppress(ConnectionError):
        for _ in range(MIB // 1000):
            writer.write(b"x" * 1000)
            await writer.drain()
        answer = await asyncio.wait_for(reader.read(), 10)
    assert not answer or answer.startswith(b"HTTP/1.1 431 ")
    writer.close()


@pytest.mark.parametrize(
    "text", ["GET\r\n\r\n", "FOO: / HTTP/1.1\r\nHost: x\r\n\r\n", "\x00\x01", "GET / HTTP/1.1\r\nA B\r\n\r\n"]
)
async def test_what_is_no_http_is_a_problem_too(stack: Stack, text: str) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(stack.api.url.rpartition(":")[2]))
    writer.write(text.encode())
    head, _, body = (await asyncio.wait_for(reader.read(), 10)).decode().partition("\r\n\r\n")
    assert head.startswith("HTTP/1.1 400 Bad Request\r\n")
    assert "content-type: application/problem+json" in head
    assert json.loads(body)["status"] == 400
    writer.close()
