"""Zero-copy and its fall-back send the same bytes."""

import asyncio
import os
import random
import ssl
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from millstream.apikeys import Keys
from millstream.confined_fs import ServedDirectory
from millstream_api.files.app import Files
from millstream_api.files.sending import Traffic
from millstream_api.files.uploads import Uploads
from millstream_api.settings import ApiSettings
from millstream_api.wire.answering import ANSWER
from millstream_api.wire.answers import Answer, Span
from millstream_api.wire.http_connection import Limits
from millstream_api.wire.pagecache import cached, read_ahead
from tests.integration.serving import open_here, port, serving
from tests.processes import until

STALL_S = 0.5  # when a client that reads nothing is given up
CONTENT = random.Random(4).randbytes(5 * 1024 * 1024 + 11)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "big.bin").write_bytes(CONTENT)
    (tmp_path / "small.txt").write_bytes(CONTENT[:100])
    return tmp_path


class Seen:
    """An app between, which notes whether the server offered the extension, and on the server's loop what came first:
    a request's end, or that most of the time had passed in which its client must read something.
    """

    def __init__(self, data: Path, *, stall_s: float = 60) -> None:
        self.offered: set[bool] = set()
        self.order: list[str] = []
        self._stall_s = stall_s
        settings = ApiSettings(send_timeout_s=stall_s)
        directory = ServedDirectory(data)
        uploads = Uploads(settings, directory)
        self._files = Files(settings, Keys(None), directory, uploads, Traffic(), asyncio.Event())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            self.offered.add(ANSWER in scope.get("extensions", {}))
            asyncio.get_running_loop().call_later(0.9 * self._stall_s, self.order.append, "most of the time")
            await self._files(scope, receive, send)
            self.order.append("the end")


async def check(url: str) -> None:
    async with httpx.AsyncClient(base_url=url, verify=False, trust_env=False) as http:
        assert (await http.get("/files/big.bin")).content == CONTENT
        assert (await http.get("/files/small.txt")).content == CONTENT[:100]
        part = await http.get("/files/big.bin", headers={"Range": "bytes=100000-4000000"})
        assert (part.status_code, part.content) == (206, CONTENT[100000:4000001])
        several = await http.get("/files/big.bin", headers={"Range": "bytes=0-99999,200000-399999"})
        assert CONTENT[:100000] in several.content
        assert CONTENT[200000:400000] in several.content
        assert (await http.head("/files/big.bin")).headers["content-length"] == str(len(CONTENT))
        assert (await http.get("/files/small.txt")).content == CONTENT[:100], "the connection is in order"


