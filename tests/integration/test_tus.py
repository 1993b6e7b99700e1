"""Resumable uploads at `/uploads`: the tus protocol 1.0.0, by hand and with its Python client."""

import asyncio
import hashlib
import io
import json
import os
import signal
import time
from base64 import b64encode
from collections.abc import AsyncIterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from tusclient.client import TusClient
from tusclient.exceptions import TusCommunicationError, TusUploadFailed

from millstream.apikeys import new_key, write_keys
from millstream.confined_fs import NotServed, ServedDirectory
from millstream_api.files.unfinished import UnfinishedUploads, Upload
from tests.integration.conftest import Stack
from tests.integration.serving import files_here
from tests.integration.web import raw, web
from tests.processes import Process, Processes, open_files, until

TUS = {"Tus-Resumable": "1.0.0"}
OFFSET = "application/offset+octet-stream"
CONTENT = os.urandom(3_000_000)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def api(stack: Stack, processes: Processes) -> AsyncIterator[Process]:
    api = await processes.api(stack.store, MILLSTREAM_DATA_DIR=str(stack.data), MILLSTREAM_UPLOAD_BYTES="5000000")
    yield api
    await api.kill()


def metadata(path: str) -> dict[str, str]:
    return {"Upload-Metadata": f"filename {b64encode(b'x').decode()},path {b64encode(path.encode()).decode()},empty"}


def more(offset: int, **headers: str) -> dict[str, str]:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    return {**TUS, "Upload-Offset": str(offset), "Content-Type": OFFSET, **given}


async def create(http: httpx.AsyncClient, path: str, length: int = len(CONTENT), **options: Any) -> str:
    """Create an upload; returns where it is."""
    created = await http.post("/uploads", headers={**TUS, "Upload-Length": str(length), **metadata(path)}, **options)
    assert (created.status_code, created.headers["upload-offset"]) == (201, "0"), created.text
    where: str = created.headers["location"]
    return where


async def offset(http: httpx.AsyncClient, where: str) -> int:
    answer = await http.head(where, headers=TUS)
    assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store")
    assert answer.headers["tus-resumable"] == "1.0.0"
    return int(answer.headers["upload-offset"])


def checksum(content: bytes, algorithm: str = "sha256") -> str:
    return f"{algorithm} {b64encode(hashlib.new(algorithm, content).digest()).decode()}"


async def test_an_upload_in_parts_is_there_when_it_is_complete_and_not_before(api: Process, home: Path) -> None:
    async with web(api) as http:
        where = await create(http, f"{home.name}/deep/talk.bin")
        for start in range(0, len(CONTENT), 1_000_000):
            assert await offset(http, where) == start
            assert (await http.get(f"/files/{home.name}/deep/talk.bin")).status_code == 404
            part = CONTENT[start : start + 1_000_000]
            sent = await http.patch(where, content=part, headers=more(start))
            assert (sent.status_code, sent.headers["upload-offset"]) == (204, str(start + len(part)))
        assert (await http.get(f"/files/{home.name}/deep/talk.bin")).content == CONTENT
        head = await http.head(where, headers=TUS)
        assert (head.headers["upload-offset"], head.headers["upload-length"]) == ("3000000", "3000000")
        named = b64encode(f"{home.name}/deep/talk.bin".encode()).decode()
        assert head.headers["upload-metadata"] == f"filename eA==,path {named},empty", "as it was given"
        again = await http.patch(where, content=b"x", headers=more(len(CONTENT)))
        assert again.status_code == 409
        nothing = {**more(len(CONTENT)), "Content-Type": "Application/Offset+Octet-Stream"}
        assert (await http.patch(where, headers=nothing)).status_code == 204, "it is there already"
        assert (await http.get(f"/files/{home.name}/deep/talk.bin")).content == CONTENT


