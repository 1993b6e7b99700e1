"""Behind a proxy: an API below a path, which the proxy may take off; and who may say where a request comes from."""

import asyncio
import json
import re
from base64 import b64encode
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from fastapi import Request
from openapi_spec_validator import validate
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus
from websockets.typing import Origin, Subprotocol

from millstream_api.app import create_app, with_files
from millstream_api.settings import ApiSettings
from tests.integration.conftest import Stack
from tests.integration.serving import serving
from tests.integration.web import Json, web
from tests.processes import Process, Processes

PREFIX = "/on/millstream"
PROCESS = {"analysis": "process", "params": {"text": "x"}}
HOW = pytest.mark.parametrize("taken_off", [False, True], ids=["prefix kept", "prefix taken off"])


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def below(stack: Stack, processes: Processes, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Process]:
    """An API below PREFIX."""
    files = tmp_path_factory.mktemp("files")
    (files / "a b.txt").write_text("0123456789")
    given = {"MILLSTREAM_ROOT_PATH": PREFIX + "/", "MILLSTREAM_DATA_DIR": str(files), "MILLSTREAM_STREAMS": "1"}
    api = await processes.api(stack.store, None, **given)
    yield api
    await api.kill()


class Proxied:
    """What a client sees of an API behind a proxy: paths with the prefix, which may arrive without it."""

    def __init__(self, http: httpx.AsyncClient, taken_off: bool) -> None:
        self._http = http
        self._taken_off = taken_off

    async def __call__(self, method: str, path: str, **options: Any) -> httpx.Response:
        assert path.startswith(PREFIX), path
        return await self._http.request(method, path.removeprefix(PREFIX) if self._taken_off else path, **options)


@HOW
@pytest.mark.parametrize(
    ("method", "path", "slug"),
    [
        ("GET", "/jobs/none", "job_not_found"), ("GET", "/jobs?limit=x", "invalid_params"),
        ("POST", "/jobs", "invalid_request"), ("GET", "/analyses/none", "unknown_analysis"), ("GET", "/none", None),
        ("PUT", "/jobs", None), ("GET", "/jobs/", None), ("GET", "/files/none%20%C3%A9", None),
        ("POST", "/files/", None), ("GET", "/stream/file?path=none", None), ("POST", "/uploads", None),
        ("PATCH", "/uploads/none", None), ("PUT", "/files/f?", "invalid_request"),
    ],
)  # fmt: skip
async def test_problems_name_paths_as_the_client_sees_them(
    below: Process, taken_off: bool, method: str, path: str, slug: str | None
) -> None:
    async with web(below) as http:
        ask = Proxied(http, taken_off)
        headers = {"Tus-Resumable": "1.0.0", "Repr-Digest": "sha-256=:!:"}
        answer = await ask(method, PREFIX + path, headers=headers)
        document: Json = answer.json()
        assert document["instance"] == PREFIX + path.partition("?")[0]
        assert document["type"] == (f"{PREFIX}/problems/{slug}" if slug else "about:blank")
        assert answer.headers["content-type"] == "application/problem+json"
        assert int(answer.headers["content-length"]) == len(answer.content)
        if slug:
            assert (await ask("GET", document["type"])).status_code == 200
        head = await ask("HEAD", PREFIX + path, headers=headers)
        assert head.content == b""


@HOW
async def test_location_and_link_lead_to_where_they_say(below: Process, taken_off: bool) -> None:
    async with web(below) as http:
        ask = Proxied(http, taken_off)
        for _ in range(2):
            submitted = await ask("POST", f"{PREFIX}/jobs", json=PROCESS, headers={"Prefer": "wait=10"})
            assert submitted.status_code == 200
        job = submitted.headers["location"]
        assert (await ask("GET", job)).json()["result"] == "Processed data: x"
        page = await ask("GET", f"{PREFIX}/jobs?limit=1&analysis=process")
        found = re.fullmatch(r'<([^>]+)>; rel="next"', page.headers["link"])
        assert found
        assert (await ask("GET", found[1])).json()[0]["job"] != page.json()[0]["job"]
        name = f"{PREFIX}/files/taken%20off-{taken_off}.txt"
        put = await ask("PUT", name, content=b"hello")
        assert (put.status_code, put.headers["location"]) == (201, name)
        assert (await ask("GET", put.headers["location"])).text == "hello"
        tus = {"Tus-Resumable": "1.0.0"}
        path = b64encode(f"tus-{taken_off}.txt".encode()).decode()
        about = tus | {"Upload-Length": "5", "Upload-Metadata": f"path {path}"}
        begun = await ask("POST", f"{PREFIX}/uploads", headers=about)
        more = tus | {"Upload-Offset": "0", "Content-Type": "application/offset+octet-stream"}
        sent = await ask("PATCH", begun.headers["location"], headers=more, content=b"whole")
        assert (sent.status_code, sent.headers["upload-offset"]) == (204, "5")
        assert (await ask("GET", f"{PREFIX}/files/tus-{taken_off}.txt")).text == "whole"
        ranged = await ask("GET", f"{PREFIX}/files/a%20b.txt", headers={"Range": "bytes=2-4"})
        assert (ranged.status_code, ranged.text) == (206, "234")


