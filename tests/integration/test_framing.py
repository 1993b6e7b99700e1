"""What a request is, and where it ends, on a running API: no bytes of one become another's, each is answered."""

import asyncio
import socket
from pathlib import Path

import httpx
import pytest

from millstream.apikeys import new_key, write_keys
from tests.integration.conftest import Stack
from tests.integration.web import raw, web
from tests.processes import Process, Processes, until

HANDSHAKE = (
    "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
H2C = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"


def request(method: str, path: str, *, headers: str = "", body: bytes = b"", chunked: bool = False) -> bytes:
    if chunked:
        headers += "Transfer-Encoding: chunked\r\n"
        body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    elif body:
        headers += f"Content-Length: {len(body)}\r\n"
    return f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n".encode() + body


async def said(api: Process, data: bytes) -> bytes:
    """All that a connection answers to these bytes and the end of what its client says."""
    async with raw(api) as (reader, writer):
        writer.write(data)
        writer.write_eof()
        return await reader.read()


def statuses(answers: bytes) -> list[int]:
    """Of all answers in a row, each of which says its length."""
    found, rest = [], answers
    while rest:
        head, _, rest = rest.partition(b"\r\n\r\n")
        found.append(int(head.split(b" ", 2)[1]))
        length = head.lower().partition(b"\r\ncontent-length: ")[2].partition(b"\r\n")[0]
        rest = rest[int(length or 0) :]
    return found


@pytest.mark.parametrize(
    "offer", [H2C, "Connection: Upgrade\r\n", "Connection: upgrade\r\nUpgrade: foo/2\r\n"], ids=["h2c", "none", "foo"]
)
@pytest.mark.parametrize("chunked", [False, True])
async def test_a_request_that_offers_an_upgrade_keeps_its_body(
    stack: Stack, home: Path, offer: str, chunked: bool
) -> None:
    home.mkdir(parents=True)
    (home / "victim").write_text("there")
    smuggled = request("DELETE", f"/files/{home.name}/victim")
    put = request("PUT", f"/files/{home.name}/f", headers=offer, body=smuggled, chunked=chunked)
    answers = await said(stack.api, put + request("GET", "/healthz"))
    assert statuses(answers) == [201, 200]
    assert (home / "f").read_bytes() == smuggled
    assert (home / "victim").read_text() == "there"


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (request("GET", "/ws", headers=HANDSHAKE, body=b"hello"), 400),
        (request("GET", "/ws", headers=HANDSHAKE, body=b"hello", chunked=True), 400),
        (request("POST", "/ws", headers=HANDSHAKE), 400),
        (request("PUT", "/files/f", headers=HANDSHAKE, body=b"hello"), 400),
        (request("GET", "/ws", headers=HANDSHAKE + f"Cookie: {'x' * 9000}\r\n"), 101),
        (request("GET", "/ws", headers=HANDSHAKE + "X: x\r\n" * 200), 101),
        (request("GET", "/ws?" + "x" * 9000, headers=HANDSHAKE), 101),
        (request("GET", "/ws", headers=HANDSHAKE + f"Cookie: {'x' * 70_000}\r\n"), 431),
        (request("GET", "/ws", headers=HANDSHAKE + "X: x\r\n" * 1000), 431),
        (request("GET", "/ws?" + "x" * 70_000, headers=HANDSHAKE), 431),
        (request("GET", "/ws", headers=HANDSHAKE.replace("13", "8")), 426),
        (request("GET", "/ws", headers=HANDSHAKE.replace("dGhl", "d")), 400),
        (request("GET", "/ws"), 426),
        (request("GET", "/other", headers=HANDSHAKE), 404),
    ],
)
async def test_a_handshake_is_always_answered(stack: Stack, head: bytes, status: int) -> None:
    async with raw(stack.api) as (reader, writer):
        writer.write(head)
        assert (await reader.readuntil(b"\r\n")).startswith(f"HTTP/1.1 {status} ".encode())