@pytest.mark.parametrize("sent", [10_000, 1_500_000])
async def test_what_came_before_a_break_is_kept_and_the_rest_is_sent_later(
    api: Process, stack: Stack, home: Path, sent: int
) -> None:
    path = f"{home.name}.bin"
    async with web(api) as http, web(stack.api) as other:
        where = await create(http, path)
        _, writer = await asyncio.open_connection("127.0.0.1", int(api.url.rpartition(":")[2]))
        head = "".join(f"{name}: {value}\r\n" for name, value in more(0).items())
        writer.write(f"PATCH {where} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(CONTENT)}\r\n{head}\r\n".encode())
        writer.write(CONTENT[:sent])
        await writer.drain()

        async def begun() -> bool:  # without a request: it might take the lock before the one that is to have it
            return open_files(api, stack.data / ".uploads" / where.rpartition("/")[2]) == 1

        async def free() -> bool:
            return (await other.patch(where, content=b"", headers=more(sent))).status_code == 204

        await until(begun, what="the upload to be written to")
        writer.close()
        await until(free, what="all that came to be kept")
        assert await offset(other, where) == sent
        assert (await other.patch(where, content=CONTENT[sent:], headers=more(sent))).status_code == 204
        assert (await http.get(f"/files/{path}")).content == CONTENT


@pytest.mark.parametrize("algorithm", ["sha1", "sha256", "sha512"])
async def test_what_does_not_have_its_checksum_is_not_kept(api: Process, home: Path, algorithm: str) -> None:
    path = f"{home.name}.bin"
    async with web(api) as http:
        where = await create(http, path)
        good = checksum(CONTENT[:2_000_000], algorithm)
        bad = await http.patch(where, content=CONTENT[1:2_000_001], headers=more(0, Upload_Checksum=good))
        assert (bad.status_code, await offset(http, where)) == (460, 0)
        sent = await http.patch(where, content=CONTENT[:2_000_000], headers=more(0, Upload_Checksum=good))
        assert (sent.status_code, await offset(http, where)) == (204, 2_000_000)
        wrong = more(2_000_000, Upload_Checksum=checksum(b"", algorithm))
        assert (await http.patch(where, content=CONTENT[2_000_000:], headers=wrong)).status_code == 460
        assert (await http.get(f"/files/{path}")).status_code == 404, "not even when it would be complete"
        for odd in ("md5 AAAA", "sha256 ???", "sha256", ""):
            answer = await http.patch(where, content=b"x", headers=more(2_000_000, Upload_Checksum=odd))
            assert answer.status_code in (400, 460), odd
        assert await offset(http, where) == 2_000_000


async def test_what_breaks_before_its_checksum_can_be_checked_is_not_kept(
    api: Process, stack: Stack, home: Path
) -> None:
    async with web(api) as http:
        where = await create(http, f"{home.name}.bin")
        file = stack.data / ".uploads" / where.rpartition("/")[2]
        head = "".join(f"{name}: {value}\r\n" for name, value in more(0, Upload_Checksum=checksum(CONTENT)).items())
        async with raw(api) as (_, writer):
            writer.write(f"PATCH {where} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(CONTENT)}\r\n{head}\r\n".encode())
            writer.write(CONTENT[:2_000_000])

            async def begun() -> bool:
                return file.stat().st_size > 0

            await until(begun, what="a part to be written")

        async def free() -> bool:
            return open_files(api, file) == 0

        await until(free, what="the break to be noticed")
        assert await offset(http, where) == 0


async def test_a_wrong_offset_is_told_and_changes_nothing(api: Process, home: Path) -> None:
    async with web(api) as http:
        where = await create(http, f"{home.name}/f", 10)
        assert (await http.patch(where, content=b"01234", headers=more(0))).status_code == 204
        for at in (0, 4, 6, 10, 11):
            assert (await http.patch(where, content=b"x", headers=more(at))).status_code == 409
        for odd in ("-1", "x", "", "1e3", "٣"):
            headers = [(name.encode(), value.encode()) for name, value in {**more(0), "Upload-Offset": odd}.items()]
            assert (await http.patch(where, content=b"x", headers=headers)).status_code == 400, odd
        assert await offset(http, where) == 5


