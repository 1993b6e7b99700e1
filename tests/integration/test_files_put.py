"""Uploads: complete or not there at all."""

import asyncio
import hashlib
import os
from base64 import b64encode
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from tests.integration.conftest import Stack
from tests.integration.web import web
from tests.processes import Process, Processes, until

TUS = {"Tus-Resumable": "1.0.0"}
OFFSET = "application/offset+octet-stream"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def api(stack: Stack, processes: Processes) -> AsyncIterator[Process]:
    api = await processes.api(
        stack.store,
        MILLSTREAM_DATA_DIR=str(stack.data),
        MILLSTREAM_UPLOAD_BYTES="5000000",
        MILLSTREAM_UPLOAD_LIFE_S="3600",
    )
    yield api
    await api.kill()


@pytest.fixture
def home(stack: Stack, request: pytest.FixtureRequest) -> Path:
    name: str = request.node.name
    return stack.data / name.replace("[", "-").replace("]", "")


def everything(home: Path) -> list[str]:
    """All that is there, hidden files too."""
    return sorted(str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()) if home.exists() else []


async def test_a_put_creates_directories_and_files_and_replaces_them(api: Process, home: Path) -> None:
    async with web(api) as http:
        path = f"/files/{home.name}/a/b/c.bin"
        answer = await http.put(path, content=b"x" * 100_000)
        assert (answer.status_code, answer.headers["location"]) == (201, path)
        got = await http.get(path)
        assert (got.content, got.headers["etag"]) == (b"x" * 100_000, answer.headers["etag"])
        assert (await http.put(path, content=b"new")).status_code == 204
        assert (await http.get(path)).content == b"new"
        assert (await http.delete(path)).status_code == 204
        assert (await http.get(path)).status_code == (await http.delete(path)).status_code == 404
    assert everything(home) == []


async def test_conditions_on_writing(api: Process, home: Path) -> None:
    path = f"/files/{home.name}/f"
    async with web(api) as http:
        assert (await http.put(path, content=b"1", headers={"If-Match": "*"})).status_code == 412
        first = await http.put(path, content=b"1", headers={"If-None-Match": "*"})
        assert first.status_code == 201
        assert (await http.put(path, content=b"2", headers={"If-None-Match": "*"})).status_code == 412
        assert (await http.put(path, content=b"2", headers={"If-Match": '"other"'})).status_code == 412
        assert (await http.put(path, content=b"2", headers={"If-Match": first.headers["etag"]})).status_code == 204
        assert (await http.delete(path, headers={"If-Match": first.headers["etag"]})).status_code == 412
        assert (await http.get(path)).content == b"2"
    assert everything(home) == ["f"]


async def test_of_many_who_create_at_once_one_wins(api: Process, home: Path) -> None:
    async with web(api) as http:
        answers = await asyncio.gather(
            *(
                http.put(f"/files/{home.name}/f", content=b"%d" % n * 50_000, headers={"If-None-Match": "*"})
                for n in range(9)
            )
        )
        statuses = [answer.status_code for answer in answers]
        assert sorted(statuses) == [201] + [412] * 8
        content = (await http.get(f"/files/{home.name}/f")).content
    assert content == b"%d" % statuses.index(201) * 50_000
    assert everything(home) == ["f"]


async def test_digests_are_checked(api: Process, home: Path) -> None:
    good = b64encode(hashlib.sha256(b"content").digest()).decode()
    bad = b64encode(hashlib.sha256(b"other").digest()).decode()
    async with web(api) as http:
        for name in ("Repr-Digest", "Content-Digest"):
            answer = await http.put(f"/files/{home.name}/f", content=b"content", headers={name: f"sha-256=:{bad}:"})
            assert (answer.status_code, answer.json()["type"]) == (400, "/problems/invalid_request")
            assert everything(home) == []
        headers = {"Repr-Digest": f"sha-256=:{good}:"}
        assert (await http.put(f"/files/{home.name}/f", content=b"content", headers=headers)).status_code == 201