async def test_an_upgrade_waits_for_the_answers_before_it(stack: Stack) -> None:
    slow = request("GET", "/async_route?delay=0.2")
    async with raw(stack.api) as (reader, writer):
        writer.write(slow + request("GET", "/ws", headers=HANDSHAKE))
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        assert b" 101 " in (await reader.readuntil(b"\r\n\r\n")).partition(b"}")[2]


async def test_what_follows_a_handshake_at_once_is_read_as_frames_or_after_a_refusal_as_a_request(stack: Stack) -> None:
    async with raw(stack.api) as (reader, writer):
        writer.write(request("GET", "/ws", headers=HANDSHAKE) + b"\x81\x82\x00\x00\x00\x00hi")
        await reader.readuntil(b"\r\n\r\n")
        assert await reader.readexactly(2 + 18) == b"\x81\x12Processed data: hi"
    refused = request("GET", "/ws", headers=HANDSHAKE + "Sec-WebSocket-Protocol: chat\r\n")
    assert statuses(await said(stack.api, refused + request("GET", "/healthz"))) == [400, 200]


REFUSED = {
    "no Host": ("GET / HTTP/1.1\r\n\r\n", 400),
    "two Hosts": ("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400),
    "a Host that is none": ("GET / HTTP/1.1\r\nHost: a b/?#\r\n\r\n", 400),
    "gzip, chunked": ("PUT /files/f HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
    "chunks in HTTP/1.0": ("PUT /files/f HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "both lengths": (
        "PUT /files/f HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400
    ),
    "a chunk that is none": (
        "PUT /files/f HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n", 400
    ),
}  # fmt: skip


@pytest.mark.parametrize(("text", "status"), REFUSED.values(), ids=REFUSED)
async def test_what_two_servers_might_read_differently_is_refused_and_ends_the_connection(
    stack: Stack, text: str, status: int
) -> None:
    assert statuses(await said(stack.api, text.encode() + request("GET", "/healthz"))) == [status]


@pytest.mark.parametrize("cut", range(1, 16))
async def test_a_body_that_nobody_wants_may_be_cut_anywhere(stack: Stack, cut: int) -> None:
    """Its end comes later: until then there is nothing to do for it, and for others there is."""
    put = request("PUT", "/files/nobody", headers="If-Match: *\r\n", body=b"hello", chunked=True)
    async with raw(stack.api) as (reader, writer):
        writer.write(put[:-cut])
        assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 412 ")
        assert statuses(await said(stack.api, request("GET", "/healthz"))) == [200]
        writer.write(put[-cut:] + request("GET", "/healthz"))
        writer.write_eof()
        assert (await reader.read()).count(b"HTTP/1.1 200 ") == 1


async def test_who_sends_on_after_a_refusal_hears_the_answer(stack: Stack) -> None:
    async with raw(stack.api) as (reader, writer):
        writer.write(b"PUT /files/f HTTP/1.1\r\nContent-Length: 8000000\r\n\r\n")
        for _ in range(80):
            writer.write(bytes(100_000))
            await writer.drain()
        assert statuses(await reader.read()) == [400]


async def test_a_key_in_a_trailer_is_no_key(stack: Stack, own_processes: Processes, tmp_path: Path) -> None:
    key, kept = new_key("ann", ["submit", "read"], None)
    write_keys(tmp_path / "keys.json", [kept])
    secured = await own_processes.api(stack.store, MILLSTREAM_API_KEYS_FILE=str(tmp_path / "keys.json"))
    body = b'{"analysis":"process","params":{"text":"x"}}'
    head = (
        "POST /jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTrailer: Authorization\r\n"
        "Transfer-Encoding: chunked\r\n\r\n"
    )
    chunks = b"%x\r\n%b\r\n0\r\nAuthorization: Bearer %b\r\n\r\n" % (len(body), body, key.encode())
    assert statuses(await said(secured, head.encode() + chunks)) == [401]


# A client that has said everything may go.


def say_and_close(api: Process, data: bytes) -> None:
    with socket.create_connection(("127.0.0.1", int(api.url.rpartition(":")[2]))) as client:
        client.sendall(data)


@pytest.mark.parametrize("size", [0, 10, 60_000, 3_000_000])
@pytest.mark.parametrize("chunked", [False, True])
async def test_a_put_whose_client_closes_at_once_is_carried_out(
    stack: Stack, home: Path, size: int, chunked: bool
) -> None:
    body = b"x" * size
    put = [request("PUT", f"/files/{home.name}/{n}", body=body, chunked=chunked) for n in range(20)]
    if not body and not chunked:
        put = [data.replace(b"\r\n\r\n", b"\r\nContent-Length: 0\r\n\r\n") for data in put]
    for data in put:
        await asyncio.to_thread(say_and_close, stack.api, data)

    async def all_there() -> bool:
        return all((home / str(n)).is_file() and (home / str(n)).stat().st_size == size for n in range(20))

    await until(all_there, what="all files")


async def test_requests_of_a_pipeline_are_all_carried_out_when_their_client_closes(stack: Stack, home: Path) -> None:
    puts = b"".join(request("PUT", f"/files/{home.name}/{n}", body=b"%d" % n) for n in range(20))
    await asyncio.to_thread(say_and_close, stack.api, puts)

    async def all_there() -> bool:
        return all((home / str(n)).is_file() for n in range(20))

    await until(all_there, what="all files")


async def test_a_job_whose_client_closes_at_once_runs(stack: Stack) -> None:
    body = b'{"analysis":"process","params":{"text":"gone"},"key":"a-client-that-went"}'
    await asyncio.to_thread(
        say_and_close, stack.api, request("POST", "/jobs", headers="Content-Type: application/json\r\n", body=body)
    )
    async with web(stack.api) as http:

        async def ran() -> bool:
            jobs = (await http.get("/jobs", params={"analysis": "process", "status": "succeeded"})).json()
            found = [(await http.get(f"/jobs/{job['job']}")).json() for job in jobs]
            return any(job["result"] == "Processed data: gone" for job in found)

        await until(ran, what="the job to run")


async def test_a_resumable_upload_whose_client_closes_at_once_goes_on(stack: Stack) -> None:
    tus = {"Tus-Resumable": "1.0.0"}
    async with web(stack.api) as http:
        made = await http.post(
            "/uploads", headers=tus | {"Upload-Length": "10", "Upload-Metadata": "path dHVzLWdvbmU="}
        )
        location = httpx.URL(made.headers["location"]).path
        headers = "Tus-Resumable: 1.0.0\r\nUpload-Offset: 0\r\nContent-Type: application/offset+octet-stream\r\n"
        patch = request("PATCH", location, headers=headers, body=b"12345")
        await asyncio.to_thread(say_and_close, stack.api, patch)

        async def there() -> bool:
            found = await http.head(location, headers=tus)
            return bool(found.headers.get("upload-offset") == "5")

        await until(there, what="the bytes to arrive")


@pytest.mark.parametrize(
    "path",
    ["/healthz", "/files/{home}/f", "/async_route?delay=0.2", "/jobs", "/nowhere"],
    ids=["healthz", "file", "later", "jobs", "nothing"],
)
async def test_a_client_that_half_closes_is_answered(stack: Stack, home: Path, path: str) -> None:
    home.mkdir(parents=True)
    (home / "f").write_bytes(b"x" * 1_000_000)
    answers = await said(stack.api, request("GET", path.format(home=home.name)) * 2)
    assert statuses(answers) == [404 if path == "/nowhere" else 200] * 2


@pytest.mark.parametrize(
    "headers", ["Content-Length: 1000\r\n", "Transfer-Encoding: chunked\r\n"], ids=["length", "chunks"]
)
@pytest.mark.parametrize("how", ["half-close", "close"])
async def test_fewer_bytes_than_were_announced_are_no_body(stack: Stack, home: Path, headers: str, how: str) -> None:
    written = b"5\r\nhello\r\n" if "chunked" in headers else b"hello"
    data = request("PUT", f"/files/{home.name}/f", headers=headers) + written
    if how == "close":
        await asyncio.to_thread(say_and_close, stack.api, data)
    else:
        assert statuses(await said(stack.api, data)) == [400]
    assert statuses(await said(stack.api, request("GET", f"/files/{home.name}/f"))) == [404]
