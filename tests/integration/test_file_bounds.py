"""However large a file, little of it is held in memory; and whatever is asked for, no file stays open."""

import asyncio
import gzip
import json
import os
import threading
from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Message

from millstream.apikeys import Keys
from millstream.confined_fs import ServedDirectory
from millstream_api.files import app
from millstream_api.files.app import Files
from millstream_api.files.sending import Traffic
from millstream_api.files.uploads import Uploads
from millstream_api.settings import ApiSettings
from tests.integration.serving import files_here

PIECE = bytes(256 * 1024)
PIECES = 24
MIB = 1024 * 1024
TUS = {"Tus-Resumable": "1.0.0", "Content-Type": "application/offset+octet-stream", "Upload-Offset": "0"}


def named(path: str) -> dict[str, str]:
    return {"Upload-Metadata": f"path {b64encode(path.encode()).decode()}"}


@pytest.mark.parametrize("way", ["put", "tus"])
async def test_an_upload_is_written_as_it_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    write, largest = os.write, 0

    def watched(file: int, block: memoryview) -> int:
        nonlocal largest
        largest = max(largest, len(block))
        return write(file, block)

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(PIECES):
            yield PIECE

    size = len(PIECE) * PIECES
    async with files_here(tmp_path) as http:
        monkeypatch.setattr(os, "write", watched)
        if way == "put":
            answer = await http.put("/files/f", content=pieces())
        else:
            told = {**TUS, "Upload-Length": str(size), **named("f")}
            answer = await http.post("/uploads", content=pieces(), headers=told)
    assert answer.status_code == 201
    assert (tmp_path / "f").stat().st_size == size
    assert 0 < largest <= 2 * MIB


async def pieces_sent(data: Path, path: str, query: bytes, seen: Callable[[list[bytes]], object]) -> list[bytes]:
    """The pieces in which a body is sent; `seen` is told of those that were, after each."""
    sent: list[bytes] = []
    settings, directory = ApiSettings(_env_file=None), ServedDirectory(data)
    files = Files(settings, Keys(None), directory, Uploads(settings, directory), Traffic(), asyncio.Event())

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Message) -> None:
        sent.append(message.get("body", b""))
        seen(sent)

    await files({"type": "http", "method": "GET", "path": path, "query_string": query, "headers": []}, receive, send)
    directory.close()
    return sent


async def test_a_large_file_is_followed_piece_by_piece(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(PIECE * PIECES)

    def remove(sent: list[bytes]) -> None:
        if sum(map(len, sent)) == len(PIECE) * PIECES:
            path.unlink(missing_ok=True)  # which ends it

    sent = await pieces_sent(tmp_path, "/files/log", b"follow=true", remove)
    assert b"".join(sent) == PIECE * PIECES
    assert max(map(len, sent)) <= MIB


async def test_a_long_listing_is_sent_piece_by_piece(tmp_path: Path) -> None:
    names = [f"{number:04}" for number in range(1_200)]
    for name in names:
        (tmp_path / name).touch()
    sent = await pieces_sent(tmp_path, "/files/", b"", lambda sent: None)
    assert [entry["path"] for entry in json.loads(b"".join(sent))] == names
    assert max(piece.count(b'"path"') for piece in sent) <= 500


LISTS = ["Accept-Encoding", "If-None-Match", "If-Match", "Range", "Want-Repr-Digest", "Repr-Digest", "Accept",
         "Upload-Metadata", "Cookie"]  # fmt: skip


@pytest.mark.parametrize("name", LISTS)
async def test_a_header_too_long_to_be_read_at_once_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "f").write_bytes(b"x")
    async with files_here(tmp_path, field_bytes=2000) as http:
        for headers in ([(name, "," * 2001)], [(name, ",")] * 700):
            for method, path in (("GET", "/files/f"), ("GET", "/files/"), ("PUT", "/files/f"), ("POST", "/uploads")):
                answer = await http.request(method, path, headers=headers)
                assert (answer.status_code, answer.json()["title"]) == (431, "Request Header Fields Too Large")
                assert answer.json()["detail"] == f"{name.lower()} has more than 2000 bytes (MILLSTREAM_FIELD_BYTES)."
        assert (await http.get("/files/f", headers={name: "," * 2000})).status_code in (200, 412)


async def test_a_query_too_long_to_be_read_at_once_is_refused(tmp_path: Path) -> None:
    async with files_here(tmp_path, field_bytes=2000) as http:
        for path in ("/files/f", "/files/", "/stream/file"):
            answer = await http.get(f"{path}?{'a=b&' * 500}c")
            assert (answer.status_code, answer.json()["title"]) == (414, "URI Too Long")
            assert answer.json()["detail"] == "The query has more than 2000 bytes (MILLSTREAM_FIELD_BYTES)."


