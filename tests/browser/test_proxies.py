"""Real proxies in front of an API, configured by the blocks of docs/how-to/behind-a-proxy.md: with a host name of its
own, and below a path that the proxy passes on or takes off.
"""

import asyncio
import json
import os
import re
import shutil
import signal
import ssl
import subprocess
from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, async_playwright
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus
from websockets.typing import Origin, Subprotocol

from millstream.store.embedded import free_port
from tests.browser.conftest import ANALYSES, CHROMIUM, FLAGS
from tests.integration.web import Sent, server_sent
from tests.mutants import ROOT
from tests.processes import Process, Processes, until

HOST, PREFIX = "millstream.example", "/millstream"
GUIDE = (ROOT / "docs/how-to/behind-a-proxy.md").read_text()
SLOW = {"analysis": "count", "params": {"to": 3, "pause_s": 0.3}}
NGINX = """
user {user}; daemon off; worker_processes 1; pid {home}/pid; error_log {home}/error.log; events {{}}
http {{
    access_log off;
    client_body_temp_path {home}/body; proxy_temp_path {home}/proxy; fastcgi_temp_path {home}/fastcgi;
    uwsgi_temp_path {home}/uwsgi; scgi_temp_path {home}/scgi;
    {block}
}}
"""
CADDY = "{{\n\tadmin off\n\tauto_https disable_redirects\n\tskip_install_trust\n}}\n{block}"


@dataclass(frozen=True)
class Program:
    """A proxy: its block of the page, what stands around it, its command, and the lines to replace below a path."""

    block: str
    around: str
    command: tuple[str, ...]
    kept: dict[str, str]
    taken_off: dict[str, str]


PROGRAMS = {
    "nginx": Program(
        "nginx", NGINX, ("nginx", "-p", "{home}", "-e", "{home}/error.log", "-c", "{file}"),
        {"location / {": "location /millstream/ {"},
        {"location / {": "location /millstream/ {", "proxy_pass http://millstream;": "proxy_pass http://millstream/;"},
    ),
    "caddy": Program(
        "caddyfile", CADDY, ("caddy", "run", "--config", "{file}", "--adapter", "caddyfile"),
        {"handle {": "handle /millstream/* {"},
        {"handle {": "handle_path /millstream/* {"},
    ),
    "haproxy": Program(
        "haproxy", "{block}", ("haproxy", "-db", "-f", "{file}"),
        {"default_backend millstream": "use_backend millstream if { path_beg /millstream/ }"},
        {
            "default_backend millstream": "use_backend millstream if { path_beg /millstream/ }",
            "option forwardfor": "option forwardfor\n    http-request replace-path /millstream(/.*) \\1",
        },
    ),
}  # fmt: skip
HOW: dict[str, tuple[str, Callable[[Program], dict[str, str]]]] = {
    "by name": ("", lambda _: {}),
    "path kept": (PREFIX, lambda program: program.kept),
    "path taken off": (PREFIX, lambda program: program.taken_off),
}