async def test_what_is_refused(api: Process, home: Path) -> None:
    async with web(api) as http:
        for headers in ({}, TUS):
            options = await http.options("/uploads", headers=headers)
            assert options.status_code == 204
            assert (options.headers["tus-version"], options.headers["tus-max-size"]) == ("1.0.0", "5000000")
            extensions = "creation,creation-with-upload,checksum,expiration,termination"
            assert options.headers["tus-extension"] == extensions
            assert options.headers["tus-checksum-algorithm"] == "sha1,sha256,sha512"
        good = {**TUS, "Upload-Length": "10", **metadata(f"{home.name}/f")}
        for status, changed in [
            (412, {"Tus-Resumable": "0.2.2"}),
            (413, {"Upload-Length": "5000001"}),
            (400, {"Upload-Length": "-1"}),
            (400, {"Upload-Length": "ten"}),
            (400, {"Upload-Length": ""}),
            (400, {"Upload-Metadata": ""}),
            (400, {"Upload-Metadata": "path ???"}),
            (400, {"Upload-Metadata": "path /w=="}),
            (400, {"Upload-Concat": "partial"}),
            (400, {"Upload-Concat": "final;/uploads/a /uploads/b", "Upload-Length": ""}),
            (400, {"Upload-Defer-Length": "1"}),
            *((400, metadata(path)) for path in ("../f", "/f", ".hidden", "a//b", "a/", "a\0", "", ".uploads/x")),
        ]:
            answer = await http.post("/uploads", headers={**good, **changed})
            assert (answer.status_code, answer.headers["tus-resumable"]) == (status, "1.0.0"), changed
            assert (answer.headers.get("tus-version") == "1.0.0") == (status == 412)
        where = (await http.post("/uploads", headers=good)).headers["location"]
        assert (await http.patch(where, content=b"x" * 11, headers=more(0))).status_code == 413
        assert (await http.patch(where, content=b"x", headers=more(0, Content_Type="text/plain"))).status_code == 415
        assert (await http.put(where, headers=TUS)).status_code == 405
        assert (await http.get(where, headers=TUS)).status_code == 405
        assert (await http.head(where)).status_code == 412
        for unknown in ("0" * 32, "../x", "%2e%2e", ".", where[9:] + ".json", where[9:].upper() + "x"):
            assert (await http.head(f"/uploads/{unknown}", headers=TUS)).status_code in (404, 412), unknown


async def test_an_upload_that_is_given_up_is_gone(api: Process, stack: Stack, home: Path) -> None:
    async with web(api) as http:
        where = await create(http, f"{home.name}/f")
        await http.patch(where, content=b"x", headers=more(0))
        assert (await http.delete(where, headers=TUS)).status_code == 204
        for method in ("HEAD", "PATCH", "DELETE"):
            answer = await http.request(method, where, headers=more(0))
            assert (answer.status_code, "upload-offset" in answer.headers) == (404, False)
        again = await create(http, f"{home.name}/f")
        over = await http.post(again, headers={**TUS, "X-HTTP-Method-Override": "DELETE"})
        assert (over.status_code, (await http.head(again, headers=TUS)).status_code) == (204, 404)
    assert not list((stack.data / ".uploads").glob(f"{where.rpartition('/')[2]}*"))


@pytest.mark.parametrize("content", [b"", b"hello"])
async def test_a_whole_upload_may_come_with_its_creation(api: Process, home: Path, content: bytes) -> None:
    path = f"{home.name}.bin"
    async with web(api) as http:
        headers = {**TUS, "Upload-Length": str(len(content)), **metadata(path), "Content-Type": OFFSET}
        created = await http.post("/uploads", content=content, headers=headers)
        assert (created.status_code, created.headers["upload-offset"]) == (201, str(len(content)))
        assert (await http.get(f"/files/{path}")).content == content


async def test_a_creation_that_fails_leaves_nothing_for_nobody_knows_where_it_was(
    api: Process, stack: Stack, home: Path
) -> None:
    def kept() -> list[Path]:
        return sorted((stack.data / ".uploads").iterdir())

    async with web(api) as http:
        await create(http, f"{home.name}/other", 10)
        before = kept()
        head = {**TUS, "Upload-Length": "5", **metadata(f"{home.name}/f"), "Content-Type": OFFSET}
        wrong = {**head, "Upload-Checksum": checksum(b"other")}
        for status, headers, content in ((460, wrong, b"hello"), (413, head, b"hello!")):
            answer = await http.post("/uploads", content=content, headers=headers)
            assert (answer.status_code, "location" in answer.headers, kept()) == (status, False, before)
    lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
    _, writer = await asyncio.open_connection("127.0.0.1", int(api.url.rpartition(":")[2]))
    writer.write(f"POST /uploads HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n{lines}\r\nhel".encode())

    async def begun() -> bool:
        return kept() != before

    async def gone() -> bool:
        return kept() == before

    await until(begun, what="the upload to begin")
    writer.close()
    await until(gone, what="what its client cannot know to be removed")


