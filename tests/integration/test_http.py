"""The small HTTP routes: `/async_route`, health, and what answers a wrong request."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import httpx
import pytest

from tests.integration.conftest import Stack
from tests.integration.web import raw


@pytest.fixture
async def http(stack: Stack) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=stack.api.url, timeout=20) as client:
        yield client


async def test_async_route_answers_the_tutorials_json(http: httpx.AsyncClient) -> None:
    response = await http.get("/async_route", params={"delay": 0})
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert response.content == '{"message":"协程路由响应"}'.encode()


async def test_async_route_waits_two_seconds_if_nothing_else_is_said(http: httpx.AsyncClient) -> None:
    described = (await http.get("/openapi.json")).json()["paths"]["/async_route"]["get"]["parameters"]
    assert [(item["name"], item["schema"]["default"]) for item in described] == [("delay", 2)]


async def test_fifty_waits_go_on_side_by_side_and_hold_up_nothing(stack: Stack, http: httpx.AsyncClient) -> None:
    request = b"GET /async_route?delay=60 HTTP/1.1\r\nHost: x\r\n\r\n"
    async with AsyncExitStack() as open_connections:
        waiting = []
        for _ in range(50):
            reader, writer = await open_connections.enter_async_context(raw(stack.api))
            writer.write(request)
            waiting.append(asyncio.create_task(reader.read(1)))
        assert (await http.get("/async_route", params={"delay": 0.1})).json() == {"message": "协程路由响应"}
        assert (await http.get("/healthz")).status_code == 200
        assert not any(task.done() for task in waiting)
        for task in waiting:
            task.cancel()


@pytest.mark.parametrize("delay", ["-1", "61", "nan", "inf", "1e999", "soon", ""])
async def test_a_delay_that_is_none_is_a_problem_that_points_at_it(http: httpx.AsyncClient, delay: str) -> None:
    response = await http.get("/async_route", params={"delay": delay})
    assert response.status_code == 422
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert (problem["type"], problem["status"], problem["instance"]) == (
        "/problems/invalid_params",
        422,
        "/async_route",
    )
    assert [error["pointer"] for error in problem["errors"]] == ["/delay"]


async def test_health_and_readiness(http: httpx.AsyncClient) -> None:
    assert (await http.get("/healthz")).json() == {"status": "ok"}
    ready = await http.get("/readyz")
    assert (ready.status_code, ready.json()) == (200, {"status": "ready"})


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nothing", 404), ("POST", "/healthz", 405)])
async def test_what_is_not_there_or_not_allowed_is_a_problem(
    http: httpx.AsyncClient, method: str, path: str, status: int
) -> None:
    response = await http.request(method, path)
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    assert (response.json()["status"], response.json()["instance"]) == (status, path)