@HOW
async def test_the_socket_and_its_errors_are_below_the_prefix(below: Process, taken_off: bool) -> None:
    url = below.ws if taken_off else below.ws.replace("/ws", f"{PREFIX}/ws")
    async with connect(url, subprotocols=[Subprotocol("millstream.v1")], proxy=None) as socket:
        for frame in ('{"jsonrpc":"2.0","id":1,"method":"job.get","params":{"job":"x"}}', b"binary"):
            await socket.send(frame)
            problem = json.loads(await asyncio.wait_for(socket.recv(), 10))["error"]["data"]
            assert problem["instance"] == f"{PREFIX}/ws"
            assert problem["type"] in (f"{PREFIX}/problems/job_not_found", f"{PREFIX}/problems/parse_error")
    with pytest.raises(InvalidStatus) as caught:
        async with connect(url, origin=Origin("https://evil.example"), proxy=None):
            pass
    document = json.loads(caught.value.response.body or b"")
    assert (document["type"], document["instance"]) == (f"{PREFIX}/problems/forbidden", f"{PREFIX}/ws")


@HOW
async def test_documents_and_pages_name_paths_as_the_client_sees_them(below: Process, taken_off: bool) -> None:
    async with web(below) as http:
        ask = Proxied(http, taken_off)
        openapi = (await ask("GET", f"{PREFIX}/openapi.json")).json()
        validate(openapi)
        assert openapi["servers"] == [{"url": PREFIX}]
        assert f"[{PREFIX}/asyncapi]({PREFIX}/asyncapi)" in openapi["info"]["description"]
        assert (await ask("GET", f"{PREFIX}/asyncapi.json")).json()["channels"]["socket"]["address"] == f"{PREFIX}/ws"
        for page in ("/docs", "/asyncapi", "/problems", "/problems/queue_full"):
            answer = await ask("GET", PREFIX + page)
            assert answer.status_code == 200
            links = re.findall(r"""(?:href|src)=["']?([^"'> ]+)|url: *["']([^"']+)""", answer.text)
            assert links
            for link in {first or second for first, second in links}:
                if not link.startswith("#"):
                    assert (await ask("GET", link)).status_code == 200, link


@pytest.mark.parametrize("path", ["/on/millstreams/healthz", "/on/healthz", f"{PREFIX}{PREFIX}/healthz", PREFIX])
async def test_another_path_is_not_found(below: Process, path: str) -> None:
    async with web(below) as http:
        assert (await http.get(path)).status_code == 404


# Whose word is taken for a client's address and scheme. The tests come from 127.0.0.1.

TOLD = {"X-Forwarded-Proto": "https", "X-Forwarded-For": "192.0.2.5, 10.1.2.3"}


@pytest.mark.parametrize(
    ("trusted", "scheme", "client"),
    [
        ("127.0.0.1,::1", "https", "10.1.2.3"), ("127.0.0.0/8", "https", "10.1.2.3"),
        ("10.0.0.0/8, 127.0.0.1", "https", "192.0.2.5"), ("10.0.0.0/8", "http", "127.0.0.1"),
        ("::1", "http", "127.0.0.1"), ("", "http", "127.0.0.1"),
    ],
)  # fmt: skip
async def test_forwarded_headers_are_believed_from_trusted_addresses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trusted: str, scheme: str, client: str
) -> None:
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")
    app = create_app(ApiSettings(trusted_proxies=trusted, data_dir=tmp_path))

    @app.get("/seen")
    async def seen(request: Request) -> list[str]:
        return [request.url.scheme, request.client.host if request.client else ""]

    async with (
        serving(with_files(app), proxy_headers=False) as url,
        httpx.AsyncClient(base_url=url, trust_env=False) as http,
    ):
        assert (await http.get("/seen", headers=TOLD)).json() == [scheme, client]
    app.state.directory.close()


@pytest.mark.parametrize(
    ("trusted", "told", "opens"),
    [
        ("127.0.0.1", {"X-Forwarded-Proto": "https"}, "https"),
        ("127.0.0.1", {"X-Forwarded-Proto": "wss"}, "https"),
        ("127.0.0.1", {"X-Forwarded-Proto": "nonsense"}, "http"),
        ("127.0.0.1", {"Forwarded": "proto=https"}, "http"),
        ("10.0.0.0/8", {"X-Forwarded-Proto": "https"}, "http"),
    ],
)
async def test_the_origin_of_a_page_is_compared_with_what_a_trusted_proxy_says(
    own_processes: Processes, stack: Stack, trusted: str, told: dict[str, str], opens: str
) -> None:
    given = {"MILLSTREAM_HOSTS": "a.example", "MILLSTREAM_TRUSTED_PROXIES": trusted}
    api = await own_processes.api(stack.store, None, **given)
    url, port = "ws://a.example:8443/ws", int(api.url.rpartition(":")[2])
    for scheme in ("http", "https"):
        asked = connect(
            url, host="127.0.0.1", port=port, origin=Origin(f"{scheme}://a.example:8443"), proxy=None,
            additional_headers=told,
        )  # fmt: skip
        if scheme == opens:
            async with asked as socket:
                await socket.send("x")
                assert await socket.recv() == "Processed data: x"
        else:
            with pytest.raises(InvalidStatus) as caught:
                async with asked:
                    pass
            assert caught.value.response.status_code == 403