async def test_what_is_too_large_is_refused_announced_or_not(api: Process, home: Path) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(60):
            yield b"x" * 100_000

    async with web(api) as http:
        for content in (b"x" * 5_000_001, endless()):
            try:
                answer = await http.put(f"/files/{home.name}/f", content=content)
            except (httpx.WriteError, httpx.ReadError):
                continue  # the server had closed before it was all sent
            assert (answer.status_code, answer.json()["type"]) == (413, "/problems/payload_too_large")
    assert everything(home) == []


async def test_an_upload_that_breaks_leaves_nothing(api: Process, home: Path) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", int(api.url.rpartition(":")[2]))
    writer.write(f"PUT /files/{home.name}/f HTTP/1.1\r\nHost: x\r\nContent-Length: 4000000\r\n\r\n".encode())
    writer.write(b"x" * 2_000_000)
    await writer.drain()

    async def begun() -> bool:
        return bool(everything(home))

    async def gone() -> bool:
        return not everything(home)

    await until(begun, what="the upload to begin")
    writer.transport.abort()
    await until(gone, what="the broken upload to leave nothing")


async def test_a_full_disk_is_told_and_leaves_nothing(stack: Stack, own_processes: Processes, tmp_path: Path) -> None:
    data = tmp_path / "small-disk"
    data.mkdir()
    mounting = await asyncio.create_subprocess_exec("mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(data))
    if await mounting.wait():
        pytest.skip("only root can mount a small disk")
    try:
        api = await own_processes.api(stack.store, MILLSTREAM_DATA_DIR=str(data))
        async with web(api) as http:
            answer = await http.put("/files/f", content=b"x" * 3_000_000)
            assert (answer.status_code, answer.json()["title"]) == (507, "Insufficient Storage")
            assert everything(data) == []
            assert (await http.put("/files/f", content=b"x" * 1000)).status_code == 201
        await api.kill()
    finally:
        await (await asyncio.create_subprocess_exec("umount", "-l", str(data))).wait()


async def test_a_part_or_an_encoded_body_is_no_file(api: Process, home: Path) -> None:
    async with web(api) as http:
        path = f"/files/{home.name}/f"
        assert (await http.put(path, content=b"x", headers={"Content-Range": "bytes 0-0/2"})).status_code == 400
        assert (await http.put(path, content=b"x", headers={"Content-Encoding": "gzip"})).status_code == 415
        for never in ("/files/.hidden", "/files/a%00", "/files/a//b", "/files/a/.hidden/b"):
            assert (await http.put(never, content=b"x")).status_code == 404, never
    assert everything(home) == []


def metadata(path: str) -> str:
    return f"path {b64encode(path.encode()).decode()}"


async def test_a_resumable_upload_goes_on_where_it_broke_and_after_a_restart(
    stack: Stack, api: Process, home: Path
) -> None:
    content = os.urandom(3_000_000)
    path = f"{home.name}/talk.bin"
    async with web(api) as http:
        headers = {**TUS, "Upload-Length": str(len(content)), "Upload-Metadata": metadata(path)}
        created = await http.post("/uploads", headers=headers)
        assert (created.status_code, created.headers["upload-offset"]) == (201, "0")
        where = created.headers["location"]
        sent = await http.patch(
            where, content=content[:1_000_000], headers={**TUS, "Upload-Offset": "0", "Content-Type": OFFSET}
        )
        assert (sent.status_code, sent.headers["upload-offset"]) == (204, "1000000")
        wrong = await http.patch(where, content=b"x", headers={**TUS, "Upload-Offset": "5", "Content-Type": OFFSET})
        assert wrong.status_code == 409
    async with web(stack.api) as http:  # another process on the same directory
        at = (await http.head(where, headers=TUS)).headers
        assert (at["upload-offset"], at["upload-length"]) == ("1000000", "3000000")
        assert (await http.get(f"/files/{path}")).status_code == 404, "not there before it is complete"
        checksum = b64encode(hashlib.sha256(content[1_000_000:]).digest()).decode()
        headers = {**TUS, "Upload-Offset": "1000000", "Content-Type": OFFSET}
        bad = await http.patch(
            where, content=content[1_000_000:-1] + b"?", headers={**headers, "Upload-Checksum": f"sha256 {checksum}"}
        )
        assert bad.status_code == 460
        assert (await http.head(where, headers=TUS)).headers["upload-offset"] == "1000000", "what is wrong is not kept"
        good = await http.patch(
            where, content=content[1_000_000:], headers={**headers, "Upload-Checksum": f"sha256 {checksum}"}
        )
        assert (good.status_code, good.headers["upload-offset"]) == (204, "3000000")
        assert (await http.get(f"/files/{path}")).content == content


async def test_what_tus_refuses(api: Process, home: Path) -> None:
    async with web(api) as http:
        options = await http.options("/uploads")
        assert (options.status_code, options.headers["tus-version"], options.headers["tus-max-size"]) == (
            204,
            "1.0.0",
            "5000000",
        )
        good = {**TUS, "Upload-Length": "10", "Upload-Metadata": metadata(f"{home.name}/f")}
        for status, changed in {
            412: {"Tus-Resumable": "0.2.2"},
            413: {"Upload-Length": "5000001"},
            400: {"Upload-Metadata": metadata("../f")},
        }.items():
            answer = await http.post("/uploads", headers={**good, **changed})
            assert (answer.status_code, answer.headers["tus-resumable"]) == (status, "1.0.0")
        where = (await http.post("/uploads", headers=good)).headers["location"]
        more = {**TUS, "Upload-Offset": "0", "Content-Type": OFFSET}
        assert (await http.patch(where, content=b"x" * 11, headers=more)).status_code == 413
        assert (
            await http.patch(where, content=b"x", headers={**more, "Content-Type": "text/plain"})
        ).status_code == 415
        assert (await http.delete(where, headers=TUS)).status_code == 204
        assert (await http.head(where, headers=TUS)).status_code == 404
        assert (await http.head("/uploads/" + "0" * 32, headers=TUS)).status_code == 404


async def test_a_whole_upload_may_come_with_its_creation(api: Process, home: Path) -> None:
    async with web(api) as http:
        headers = {**TUS, "Upload-Length": "5", "Upload-Metadata": metadata(f"{home.name}/f"), "Content-Type": OFFSET}
        created = await http.post("/uploads", content=b"hello", headers=headers)
        assert (created.status_code, created.headers["upload-offset"]) == (201, "5")
        assert (await http.get(f"/files/{home.name}/f")).content == b"hello"


async def test_a_complete_upload_takes_no_more(api: Process, home: Path) -> None:
    async with web(api) as http:
        headers = {**TUS, "Upload-Length": "5", "Upload-Metadata": metadata(f"{home.name}/f"), "Content-Type": OFFSET}
        where = (await http.post("/uploads", content=b"hello", headers=headers)).headers["location"]
        for offset in ("0", "5"):  # as a client does that never got the answer to its last part
            more = {**TUS, "Upload-Offset": offset, "Content-Type": OFFSET}
            again = await http.patch(where, content=b"hello", headers=more)
            assert (again.status_code, again.headers["content-type"]) == (409, "application/problem+json")
        assert (await http.head(where, headers=TUS)).headers["upload-offset"] == "5"
        assert (await http.get(f"/files/{home.name}/f")).content == b"hello"


async def test_names_in_any_script_can_be_written(api: Process, home: Path) -> None:
    path = f"/files/{home.name}/日本 ü.txt"
    async with web(api) as http:
        created = await http.put(path, content=b"x")
        assert created.status_code == 201
        assert (await http.get(created.headers["location"])).content == b"x"