class Resolved(httpx.AsyncHTTPTransport):
    """Every name is an address of this machine."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        request.extensions = {**request.extensions, "sni_hostname": request.url.host}
        request.url = request.url.copy_with(host="127.0.0.1")
        return await super().handle_async_request(request)


@dataclass(frozen=True)
class Proxied:
    """An API as its clients reach it: `https://millstream.example:<port><prefix>`."""

    port: int
    prefix: str
    tls: ssl.SSLContext
    data: Path

    @property
    def origin(self) -> str:
        return f"https://{HOST}:{self.port}"

    @property
    def url(self) -> str:
        return self.origin + self.prefix

    def web(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=Resolved(verify=self.tls), base_url=self.origin, timeout=20, trust_env=False)

    def socket(self, **options: Any) -> connect:
        return connect(
            f"wss://{HOST}:{self.port}{self.prefix}/ws", host="127.0.0.1", port=self.port, ssl=self.tls, proxy=None,
            **options,
        )  # fmt: skip


def configuration(program: Program, replaced: dict[str, str]) -> str:
    """The block of the page, with lines replaced that the page says to replace."""
    (block,) = re.findall(rf"^```{program.block}\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
    for old, new in replaced.items():
        assert block.count(old) == 1, old
        for line in (old, *new.splitlines()):
            assert line.strip() in GUIDE
        block = block.replace(old, new)
    return str(block)


def certificate(home: Path) -> Path:
    made = subprocess.run(
        [
            "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", f"/CN={HOST}",
            "-addext", f"subjectAltName=DNS:{HOST}", "-keyout", "-", "-out", "-",
        ],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    (home / "tls.pem").write_text(made.stdout)
    return home / "tls.pem"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def processes(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Processes]:
    async with Processes(tmp_path_factory.mktemp("processes")) as processes:
        yield processes


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def store(processes: Processes) -> Process:
    store = await processes.store()
    await processes.worker(store, **ANALYSES)
    return store


@pytest_asyncio.fixture(
    scope="module", loop_scope="session", params=[(name, how) for name in PROGRAMS for how in HOW], ids=" ".join
)
async def proxied(
    request: pytest.FixtureRequest, processes: Processes, store: Process, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Proxied]:
    name, how = request.param
    program, (prefix, replaced) = PROGRAMS[name], HOW[how]
    if not shutil.which(program.command[0]):
        assert not os.environ.get("CI"), f"CI must have {name}"
        pytest.skip(f"there is no {name} here")
    home = tmp_path_factory.mktemp(name)
    (home / "data").mkdir()
    pem, port, file = certificate(home), free_port(), home / "configuration"
    api = await processes.api(
        store, None, MILLSTREAM_HOSTS=HOST, MILLSTREAM_ROOT_PATH=prefix, MILLSTREAM_DATA_DIR=str(home / "data")
    )
    block = configuration(program, replaced(program))
    here = {
        "127.0.0.1:8000": api.url.removeprefix("http://"),
        "/etc/ssl/millstream.pem": str(pem),
        "listen 443": f"listen {port}",
        "bind :443": f"bind :{port}",
        f"{HOST} {{": f"https://{HOST}:{port} {{",
    }
    for old, new in here.items():
        block = block.replace(old, new)
    file.write_text(program.around.format(block=block, home=home, user=os.environ.get("USER", "root")))
    command = [part.format(file=file, home=home) for part in program.command]
    proxy = Process(command, {"XDG_DATA_HOME": str(home), "XDG_CONFIG_HOME": str(home)}, home / "log")
    processes.started.append(proxy)
    await proxy.start()
    found = Proxied(port, prefix, ssl.create_default_context(cafile=str(pem)), home / "data")

    async def answering() -> bool:
        assert proxy.running is not None
        assert proxy.running.returncode is None, proxy.log.read_text()
        try:
            return (await http.get(f"{prefix}/readyz")).status_code == 200
        except httpx.HTTPError:
            return False

    async with found.web() as http:
        await until(answering, what=f"{name} to answer", within_s=30)
    yield found
    proxy.signal(signal.SIGTERM)  # nginx ends its own processes
    await proxy.ended()
    await api.kill()


async def test_a_job_over_a_socket(proxied: Proxied) -> None:
    async with proxied.socket(subprotocols=[Subprotocol("millstream.v1")]) as socket:
        call = {"jsonrpc": "2.0", "id": 1, "method": "job.submit", "params": SLOW}
        await socket.send(json.dumps(call))
        seen: list[str] = []
        async with asyncio.timeout(15):
            while not seen or seen[-1] != "succeeded":
                frame = json.loads(await socket.recv())
                seen.append(frame["params"]["type"] if "params" in frame else "accepted")
        assert seen == ["accepted", "started", "chunk", "chunk", "chunk", "succeeded"]


@pytest.mark.parametrize("accept", ["text/event-stream", "application/jsonl"])
async def test_a_stream_comes_live(proxied: Proxied, accept: str) -> None:
    """The job waits for a file that is only made when its first events have come."""
    gate = proxied.data / f"gate-{accept.replace('/', '-')}"
    body = {"analysis": "gated", "params": {"gate": str(gate)}}
    async with (
        proxied.web() as http,
        http.stream("POST", f"{proxied.prefix}/jobs", json=body, headers={"Accept": accept}) as answer,
    ):
        assert answer.headers["content-type"].startswith(accept)
        text = ""
        async with asyncio.timeout(15):
            async for piece in answer.aiter_text():
                text += piece
                if '"before"' in text:
                    gate.touch()
    if accept == "application/jsonl":
        types = [json.loads(line)["type"] for line in text.splitlines()]
    else:
        types = [sent.event for sent in server_sent(text) if isinstance(sent, Sent)]
    assert types == ["queued", "started", "chunk", "succeeded"]


async def test_the_api_learns_that_a_client_has_left_a_stream(proxied: Proxied) -> None:
    body = {"analysis": "gated", "params": {"gate": str(proxied.data / "never")}, "on_disconnect": "cancel"}
    async with proxied.web() as http:
        headers = {"Accept": "application/jsonl"}
        async with http.stream("POST", f"{proxied.prefix}/jobs", json=body, headers=headers) as answer:
            job = answer.headers["location"]
            await anext(answer.aiter_text())

        async def cancelled() -> bool:
            return bool((await http.get(job)).json()["status"] == "cancelled")

        await until(cancelled, what="the job to be cancelled")


async def test_files_go_up_and_down_in_whole_and_in_ranges(proxied: Proxied) -> None:
    content = os.urandom(20 * 2**20)
    async with proxied.web() as http:
        put = await http.put(f"{proxied.prefix}/files/large%20file.bin", content=content)
        assert (put.status_code, put.headers["location"]) == (201, f"{proxied.prefix}/files/large%20file.bin")
        assert (await http.get(put.headers["location"])).content == content
        part = await http.get(put.headers["location"], headers={"Range": "bytes=5000000-5000099"})
        assert (part.status_code, part.content) == (206, content[5000000:5000100])


@pytest.mark.parametrize("offer", ["websocket", "h2c", "foo"])
async def test_a_body_is_no_request_of_another_client(proxied: Proxied, offer: str) -> None:
    """A proxy that passes on `Upgrade` may take what follows for its next client's request."""
    (proxied.data / "victim").write_text("there")
    smuggled = f"DELETE {proxied.prefix}/files/victim HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()
    head = (
        f"PUT {proxied.prefix}/files/smuggled HTTP/1.1\r\nHost: {HOST}\r\nConnection: Upgrade, HTTP2-Settings\r\n"
        f"Upgrade: {offer}\r\nHTTP2-Settings: AAMAAABk\r\nSec-WebSocket-Version: 13\r\n"
        f"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nContent-Length: {len(smuggled)}\r\n\r\n"
    )
    for _ in range(3):
        reader, writer = await asyncio.open_connection("127.0.0.1", proxied.port, ssl=proxied.tls, server_hostname=HOST)
        writer.write(head.encode() + smuggled)
        status = int((await asyncio.wait_for(reader.readuntil(b"\r\n"), 10)).split(b" ")[1])
        assert status in (201, 204, 400)
        if status != 400:
            assert (proxied.data / "smuggled").read_bytes() == smuggled
        async with proxied.web() as http:
            for _ in range(5):  # the next clients of the proxy's connections
                answer = await http.get(f"{proxied.prefix}/files/victim")
                assert (answer.status_code, answer.text) == (200, "there")
        writer.transport.abort()