async def ask(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A client that has read no more than the head of 60 MiB."""
    context = None
    if url.startswith("https"):
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    reader, writer = await asyncio.open_connection("127.0.0.1", port(url), ssl=context, limit=4096)
    writer.write(b"GET /files/large.bin HTTP/1.1\r\nHost: x\r\n\r\n")
    assert b"content-length: 62914560" in await reader.readuntil(b"\r\n\r\n")
    return reader, writer


async def leave_and_cut(url: str, data: Path) -> None:
    """A client that leaves frees its file, and one of a file that is cut short gets a short body."""
    path = data / "large.bin"
    path.write_bytes(bytes(60 * 1024 * 1024))
    _, leaving = await ask(url)
    assert open_here(path) > 0
    leaving.transport.abort()
    await until(lambda: freed(path), what="the file of a client that left to be closed")
    reader, writer = await ask(url)
    os.truncate(path, 20 * 1024 * 1024)
    got = 0
    with suppress(ConnectionError, ssl.SSLError):
        while received := await reader.read(1024 * 1024):
            got += len(received)
    assert got <= 20 * 1024 * 1024
    await until(lambda: freed(path), what="the file that was cut short to be closed")
    writer.transport.abort()


async def stall(url: str, data: Path, seen: Seen) -> None:
    """A client that reads nothing for STALL_S, and not before, frees its file."""
    path = data / "large.bin"
    path.write_bytes(bytes(60 * 1024 * 1024))
    _, stalling = await ask(url)
    await until(lambda: freed(path), what="the file of a client that reads nothing to be closed")
    assert seen.order == ["most of the time", "the end"]
    stalling.transport.abort()


async def freed(path: Path) -> bool:
    return open_here(path) == 0


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
@pytest.mark.parametrize("version", ["HTTP/1.1", "HTTP/1.1\r\nConnection: close", "HTTP/1.0"])
async def test_an_answer_in_one_message_reads_as_one_in_parts(data: Path, loop: str, version: str) -> None:
    answer = Answer(206, b'content-length: 200203\r\netag: "x"\r\n', (b"ab", Span(50, 200_000), b"c", Span(7, 200)))

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        with (data / "big.bin").open("rb") as file:
            if scope["path"] == "/one":
                sent: list[int] = []
                await send({"type": ANSWER, "answer": answer, "file": file.fileno(), "on_sent": sent.append})
                assert sum(sent) == 200_200
                return
        await send({"type": "http.response.start", "status": 206, "headers": answer.headers})
        body = b"ab" + CONTENT[50:200_050] + b"c" + CONTENT[7:207]
        await send({"type": "http.response.body", "body": body})

    async with serving(app, loop=loop, date_header=False) as url:
        seen = []
        for path in ("/two", "/one"):
            reader, writer = await asyncio.open_connection("127.0.0.1", port(url))
            keeps = version == "HTTP/1.1"
            writer.write(f"GET {path} {version}\r\nHost: x\r\n\r\n".encode() * (2 if keeps else 1))  # two: pipelined
            head = await reader.readuntil(b"\r\n\r\n")
            body = await reader.readexactly(200_203)
            rest = await (reader.readexactly(len(head) + len(body)) if keeps else reader.read())
            assert rest == (head + body if keeps else b"")
            seen.append(head + body)
            writer.close()
        assert seen[0] == seen[1]
        assert seen[0].startswith(b"HTTP/1.1 206 Partial Content\r\n")


async def test_an_answer_whose_file_is_shorter_by_now_ends_its_connection(
    data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = {"/small": Span(len(CONTENT) - 10, 20), "/large": Span(len(CONTENT) - 10, 200_000)}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        span = wanted[scope["path"]]
        answer = Answer(200, b"content-length: %d\r\n" % span.length, (span,))
        with (data / "big.bin").open("rb") as file:
            await send({"type": ANSWER, "answer": answer, "file": file.fileno(), "on_sent": lambda count: None})

    async with serving(app) as url:
        for path, span in wanted.items():
            reader, writer = await asyncio.open_connection("127.0.0.1", port(url))
            writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            got = b""
            with suppress(ConnectionError):
                while received := await asyncio.wait_for(reader.read(100_000), 5):
                    got += received
            assert len(got.partition(b"\r\n\r\n")[2]) < span.length
            writer.close()
    assert errors(caplog) == set()


async def test_an_answer_begun_before_goes_on_without_its_head(data: Path) -> None:
    answer = Answer(200, b"content-length: 100000\r\n", (Span(0, 100_000),))

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [*answer.headers, (b"x-of-middleware", b"1")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        with (data / "big.bin").open("rb") as file:
            await send({"type": ANSWER, "answer": answer, "file": file.fileno(), "on_sent": lambda count: None})

    async with (
        serving(app) as url,
        httpx.AsyncClient(base_url=url, trust_env=False) as http,
    ):
        for _ in range(2):
            got = await http.get("/")
            assert (got.headers["x-of-middleware"], got.content) == ("1", CONTENT[:100_000])


def errors(caplog: pytest.LogCaptureFixture) -> set[str]:
    return {record.getMessage() for record in caplog.records if record.levelname == "ERROR"}


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
async def test_plain_connections_are_zero_copy(data: Path, loop: str) -> None:
    seen, strict = Seen(data), Seen(data, stall_s=STALL_S)
    async with serving(seen, loop=loop) as url:
        await check(url)
        await leave_and_cut(url, data)
    async with serving(strict, Limits(stall_s=STALL_S), loop=loop) as url:
        await stall(url, data, strict)
    assert seen.offered == strict.offered == {True}


async def test_a_client_that_leaves_in_the_middle_is_no_error(data: Path, caplog: pytest.LogCaptureFixture) -> None:
    (data / "big.bin").write_bytes(bytes(60 * 1024 * 1024))
    seen = Seen(data)
    async with serving(seen) as url:
        reader, writer = await asyncio.open_connection("127.0.0.1", port(url), limit=4096)
        writer.write(b"GET /files/big.bin HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.abort()
        await until(lambda: freed(data / "big.bin"), what="the file to be closed")
    assert errors(caplog) == set()


async def test_tls_and_other_protocols_fall_back_to_blocks(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    making = await asyncio.create_subprocess_exec(
        "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost",
        "-keyout", str(tmp_path / "key.pem"), "-out", str(tmp_path / "cert.pem"), stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    assert await making.wait() == 0
    tls = {"ssl_certfile": str(tmp_path / "cert.pem"), "ssl_keyfile": str(tmp_path / "key.pem")}
    others: tuple[dict[str, Any], ...] = (tls, tls | {"loop": "asyncio"}, {"http": "h11"})
    for settings in others:
        seen, strict = Seen(data), Seen(data, stall_s=STALL_S)
        async with serving(seen, **settings) as url:
            await check(url)
            await leave_and_cut(url, data)
        async with serving(strict, Limits(stall_s=STALL_S), **settings) as url:
            await stall(url, data, strict)
        assert seen.offered == strict.offered == {False}
        # Another server closes, in words of its own, where it does not show its connection.
        told = {"ASGI callable returned without completing response."} if "http" in settings else set()
        assert errors(caplog) <= told


async def test_a_test_client_without_a_server_gets_the_same(data: Path) -> None:
    transport = httpx.ASGITransport(app=Seen(data))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        answer = await http.get("/files/big.bin", headers={"Range": "bytes=-1000000"})
    assert answer.content == CONTENT[-1000000:]


def test_what_is_not_in_the_page_cache_is_noticed_and_read_ahead(data: Path) -> None:
    with (data / "big.bin").open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if cached(file.fileno(), 0, len(CONTENT)):
            pytest.skip("this file system cannot let go of its cache")
        read_ahead(file.fileno(), 0, len(CONTENT))
        assert cached(file.fileno(), 0, len(CONTENT))
