"""Uploads: complete or not there at all."""

import asyncio
import hashlib
import os
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from tests.integration.conftest import Stack
from tests.integration.web import everything, raw, web
from tests.processes import Process, Processes, until


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def api(stack: Stack, processes: Processes) -> AsyncIterator[Process]:
    api = await processes.api(stack.store, MILLSTREAM_DATA_DIR=str(stack.data), MILLSTREAM_UPLOAD_BYTES="5000000")
    yield api
    await api.kill()


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
        weak = {"If-Match": f"W/{first.headers['etag']}"}
        assert (await http.put(path, content=b"2", headers=weak)).status_code == 412, "the comparison is a strong one"
        old = {"If-Unmodified-Since": "Sun, 06 Nov 1994 08:49:37 GMT"}
        assert (await http.put(path, content=b"2", headers=old)).status_code == 412
        assert (await http.put(path, content=b"2", headers={"If-Match": first.headers["etag"]})).status_code == 204
        assert (await http.delete(path, headers={"If-Match": first.headers["etag"]})).status_code == 412
        assert (await http.delete(path, headers={"If-None-Match": "*"})).status_code == 412
        assert (await http.delete(path, headers=old)).status_code == 412
        got = await http.get(path)
        assert got.content == b"2"
        assert everything(home) == ["f"]
        assert (await http.delete(path, headers={"If-Match": got.headers["etag"]})).status_code == 204
        assert (await http.delete(path, headers={"If-Match": "*"})).status_code == 404
    assert everything(home) == []


@pytest.mark.parametrize("place", ["below", "at the top"])
async def test_of_many_who_create_at_once_one_wins(stack: Stack, api: Process, home: Path, place: str) -> None:
    target = f"{home.name}/f" if place == "below" else f"{home.name}.f"
    async with web(api) as http, web(stack.api) as other:  # two processes on one directory
        for _ in range(5):
            answers = await asyncio.gather(
                *(
                    (http, other)[n % 2].put(
                        f"/files/{target}", content=b"%d" % n * 50_000, headers={"If-None-Match": "*"}
                    )
                    for n in range(10)
                )
            )
            statuses = [answer.status_code for answer in answers]
            assert sorted(statuses) == [201] + [412] * 9
            assert (await http.get(f"/files/{target}")).content == b"%d" % statuses.index(201) * 50_000
            assert (await http.delete(f"/files/{target}")).status_code == 204
    assert everything(home) == []


async def test_of_many_who_replace_the_state_they_saw_one_wins(api: Process, home: Path) -> None:
    path = f"/files/{home.name}/counter"
    async with web(api) as http:
        await http.put(path, content=b"0")

        async def count() -> None:
            """Add one, as often as it takes, as a client would that may not lose an update."""
            status = 412
            while status == 412:
                seen = await http.get(path)
                more = str(int(seen.content) + 1).encode()
                status = (await http.put(path, content=more, headers={"If-Match": seen.headers["etag"]})).status_code
            assert status == 204

        await asyncio.gather(*(count() for _ in range(12)))
        assert (await http.get(path)).content == b"12"
    assert everything(home) == ["counter"]


async def test_readers_see_the_old_or_the_new_and_never_a_mixture(api: Process, home: Path) -> None:
    path = f"/files/{home.name}/f"
    contents = [bytes([65 + n]) * (100_000 + 300_000 * n) for n in range(4)]
    done = asyncio.Event()

    async def read() -> int:
        seen = set()
        while not done.is_set():
            got = await http.get(path)
            assert got.content in contents
            assert got.headers["content-length"] == str(len(got.content))
            seen.add(got.content[:1])
        return len(seen)

    async with web(api) as http:
        await http.put(path, content=contents[0])
        reading = [asyncio.create_task(read()) for _ in range(3)]
        for n in range(24):
            assert (await http.put(path, content=contents[n % 4])).status_code == 204
        done.set()
        assert max(await asyncio.gather(*reading)) > 1
    assert everything(home) == ["f"]