async def test_uploads_at_the_same_time_are_as_many_as_may_be(tmp_path: Path) -> None:
    begun, go = asyncio.Event(), asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        begun.set()
        await go.wait()
        yield b"x"

    told = {"Tus-Resumable": "1.0.0", "Upload-Length": "1", **named("t")}
    async with files_here(tmp_path, uploads=1) as http:
        where, another = [(await http.post("/uploads", headers=told)).headers["location"] for _ in range(2)]
        ways: list[tuple[str, str, dict[str, str]]] = [
            ("PUT", "/files/f", {}), ("PATCH", another, TUS), ("POST", "/uploads", {**TUS, **told}),
        ]  # fmt: skip
        for method, path, headers in (ways[0], ("PATCH", where, TUS), ways[2]):
            begun.clear()
            go.clear()
            first = asyncio.create_task(http.request(method, path, headers=headers, content=slow()))
            await begun.wait()
            for also, other, more in ways:
                answer = await http.request(also, other, headers=more, content=b"x")
                assert (answer.status_code, answer.headers["retry-after"]) == (503, "1"), (also, answer.text)
                assert "1 uploads are open, the limit is 1." in answer.json()["detail"]
            go.set()
            assert (await first).status_code in (201, 204)
        assert (await http.put("/files/f", content=b"x")).status_code == 204


async def test_listings_at_the_same_time_are_as_many_as_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go, entries = asyncio.Event(), threading.Event(), app._next_entries
    loop = asyncio.get_running_loop()

    def slow(found: Any) -> list[bytes]:
        loop.call_soon_threadsafe(begun.set)
        assert go.wait(20)
        return entries(found)

    monkeypatch.setattr(app, "_next_entries", slow)
    async with files_here(tmp_path, listings=1) as http:
        for _ in range(2):
            begun.clear()
            go.clear()
            first = asyncio.create_task(http.get("/files/"))
            await begun.wait()
            answer = await http.get("/files/")
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
            assert "1 listings are open, the limit is 1." in answer.json()["detail"]
            go.set()
            assert (await first).json() == []


async def test_whatever_is_asked_for_no_file_stays_open(tmp_path: Path) -> None:
    for name in ("plain", "older.gz", "newer"):
        (tmp_path / name).write_bytes(b"0123456789")
    for name in ("older", "newer.gz"):
        (tmp_path / name).write_bytes(gzip.compress(b"0123456789"))
    os.utime(tmp_path / "older.gz", (0, 0))
    wrong = f"sha-256=:{b64encode(bytes(32)).decode()}:"
    asked: list[tuple[int, str, str, dict[str, Any]]] = [
        (200, "GET", "/files/plain", {}),
        (200, "HEAD", "/files/plain", {}),
        (200, "GET", "/files/older", {"headers": {"Accept-Encoding": "gzip, br"}}),
        (200, "GET", "/files/newer", {"headers": {"Accept-Encoding": "gzip, br"}}),
        (206, "GET", "/files/plain", {"headers": {"Range": "bytes=1-2,4-5"}}),
        (416, "GET", "/files/plain", {"headers": {"Range": "bytes=99-"}}),
        (304, "GET", "/files/plain", {"headers": {"If-None-Match": "*"}}),
        (412, "GET", "/files/plain", {"headers": {"If-Match": '"other"'}}),
        (200, "GET", "/files/plain", {"headers": {"Want-Repr-Digest": "sha-256=1"}}),
        (200, "HEAD", "/files/plain?follow=true", {}),
        (404, "GET", "/files/deep", {}),
        (200, "GET", "/files/?prefix=", {}),
        (201, "PUT", "/files/deep/er/f", {"content": b"1"}),
        (204, "PUT", "/files/deep/er/f", {"content": b"2"}),
        (412, "PUT", "/files/deep/er/f", {"content": b"3", "headers": {"If-None-Match": "*"}}),
        (400, "PUT", "/files/deep/er/f", {"content": b"3", "headers": {"Repr-Digest": wrong}}),
        (404, "PUT", "/files/deep", {"content": b"3"}),
        (404, "PUT", "/files/plain/f", {"content": b"3"}),
        (412, "DELETE", "/files/deep/er/f", {"headers": {"If-Match": '"other"'}}),
        (204, "DELETE", "/files/deep/er/f", {}),
        (404, "DELETE", "/files/deep/er/f", {}),
        (201, "POST", "/uploads", {"content": b"1", "headers": {**TUS, "Upload-Length": "1", **named("t")}}),
        (404, "POST", "/uploads", {"content": b"1", "headers": {**TUS, "Upload-Length": "1", **named("t/f")}}),
        (413, "POST", "/uploads", {"content": b"12", "headers": {**TUS, "Upload-Length": "1", **named("t")}}),
    ]  # fmt: skip
    async with files_here(tmp_path) as http:
        before = open_below(tmp_path)
        for status, method, path, options in asked:
            answer = await http.request(method, path, **options)
            assert (answer.status_code, open_below(tmp_path)) == (status, before), (method, path, options)


def open_below(path: Path) -> int:
    """How many files and directories from `path` on this process has open, removed ones too."""
    links = [os.readlink(entry) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()]  # noqa: PTH115
    return sum(link.startswith(str(path)) for link in links)