async def test_an_upload_is_not_held_back(proxied: Proxied) -> None:
    """The API sees the beginning of a body before its end has been sent."""
    begun = asyncio.Event()

    async def content() -> AsyncIterator[bytes]:
        yield bytes(2**20)
        await begun.wait()
        yield bytes(2**20)

    async with proxied.web() as http:
        putting = asyncio.create_task(http.put(f"{proxied.prefix}/files/slow/file.bin", content=content()))

        async def arriving() -> bool:
            return any(path.stat().st_size >= 2**19 for path in proxied.data.glob("slow/.*"))

        await until(arriving, what="the first half to arrive")
        begun.set()
        assert (await putting).status_code == 201


async def test_a_resumable_upload_follows_its_location(proxied: Proxied) -> None:
    tus = {"Tus-Resumable": "1.0.0"}
    path = b64encode(b"tus.txt").decode()
    about = tus | {"Upload-Length": "10", "Upload-Metadata": f"path {path}"}
    async with proxied.web() as http:
        begun = await http.post(f"{proxied.prefix}/uploads", headers=about)
        where = begun.headers["location"]
        assert (begun.status_code, where.startswith(f"{proxied.prefix}/uploads/")) == (201, True)
        for offset, part in ((0, b"01234"), (5, b"56789")):
            more = {"Upload-Offset": str(offset), "Content-Type": "application/offset+octet-stream"}
            assert (await http.patch(where, headers=tus | more, content=part)).status_code == 204
        assert (await http.get(f"{proxied.prefix}/files/tus.txt")).text == "0123456789"


