"""Headers, paths and queries that no client library would send: each is answered, and none is a defect of ours."""

import asyncio
from collections.abc import Iterator

import pytest

from millstream_api.app import QUERY_PARAMETERS
from tests.integration.conftest import Stack
from tests.integration.web import raw

ORIGINS = [
    b"http://[",
    b"http://[::1",
    b"http://]",
    b"http://a:b",
    b"http://\xff",
    b"://",
    b"[",
    b"http://",
    b"null null",
]
HOSTS = [b"[", b"[::1", b"]", b"a:b", b"a b", b"\xff", b"a:99999999999999999999", b"a/b", b"@", b"\xc3\xa9"]
VERSIONS = [
    b"1.0.0.0.foo",
    b"abc",
    b"1..",
    b".",
    b"9" * 5000,
    b"1_0.0",
    b"-1",
    b"\xff",
    b'"1.0.0"',
    b"1.0.0;q=nan",
    b"",
]
ACCEPTS = [
    *(b"application/openmetrics-text; version=" + version for version in VERSIONS),
    *(b"text/plain; version=" + version for version in VERSIONS),
    b"*/*;q=nan", b"*/*;q=inf", b"*/*;q=-1", b"*/*;q=1e400", b";;;", b",,,", b"a;q", b"a/b;q==1", b"\xff/*",
    b"a," * 20_000,
]  # fmt: skip
SOCKET = (
    b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
NUMBERS = [b"", b"x", b"1e3", b"-1", b"+1", b" 1", b"1_000", b"9" * 5000, b"\xd9\xa3", b"0x10", b"1.0", b"nan", b"\xff"]
ESCAPES = [b"%", b"%zz", b"%00", b"%ff", b"%ED%A0%80", b"%C3", b"%2e%2e%2f", b"%0a", b"%5B", b"\xff", b"%E2%80%A8"]
CURSORS = [*NUMBERS, b"1-", b"-", b"1-1-1", b"\xd9\xa3-1", b"1" * 5000 + b"-1", b"0-0\t"]


def head(line: bytes, *fields: bytes, host: bytes = b"x") -> bytes:
    return b"\r\n".join([line + b" HTTP/1.1", b"Host: " + host, *fields, b"Connection: close", b"", b""])


def requests() -> Iterator[tuple[str, bytes]]:
    for value in ORIGINS:
        yield "origin", head(b"GET /ws", b"Origin: " + value).replace(b"Connection: close\r\n", SOCKET)
    for value in HOSTS:
        yield (
            "host of a socket",
            head(b"GET /ws", b"Origin: http://x", host=value).replace(b"Connection: close\r\n", SOCKET),
        )
        for target in (b"/jobs", b"/jobs/", b"/jobs/x", b"/nothing", b"/docs", b"/files/x", b"/uploads"):
            yield "host", head(b"GET " + target, host=value)
    for value in ACCEPTS:
        yield "accept of metrics", head(b"GET /metrics", b"Accept: " + value)
        yield "accept of events", head(b"GET /jobs/x/events", b"Accept: " + value)
    for value in NUMBERS:
        yield "limit", head(b"GET /jobs?limit=" + value)
        yield "delay", head(b"GET /async_route?delay=" + value)
        yield (
            "content-length",
            head(b"POST /jobs", b"Content-Type: application/json", b"Content-Length: " + value) + b"1",
        )
        yield (
            "wait",
            head(b"POST /jobs", b"Content-Type: application/json", b"Content-Length: 0", b"Prefer: wait=" + value),
        )
    for value in ESCAPES:
        for target in (b"/jobs/", b"/analyses/", b"/problems/", b"/jobs?before=", b"/jobs?analysis=", b"/jobs?", b"/"):
            yield "escape", head(b"GET " + target + value)
        yield "escape of a socket", head(b"GET /ws?analysis=" + value).replace(b"Connection: close\r\n", SOCKET)
    for value in CURSORS:
        yield "cursor", head(b"GET /jobs/x/events?after=" + value)
        yield "last-event-id", head(b"GET /jobs/x/events", b"Last-Event-ID: " + value)
    for value in (b"Bearer", b"Bearer  ", b"Bearer \xff", b"Basic x", b"\xff", b"Bearer " + b"x" * 50_000):
        yield "authorization", head(b"GET /jobs", b"Authorization: " + value)
    for value in (b"", b"\xff", b'"', b'""', b"x" * 5000):
        yield (
            "idempotency-key",
            head(b"POST /jobs", b"Content-Type: application/json", b"Content-Length: 2", b"Idempotency-Key: " + value)
            + b"{}",
        )
    for value in (b"bearer.", b"bearer.=", b"bearer.\xff", b"bearer.____", b"bearer.gICA", b"," * 5000, b'"'):
        offered = b"Sec-WebSocket-Protocol: " + value
        yield "subprotocol", head(b"GET /ws", offered).replace(b"Connection: close\r\n", SOCKET)


EVERY = list(requests())


async def status(stack: Stack, request: bytes) -> int:
    async with raw(stack.api) as (reader, writer):
        writer.write(request)
        line = await reader.readline()
    version, status, _ = line.split(b" ", 2)
    assert version == b"HTTP/1.1"
    return int(status)


@pytest.mark.parametrize("kind", dict(EVERY))
async def test_what_is_odd_is_answered_without_a_defect(stack: Stack, kind: str) -> None:
    before = stack.api.log.read_text()
    found = [(await status(stack, request), request) for name, request in EVERY if name == kind]
    assert [(code, request[:300]) for code, request in found if code >= 500] == []
    assert "Traceback" not in stack.api.log.read_text().removeprefix(before)


@pytest.mark.parametrize("origin", ORIGINS, ids=repr)
async def test_an_origin_that_is_none_may_not_open_a_socket(stack: Stack, origin: bytes) -> None:
    request = head(b"GET /ws", b"Origin: " + origin).replace(b"Connection: close\r\n", SOCKET)
    assert await status(stack, request) == 403


async def test_a_query_of_too_many_parameters_is_refused(stack: Stack) -> None:
    for target, number in ((b"/jobs?", 400), (b"/nothing?", 400), (b"/healthz?", 400)):
        assert await status(stack, head(b"GET " + target + b"a=b&" * QUERY_PARAMETERS)) == number
        assert await status(stack, head(b"GET " + target + b"a=b&" * (QUERY_PARAMETERS - 1))) != number


async def test_metrics_are_told_in_the_format_that_is_wanted_most(stack: Stack) -> None:
    openmetrics, text = b"application/openmetrics-text", b"text/plain"
    wanted = {
        openmetrics + b";version=abc": openmetrics,
        openmetrics
        + b";version=1.0.0;escaping=underscores;q=0.5, text/plain;version=0.0.4;q=0.3, */*;q=0.1": openmetrics,
        text + b", " + openmetrics + b";q=0.5": text,
        b"*/*": text,
        b"": text,
        b"image/png": text,
    }
    for accept, expected in wanted.items():
        async with asyncio.timeout(20), raw(stack.api) as (reader, writer):
            writer.write(head(b"GET /metrics", b"Accept: " + accept))
            answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert b"content-type: " + expected in answer.lower(), accept
