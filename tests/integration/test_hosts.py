"""A page whose name was made to resolve to this machine (DNS rebinding) reaches an API without keys, and gets 421."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from millstream.apikeys import new_key, write_keys
from tests.integration.conftest import Stack
from tests.integration.web import raw, web
from tests.processes import Process, Processes

ROUTES = [
    ("GET", "/jobs"), ("POST", "/jobs"), ("GET", "/jobs/x"), ("DELETE", "/jobs/x"), ("GET", "/jobs/x/events"),
    ("GET", "/jobs/x/result"), ("GET", "/analyses"), ("GET", "/analyses/process"), ("GET", "/workers"),
    ("GET", "/queues"), ("GET", "/streams"), ("GET", "/async_route"), ("GET", "/healthz"), ("GET", "/readyz"),
    ("GET", "/metrics"), ("GET", "/docs"), ("GET", "/docs/static/swagger-ui.css"), ("GET", "/openapi.json"),
    ("GET", "/asyncapi"), ("GET", "/asyncapi.json"), ("GET", "/problems"), ("GET", "/problems/queue_full"),
    ("GET", "/files/"), ("GET", "/files/x"), ("HEAD", "/files/x"), ("PUT", "/files/x"), ("DELETE", "/files/x"),
    ("GET", "/stream/file"), ("POST", "/uploads"), ("OPTIONS", "/uploads"), ("HEAD", f"/uploads/{'0' * 32}"),
    ("PATCH", f"/uploads/{'0' * 32}"), ("DELETE", f"/uploads/{'0' * 32}"), ("GET", "/nothing"), ("OPTIONS", "/jobs"),
]  # fmt: skip


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def bare(stack: Stack, processes: Processes, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Process]:
    """An API without keys and without a list of hosts; pages of one origin may call it."""
    files = str(tmp_path_factory.mktemp("files"))
    given = {"MILLSTREAM_HOSTS": "", "MILLSTREAM_CORS_ORIGINS": "https://app.example", "MILLSTREAM_DATA_DIR": files}
    api = await processes.api(stack.store, None, **given)
    yield api
    await api.kill()


async def handshake(api: Process, *hosts: str, path: str = "/ws") -> tuple[int, bytes]:
    """The status and the body that a handshake with these Host lines is answered with."""
    async with raw(api) as (reader, writer):
        lines = "".join(f"Host: {host}\r\n" for host in hosts)
        writer.write(
            f"GET {path} HTTP/1.1\r\n{lines}Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
        )
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        status = int(head.split()[1])
        return status, b"" if status == 101 else await reader.read(2000)


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_no_route_answers_for_the_name_of_another_site(bare: Process, method: str, path: str) -> None:
    async with web(bare) as http:
        headers = {"Host": "evil.example:8000", "Origin": "http://evil.example:8000"}
        answer = await http.request(method, path, headers=headers)
        assert (answer.status_code, answer.headers["content-type"]) == (421, "application/problem+json")
        if method != "HEAD":
            assert answer.json() == {
                "type": "about:blank",
                "title": "Misdirected Request",
                "status": 421,
                "detail": "This server does not answer for 'evil.example:8000', only for localhost and what "
                "MILLSTREAM_HOSTS lists.",
                "instance": path,
            }
        assert (await http.request(method, path)).status_code != 421


async def test_a_preflight_for_the_name_of_another_site_is_refused_even_for_a_listed_origin(bare: Process) -> None:
    async with web(bare) as http:
        asked = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
        assert (await http.options("/jobs", headers=asked)).status_code == 200
        assert (await http.options("/jobs", headers=asked | {"Host": "evil.example"})).status_code == 421


@pytest.mark.parametrize("path", ["/ws", "/nothing"])
async def test_no_handshake_is_accepted_for_the_name_of_another_site(bare: Process, path: str) -> None:
    port = bare.url.rpartition(":")[2]
    status, body = await handshake(bare, f"evil.example:{port}", path=path)
    assert status == 421
    assert b"MILLSTREAM_HOSTS" in body
    url = f"ws://evil.example:{port}{path}"
    with pytest.raises(InvalidStatus) as caught:
        async with connect(url, host="127.0.0.1", port=int(port), origin=f"http://evil.example:{port}", proxy=None):  # type: ignore[arg-type]
            pass
    assert json.loads(caught.value.response.body or b"")["status"] == 421


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:9", "[::1]:8000", "dev.localhost"])
async def test_this_machines_own_names_are_answered_on_every_transport(bare: Process, host: str) -> None:
    async with web(bare) as http:
        assert (await http.get("/jobs", headers={"Host": host})).status_code == 200
    assert (await handshake(bare, host))[0] == 101


async def test_one_good_host_beside_another_does_not_help(bare: Process) -> None:
    for hosts in (("localhost", "evil.example"), ("evil.example", "localhost")):
        assert (await handshake(bare, *hosts))[0] in (400, 421)


async def test_what_a_proxy_is_said_to_have_been_asked_for_is_not_believed(bare: Process) -> None:
    """A page may set these in requests to its own name, and a browser on this machine comes from a trusted address."""
    told = {"X-Forwarded-Host": "localhost", "Forwarded": "host=localhost", "X-Forwarded-Server": "localhost"}
    async with web(bare) as http:
        assert (await http.get("/jobs", headers={"Host": "evil.example", **told})).status_code == 421
        assert (await http.get("/jobs", headers={"X-Forwarded-Host": "evil.example"})).status_code == 200


async def test_a_client_of_http_1_0_needs_no_host(bare: Process) -> None:
    async with raw(bare) as (reader, writer):
        writer.write(b"GET /readyz HTTP/1.0\r\n\r\n")
        assert (await reader.readline()).split()[1] == b"200"


@pytest.mark.parametrize(
    ("settings", "answered", "refused"),
    [
        ({"MILLSTREAM_HOSTS": "a.example, *.b.example"}, ["a.example", "x.b.example:1", "localhost"], ["evil.example"]),
        ({"MILLSTREAM_INSECURE": "true"}, ["any.example", "api:8000", "localhost"], []),
        ({"MILLSTREAM_INSECURE": "true", "MILLSTREAM_HOSTS": "api"}, ["api:8000", "127.0.0.1"], ["evil.example"]),
        ({"MILLSTREAM_API_KEYS_FILE": "keys.json"}, ["any.example", "localhost"], []),
        ({"MILLSTREAM_API_KEYS_FILE": "keys.json", "MILLSTREAM_HOSTS": "api"}, ["api", "[::1]"], ["evil.example"]),
    ],
)
async def test_settings_say_which_hosts_are_answered(
    own_processes: Processes, stack: Stack, tmp_path: Path, settings: dict[str, str], answered: list[str],
    refused: list[str],
) -> None:  # fmt: skip
    text, key = new_key("ann", ["read"], None)
    write_keys(tmp_path / "keys.json", [key])
    if "MILLSTREAM_API_KEYS_FILE" in settings:
        settings = settings | {"MILLSTREAM_API_KEYS_FILE": str(tmp_path / "keys.json")}
    api = await own_processes.api(stack.store, None, **{"MILLSTREAM_HOSTS": "", **settings})
    async with web(api, text) as http:
        for host in answered:
            assert (await http.get("/jobs", headers={"Host": host})).status_code == 200, host
            assert (await http.get("/files/none", headers={"Host": host})).status_code in (403, 404), host
        for host in refused:
            assert (await http.get("/jobs", headers={"Host": host})).status_code == 421, host