async def test_a_target_that_is_never_served_is_never_written(stack: Stack, api: Process, home: Path) -> None:
    outside = stack.data.parent / "outside-of-tus"
    outside.mkdir()
    home.mkdir()
    (home / "link").symlink_to(outside)
    (home / "directory").mkdir()
    (home / "file-link").symlink_to(outside / "new")
    async with web(api) as http:
        for name in ("link/x", "file-link", "directory"):
            where = await create(http, f"{home.name}/{name}", 1)
            assert (await http.patch(where, content=b"x", headers=more(0))).status_code == 404
    assert list(outside.iterdir()) == []
    assert (home / "file-link").is_symlink()


async def test_directories_are_made_again_when_others_remove_them_and_none_is_left_by_a_failure(
    api: Process, stack: Stack, home: Path
) -> None:
    async with web(api) as http, web(stack.api) as other:  # two processes on one directory

        async def come_and_go(client: httpx.AsyncClient, name: str) -> None:
            path = f"{home.name}/a/b/c/{name}"
            for _ in range(20):
                assert await create_whole(client, path) == 201
                assert (await client.delete(f"/files/{path}")).status_code == 204

        await asyncio.gather(*(come_and_go((http, other)[n % 2], str(n)) for n in range(6)))
        assert not home.exists()
        assert await create_whole(http, "/".join([home.name, *["x" * 200] * 30])) == 404  # more than a path may have
        assert not home.exists()


async def create_whole(http: httpx.AsyncClient, path: str) -> int:
    headers = {**TUS, "Upload-Length": "1", "Content-Type": OFFSET, **metadata(path)}
    return (await http.post("/uploads", content=b"x", headers=headers)).status_code


