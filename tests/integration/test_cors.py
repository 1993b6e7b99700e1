"""Pages of other origins: over HTTP by CORS, where the settings list them; on the socket by the handshake's Origin."""

import json
from collections.abc import AsyncIterator

import httpx
import pytest
import pytest_asyncio
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus
from websockets.typing import Origin, Subprotocol

from tests.integration.conftest import Stack
from tests.integration.web import web
from tests.processes import Process, Processes

GOOD, ALSO, EVIL = "https://app.example", "http://localhost:3000", "https://evil.example"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def listing(
    stack: Stack, processes: Processes, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Process]:
    """An API that lists two origins."""
    files = str(tmp_path_factory.mktemp("files"))
    api = await processes.api(stack.store, MILLSTREAM_CORS_ORIGINS=f"{GOOD}, {ALSO}", MILLSTREAM_DATA_DIR=files)
    yield api
    await api.kill()


async def preflight(
    http: httpx.AsyncClient, origin: str, headers: str = "authorization,content-type"
) -> httpx.Response:
    return await http.options(
        "/jobs",
        headers={
            "Origin": origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": headers,
        },
    )  # fmt: skip


def allowed(answer: httpx.Response) -> str | None:
    found: str | None = answer.headers.get("access-control-allow-origin")
    return found


async def test_without_a_setting_no_other_origin_is_let_in(stack: Stack) -> None:
    async with web(stack.api) as http:
        answer = await preflight(http, GOOD)
        assert (answer.status_code, allowed(answer)) == (405, None)
        assert allowed(await http.get("/analyses", headers={"Origin": GOOD})) is None


@pytest.mark.parametrize("origin", [GOOD, ALSO])
async def test_a_page_of_a_listed_origin_may_call(listing: Process, origin: str) -> None:
    async with web(listing) as http:
        headers = "authorization,content-type,idempotency-key,last-event-id,prefer"
        answer = await preflight(http, origin, headers)
        assert (answer.status_code, allowed(answer)) == (200, origin)
        assert "Origin" in answer.headers["vary"]
        answer = await http.post(
            "/jobs", json={"analysis": "process", "params": {"text": "x"}}, headers={"Origin": origin}
        )
        assert (answer.status_code, allowed(answer)) == (202, origin)
        exposed = {name.strip().lower() for name in answer.headers["access-control-expose-headers"].split(",")}
        assert {"location", "link", "retry-after", "ratelimit", "preference-applied"} <= exposed
        assert "access-control-allow-credentials" not in answer.headers


async def test_a_page_of_a_listed_origin_can_read_errors_too(listing: Process) -> None:
    async with web(listing) as http:
        for path in ("/jobs/nobody", "/nothing"):
            answer = await http.get(path, headers={"Origin": GOOD})
            assert (answer.status_code, allowed(answer)) == (404, GOOD)


@pytest.mark.parametrize(
    "origin", [EVIL, "null", "https://app.example.evil.example", "http://app.example", GOOD + ":1"]
)
async def test_a_page_of_another_origin_may_not_read_answers(listing: Process, origin: str) -> None:
    async with web(listing) as http:
        answer = await preflight(http, origin)
        assert answer.status_code in (400, 403)
        assert allowed(answer) is None
        assert allowed(await http.get("/analyses", headers={"Origin": origin})) is None


@pytest.mark.parametrize("origin", [EVIL, GOOD, "null"])
async def test_a_forged_origin_opens_no_socket(stack: Stack, origin: str) -> None:
    for protocols in (None, [Subprotocol("millstream.v1")]):
        with pytest.raises(InvalidStatus) as caught:
            async with connect(stack.api.ws, origin=Origin(origin), subprotocols=protocols):
                pass
        response = caught.value.response
        assert response.status_code == 403
        assert response.headers["content-type"] == "application/problem+json"
        assert json.loads(response.body or b"")["type"] == "/problems/forbidden"


async def test_a_page_of_a_listed_origin_may_use_files(listing: Process) -> None:
    async with web(listing) as http:
        asked = {"Origin": GOOD, "Access-Control-Request-Method": "PUT"}
        answer = await http.options("/files/x", headers=asked)
        assert (answer.status_code, allowed(answer)) == (200, GOOD)
        assert allowed(await http.get("/files/missing", headers={"Origin": GOOD})) == GOOD
        for path, content in {"/files/cors/small": b"small", "/files/cors/large": b"large" * 100_000}.items():
            assert (await http.put(path, content=content)).status_code == 201
            answer = await http.get(path, headers={"Origin": GOOD})
            assert (answer.status_code, answer.content, allowed(answer)) == (200, content, GOOD)
            answer = await http.get(path, headers={"Origin": GOOD, "Range": "bytes=0-0,2-3"})
            assert (answer.status_code, allowed(answer)) == (206, GOOD)
            answer = await http.head(path, headers={"Origin": GOOD})
            assert (answer.headers["content-length"], allowed(answer)) == (str(len(content)), GOOD)
            answer = await http.get(path, headers={"Origin": GOOD, "If-None-Match": "*"})
            assert (answer.status_code, allowed(answer)) == (304, GOOD)


async def test_where_no_keys_are_set_up_any_authorization_is_let_pass(stack: Stack) -> None:
    async with web(stack.api) as http:
        answer = await http.get("/analyses", headers={"Authorization": "Basic eDp5"})
        assert answer.status_code == 200