@pytest.mark.parametrize("origin", ["https://evil.example", "http://millstream.example", "https://millstream.example"])
async def test_a_page_of_another_origin_opens_no_socket(proxied: Proxied, origin: str) -> None:
    with pytest.raises(InvalidStatus) as caught:
        async with proxied.socket(origin=Origin(origin)):
            pass
    assert caught.value.response.status_code == 403
    problem = json.loads(caught.value.response.body or b"")
    assert (problem["type"], problem["instance"]) == (f"{proxied.prefix}/problems/forbidden", f"{proxied.prefix}/ws")
    async with proxied.socket(origin=Origin(proxied.origin)) as socket:
        assert isinstance(socket, ClientConnection)


@pytest.fixture
async def page() -> AsyncIterator[Page]:
    """A page of a browser to which the host's name is this machine, and its certificate is good."""
    if not Path(CHROMIUM).exists():
        assert not os.environ.get("CI"), "CI must have Debian's chromium"
        pytest.skip("there is no /usr/bin/chromium here")
    flags = [*FLAGS, f"--host-resolver-rules=MAP {HOST} 127.0.0.1", "--ignore-certificate-errors"]
    async with async_playwright() as playwright:
        browser: Browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield await browser.new_page(ignore_https_errors=True)
        await browser.close()


async def test_the_docs_work_and_a_page_opens_a_socket_and_a_stream(proxied: Proxied, page: Page) -> None:
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("requestfailed", lambda request: wrong.append(request.url))
    await page.goto(f"{proxied.url}/docs")
    await page.click(".opblock-summary-path >> text=/healthz")
    await page.click("text=Try it out")
    await page.click("button.execute")
    await page.wait_for_selector(".live-responses-table")
    assert await page.inner_text(".request-url pre") == f"{proxied.url}/healthz"
    assert '"ok"' in await page.inner_text(".live-responses-table")
    told = await page.evaluate(
        """url => new Promise((resolve, reject) => {
            const socket = new WebSocket(url);
            socket.onopen = () => socket.send("from a page");
            socket.onmessage = event => { socket.close(); resolve(event.data); };
            socket.onerror = () => reject("refused");
        })""",
        f"{proxied.url}/ws?analysis=process".replace("https:", "wss:"),
    )
    assert told == "Processed data: from a page"
    async with proxied.web() as http:
        submitted = await http.post(f"{proxied.prefix}/jobs", json=SLOW)
    seen = await page.evaluate(
        """url => new Promise(resolve => {
            const source = new EventSource(url), seen = [];
            for (const type of ["queued", "started", "chunk", "succeeded"])
                source.addEventListener(type, event => {
                    seen.push(event.type);
                    if (type == "succeeded") { source.close(); resolve(seen); }
                });
        })""",
        f"{submitted.headers['location']}/events",
    )
    assert seen == ["queued", "started", "chunk", "chunk", "chunk", "succeeded"]
    assert wrong == []