async def test_an_upload_survives_a_kill_of_the_server_and_ends_when_its_time_is_over(
    stack: Stack, own_processes: Processes, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    api = await own_processes.api(stack.store, MILLSTREAM_DATA_DIR=str(data), MILLSTREAM_UPLOAD_LIFE_S="600")
    async with web(api) as http:
        where = await create(http, "survives.bin")
        abandoned = await create(http, "abandoned.bin")
        await http.patch(where, content=CONTENT[:1_000_000], headers=more(0))
    await api.kill()
    await api.start()
    await own_processes.answers(api)
    async with web(api) as http:
        assert await offset(http, where) == 1_000_000
        assert (await http.patch(where, content=CONTENT[1_000_000:], headers=more(1_000_000))).status_code == 204
        assert (await http.get("/files/survives.bin")).content == CONTENT
        expires = parsedate_to_datetime((await http.head(abandoned, headers=TUS)).headers["upload-expires"])
        notes = data / ".uploads" / f"{abandoned.rpartition('/')[2]}.json"
        upload = json.loads(notes.read_text())
        assert upload["expires"] == int(expires.timestamp())
        notes.write_text(json.dumps({**upload, "expires": upload["expires"] - 601}))  # as if so long had passed
        for method in ("HEAD", "PATCH", "DELETE"):
            assert (await http.request(method, abandoned, headers=more(0))).status_code == 404
        await api.kill()
        await api.start()

        async def swept() -> bool:
            return not list(notes.parent.glob(f"{notes.stem}*"))

        await until(swept, what="what has expired to make room by itself")
    api.signal(signal.SIGTERM)
    await api.ended()


async def test_only_its_owner_sees_an_upload(stack: Stack, own_processes: Processes, tmp_path: Path) -> None:
    made = {name: new_key(name, ["files:write"], None) for name in ("ann", "bob")}
    also = new_key("ann", ["files:write"], None)
    reader = new_key("ann", ["files:read"], None)
    write_keys(tmp_path / "keys.json", [key for _, key in (*made.values(), also, reader)])
    settings = {"MILLSTREAM_API_KEYS_FILE": str(tmp_path / "keys.json"), "MILLSTREAM_DATA_DIR": str(tmp_path / "data")}
    api = await own_processes.api(stack.store, None, **settings)
    async with web(api, made["ann"][0]) as ann, web(api, made["bob"][0]) as bob:
        where = await create(ann, "f", 10)
        for method in ("HEAD", "PATCH", "DELETE"):
            answer = await bob.request(method, where, headers=more(0), content=b"x" if method == "PATCH" else None)
            assert answer.status_code == 404, "as if it were not there"
        assert await offset(ann, where) == 0
        async with web(api, also[0]) as same_owner:
            assert await offset(same_owner, where) == 0
        async with web(api, reader[0]) as lesser:
            assert (await lesser.head(where, headers=TUS)).status_code == 403
        async with web(api) as nobody:
            assert (await nobody.head(where, headers=TUS)).status_code == 401
            assert (await nobody.options("/uploads")).status_code == 204


async def test_the_python_client_of_tus_uploads_stops_and_resumes(api: Process, stack: Stack, home: Path) -> None:
    def upload() -> str:
        client = TusClient(f"{api.url}/uploads")
        told = {"path": f"{home.name}/talk.bin", "filename": "ünï.bin"}
        first = client.uploader(
            file_stream=io.BytesIO(CONTENT), chunk_size=700_000, metadata=told, upload_checksum=True
        )
        first.upload(stop_at=1_400_000)
        assert first.url is not None
        elsewhere = TusClient(f"{stack.api.url}/uploads")
        url = first.url.replace(api.url, stack.api.url)
        second = elsewhere.uploader(
            file_stream=io.BytesIO(CONTENT), chunk_size=1_000_000, url=url, upload_checksum=True
        )
        assert second.offset == 1_400_000
        second.upload()
        with pytest.raises(TusCommunicationError, match="413"):
            client.uploader(file_stream=io.BytesIO(bytes(5_000_001)), chunk_size=1_000_000, metadata=told).upload()
        first.offset = 0
        with pytest.raises(TusUploadFailed):
            first.upload_chunk()
        empty = client.uploader(file_stream=io.BytesIO(b""), metadata={"path": f"{home.name}/empty"})
        empty.upload()
        return url

    url = await asyncio.to_thread(upload)
    async with web(api) as http:
        assert (await http.get(f"/files/{home.name}/talk.bin")).content == CONTENT
        assert (await http.get(f"/files/{home.name}/empty")).content == b""
        assert await offset(http, url) == len(CONTENT)


@pytest.mark.parametrize("method", ["HEAD", "PATCH"])
@pytest.mark.parametrize("where_else", ["the same process", "another process"])
async def test_a_request_ends_an_earlier_one_whose_client_may_be_dead_and_keeps_what_came(
    api: Process, stack: Stack, home: Path, method: str, where_else: str
) -> None:
    async with web(api if where_else == "the same process" else stack.api) as http:
        where = await create(http, f"{home.name}.bin")
        file = stack.data / ".uploads" / where.rpartition("/")[2]
        async with raw(api) as (reader, writer):
            head = "".join(f"{name}: {value}\r\n" for name, value in more(0).items())
            writer.write(f"PATCH {where} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(CONTENT)}\r\n{head}\r\n".encode())
            writer.write(CONTENT[:1_500_000])
            await writer.drain()

            async def begun() -> bool:
                return file.stat().st_size > 0

            async def ended() -> bool:
                answers.append((await http.request(method, where, headers=more(0))).status_code)
                return answers[-1] != 423

            answers: list[int] = []
            await until(begun, what="a part to be written")
            await until(ended, what="the earlier request to end")
            assert (len(answers) == 1) == (where_else == "the same process"), "another process is told in a while"
            assert answers[-1] == (200 if method == "HEAD" else 409)
            assert b" 423 " in await reader.readline(), "the earlier one is told"
            at = await offset(http, where)
            assert 0 < at <= 1_500_000
            assert (await http.patch(where, content=CONTENT[at:], headers=more(at))).status_code == 204
        assert (await http.get(f"/files/{home.name}.bin")).content == CONTENT
    assert not list(file.parent.glob(f"{file.name}.wanted"))


async def killed_before_publishing(directory: Path, content: bytes, path: str, **of_part: Any) -> str:
    """What is on the disk when a process is killed after the last byte; returns where the upload is."""
    disk = UnfinishedUploads(ServedDirectory(directory), 600)
    upload = Upload(os.urandom(16).hex(), path, len(content), "", int(time.time()) + 600)
    disk.begin(upload)
    (directory / ".uploads" / upload.id).write_bytes(content)
    if of_part:
        disk.mark_unchecked(upload, of_part["unchecked_from"])
    return f"/uploads/{upload.id}"


@pytest.mark.parametrize("ask", ["HEAD", "PATCH"])
async def test_what_was_killed_after_its_last_byte_is_published_when_its_client_asks(tmp_path: Path, ask: str) -> None:
    async with files_here(tmp_path) as http:
        where = await killed_before_publishing(tmp_path, b"hello", "deep/f")
        answer = await http.request(ask, where, headers=more(5))
        assert (answer.status_code // 100, answer.headers["upload-offset"]) == (2, "5")
        assert (await http.get("/files/deep/f")).content == b"hello"


async def test_what_was_killed_after_its_last_byte_is_published_though_nobody_asks(
    stack: Stack, own_processes: Processes, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    await killed_before_publishing(data, b"hello", "f")
    api = await own_processes.api(stack.store, None, MILLSTREAM_DATA_DIR=str(data))
    async with web(api) as http:

        async def there() -> bool:
            return (await http.get("/files/f")).text == "hello"

        await until(there, what="the file")


async def test_a_part_whose_checksum_was_not_known_yet_does_not_count_after_a_kill(tmp_path: Path) -> None:
    async with files_here(tmp_path) as http:
        where = await killed_before_publishing(tmp_path, b"hello", "f", unchecked_from=2)
        assert await offset(http, where) == 2
        assert (await http.patch(where, content=b"y", headers=more(2))).status_code == 204
        assert (await http.patch(where, content=b"xx", headers=more(3, Upload_Checksum=checksum(b"xx")))).is_success
        assert (await http.get("/files/f")).content == b"heyxx"
        assert [path.suffix for path in (tmp_path / ".uploads").iterdir()] == [".json"]


async def test_the_length_of_a_file_that_is_gone_is_not_told(api: Process, home: Path) -> None:
    path = f"{home.name}.bin"
    async with web(api) as http:
        created = await http.post(
            "/uploads", content=b"x", headers={**TUS, "Upload-Length": "1", "Content-Type": OFFSET, **metadata(path)}
        )
        where = created.headers["location"]
        assert await offset(http, where) == 1
        assert (await http.delete(f"/files/{path}")).status_code == 204
        assert (await http.head(where, headers=TUS)).status_code == 404
        assert (await http.patch(where, headers=more(1))).status_code == 404


async def test_unfinished_uploads_of_one_owner_are_limited_in_number_and_bytes(tmp_path: Path) -> None:
    async def status(http: httpx.AsyncClient, length: int) -> int:
        headers = {**TUS, "Upload-Length": str(length), **metadata("f")}
        return (await http.post("/uploads", headers=headers)).status_code

    async with files_here(tmp_path, owner_uploads=3, owner_upload_bytes=100) as http:
        whole, _ = await create(http, "whole", 1), await create(http, "other", 1)
        assert [await status(http, length) for length in (99, 98, 1)] == [507, 201, 429]
        assert (await http.patch(whole, content=b"x", headers=more(0))).status_code == 204
        assert await status(http, 1) == 201, "one that is complete counts no more"
        assert await status(http, 1) == 429


async def test_unfinished_uploads_are_counted_again_after_a_restart_and_only_their_owners(tmp_path: Path) -> None:
    disk = UnfinishedUploads(ServedDirectory(tmp_path), 600)
    now = int(time.time())
    uploads = [Upload(os.urandom(16).hex(), "f", 10, owner, now + 600) for owner in ("ann", "ann", "bob")]
    expired, published, broken = (Upload(os.urandom(16).hex(), "f", 10, "ann", now + n) for n in (-1, 600, 600))
    for upload in (*uploads, expired, published, broken):
        disk.begin(upload)
    (tmp_path / ".uploads" / published.id).unlink()
    (tmp_path / ".uploads" / f"{broken.id}.json").write_text("{")
    assert disk.sweep() == {"ann": {uploads[0].id: 10, uploads[1].id: 10}, "bob": {uploads[2].id: 10}}
    left = {path.name for path in (tmp_path / ".uploads").iterdir()}
    assert not {name for name in left if name.startswith(expired.id)}
    assert f"{published.id}.json" in left, "it tells clients that ask again"
    for path in (tmp_path / ".uploads").iterdir():
        os.utime(path, (now - 601, now - 601))
    for _ in range(2):
        disk.sweep()
    left = {path.name for path in (tmp_path / ".uploads").iterdir()}
    assert not {name for name in left if name.startswith((published.id, broken.id))}
    with pytest.raises(NotServed):
        disk.load(broken.id, "ann")