async def test_digests_are_checked(api: Process, home: Path) -> None:
    good = b64encode(hashlib.sha256(b"content").digest()).decode()
    bad = b64encode(hashlib.sha256(b"other").digest()).decode()
    async with web(api) as http:
        for name in ("Repr-Digest", "Content-Digest"):
            answer = await http.put(f"/files/{home.name}/f", content=b"content", headers={name: f"sha-256=:{bad}:"})
            assert (answer.status_code, answer.json()["type"]) == (400, "/problems/invalid_request")
            assert everything(home) == []
        one_wrong = {"Repr-Digest": f"sha-256=:{bad}:", "Content-Digest": f"sha-256=:{good}:"}
        answer = await http.put(f"/files/{home.name}/f", content=b"content", headers=one_wrong)
        assert (answer.status_code, everything(home)) == (400, [])
        for wrong in (f"sha-256=:{bad}:, sha-512=:{good}:", f"sha-256=:{good}:, sha-512=:{good}:", "sha-256=:???:"):
            answer = await http.put(f"/files/{home.name}/f", content=b"content", headers={"Repr-Digest": wrong})
            assert (answer.status_code, everything(home)) == (400, [])
        strong = b64encode(hashlib.sha512(b"content").digest()).decode()
        both = {"Repr-Digest": f"unknown=:AAAA:, SHA-256=:{good}:;a=1, sha-512=:{strong}:"}
        assert (await http.put(f"/files/{home.name}/both", content=b"content", headers=both)).status_code == 201
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


@pytest.mark.parametrize("expect", ["", "Expect: 100-continue\r\n"], ids=["at-once", "asking"])
async def test_an_announced_body_over_the_limit_is_refused_before_it_is_sent(
    api: Process, home: Path, expect: str
) -> None:
    head = f"PUT /files/{home.name}/f HTTP/1.1\r\nHost: x\r\nContent-Length: 5000001\r\n{expect}\r\n"
    async with raw(api) as (reader, writer):
        writer.write(head.encode())
        answer = await reader.read()  # to its end: the connection is closed, because the body will not be read
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert everything(home) == []


async def test_a_client_that_expects_to_be_told_to_continue_is_told(api: Process, home: Path) -> None:
    head = f"PUT /files/{home.name}/f HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nExpect: 100-continue\r\n"
    async with raw(api) as (reader, writer):
        writer.write(f"{head}If-Match: *\r\n\r\n".encode())
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 412 "), "what is refused is not asked for"
    async with raw(api) as (reader, writer):
        writer.write(f"{head}\r\n".encode())
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
        writer.write(b"abc")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 201 ")
    assert (home / "f").read_bytes() == b"abc"


async def test_chunks_make_up_a_file_and_no_file_without_their_end(api: Process, home: Path) -> None:
    for name, end in (("whole", b"0\r\n\r\n"), ("broken", b""), ("nonsense", b"zz\r\n")):
        head = f"PUT /files/{home.name}/{name} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close"
        async with raw(api) as (reader, writer):
            writer.write(f"{head}\r\n\r\n5\r\nhello\r\n6\r\n world\r\n".encode() + end)
            if name == "broken":
                await until(lambda: holds(home, ".upload-"), what="the upload to begin")
                writer.transport.abort()
            else:
                answer = await reader.read()
                assert answer.startswith(b"HTTP/1.1 201 " if name == "whole" else b"HTTP/1.1 400 "), answer
    await until(lambda: holds_only(home, ["whole"]), what="the broken ones to leave nothing")
    assert (home / "whole").read_bytes() == b"hello world"


async def holds(home: Path, part: str) -> bool:
    return any(part in name for name in everything(home))


async def holds_only(home: Path, names: list[str]) -> bool:
    return everything(home) == names


async def test_a_refused_upload_leaves_its_connection_in_order(api: Process, home: Path) -> None:
    body = b"x" * 3_000_000
    head = f"PUT /files/{home.name}/f HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
    async with raw(api) as (reader, writer):
        for condition, status in (("If-Match: *", 412), ("If-None-Match: *", 201), ("If-None-Match: *", 412)):
            writer.write(f"{head}{condition}\r\n\r\n".encode() + body)
            answer = await reader.readuntil(b"\r\n\r\n")
            assert answer.startswith(f"HTTP/1.1 {status} ".encode())
            length = answer.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
            await reader.readexactly(int(length or 0))
    assert everything(home) == ["f"]


async def test_an_upload_that_breaks_leaves_nothing(api: Process, home: Path) -> None:
    async with raw(api) as (_, writer):
        writer.write(f"PUT /files/{home.name}/f HTTP/1.1\r\nHost: x\r\nContent-Length: 4000000\r\n\r\n".encode())
        writer.write(b"x" * 2_000_000)
        await writer.drain()
        await until(lambda: holds(home, ".upload-"), what="the upload to begin")
        writer.transport.abort()
    await until(lambda: holds_only(home, []), what="the broken upload to leave nothing")


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
            assert (await http.put("/files/f", content=b"y" * 3_000_000)).status_code == 507
            assert (await http.get("/files/f")).content == b"x" * 1000, "what was there is there still"
            assert everything(data) == ["f"]
        await api.kill()
    finally:
        await (await asyncio.create_subprocess_exec("umount", "-l", str(data))).wait()


async def test_a_part_or_an_encoded_body_is_no_file(api: Process, home: Path) -> None:
    async with web(api) as http:
        path = f"/files/{home.name}/f"
        assert (await http.put(path, content=b"x", headers={"Content-Range": "bytes 0-0/2"})).status_code == 400
        assert (await http.put(path, content=b"x", headers={"Content-Encoding": "gzip"})).status_code == 415
        assert (await http.put(path, content=b"x", headers={"Content-Encoding": "Identity"})).status_code == 201
        assert (await http.delete(path)).status_code == 204
        for never in ("/files/.hidden", "/files/a%00", "/files/a//b", "/files/a/.hidden/b"):
            assert (await http.put(never, content=b"x")).status_code == 404, never
    assert everything(home) == []


async def test_what_is_never_served_is_never_written_over_nor_removed(stack: Stack, api: Process, home: Path) -> None:
    outside = stack.data.parent / "outside-of-put"
    outside.mkdir(exist_ok=True)
    (outside / "secret").write_text("secret")
    (home / "directory").mkdir(parents=True)
    (home / "directory" / "kept").write_text("kept")
    (home / "file").write_text("kept")
    (home / "link").symlink_to(outside / "secret")
    (home / "dangling").symlink_to(outside / "new")
    (home / "linked").symlink_to(outside)
    os.mkfifo(home / "pipe")
    before = sorted(home.rglob("*"))
    async with web(api) as http:
        for name in ("directory", "link", "dangling", "linked", "linked/secret", "linked/new", "pipe", "file/below",
                     "linked/deep/new", "link/x", "directory/", "x" * 256, "a/" * 2000 + "a"):  # fmt: skip
            for condition in ({}, {"If-None-Match": "*"}):
                answer = await http.put(f"/files/{home.name}/{name}", content=b"x", headers=condition)
                assert answer.status_code == 404, (name, condition)
            assert (await http.delete(f"/files/{home.name}/{name}")).status_code == 404, name
    assert sorted(home.rglob("*")) == before
    assert [path.name for path in outside.iterdir()] == ["secret"]
    assert (outside / "secret").read_text() == "secret"
    assert (home / "file").read_text() == "kept"


async def test_names_in_any_script_can_be_written(api: Process, home: Path) -> None:
    path = f"/files/{home.name}/日本 ü.txt"
    async with web(api) as http:
        created = await http.put(path, content=b"x")
        assert created.status_code == 201
        assert (await http.get(created.headers["location"])).content == b"x"


async def test_what_a_killed_server_left_of_an_upload_is_removed_at_the_next_start(
    stack: Stack, own_processes: Processes, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    killed, living = [await own_processes.api(stack.store, MILLSTREAM_DATA_DIR=str(data)) for _ in range(2)]

    async def all_begun() -> bool:
        return len(everything(data)) == 4

    async def removed() -> bool:
        with suppress(FileNotFoundError):  # it is being removed
            kept = [path.name for path in data.iterdir() if path.is_dir()]
            return (len(everything(data)), kept) == (2, ["c"])  # and no empty directory
        return False

    async with raw(killed) as (_, one), raw(killed) as (_, two), raw(killed) as (_, young), raw(living) as (read, held):
        for writer, path in ((one, "a/b/one"), (two, "two"), (young, "c/young"), (held, "held")):
            writer.write(f"PUT /files/{path} HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n".encode())
        await until(all_begun, what="the uploads to begin")
        await killed.kill()
        for left in [*data.rglob(".upload-*")]:  # the living one may remove them as soon as they are old
            if left.parent.name != "c":
                os.utime(left, (left.stat().st_mtime - 61,) * 2)  # as if so long had passed
        await killed.start()
        await own_processes.answers(killed)
        await until(removed, what="what was left to be removed")
        held.write(b"held!")
        assert (await read.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 201 ")
    assert (data / "held").read_bytes() == b"held!"
    assert len(everything(data)) == 2, "a young file may belong to a process that has yet to lock it"
