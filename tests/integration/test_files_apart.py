"""What takes long holds up its own kind alone: digests, uploads and listings have threads of their own."""

import asyncio
import hashlib
import os
import threading
from base64 import b64encode
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic_core import from_json

from millstream_api.files import app, digests, unfinished
from millstream_api.files.uploads import Temporary
from tests.integration.conftest import Stack
from tests.integration.serving import files_here
from tests.integration.web import everything, raw, web
from tests.processes import Processes, open_files, until

CONTENT = b"0123456789"
WANT = {"Want-Repr-Digest": "sha-256=1"}
DIGEST = f"sha-256=:{b64encode(hashlib.sha256(CONTENT).digest()).decode()}:"
TUS = {"Tus-Resumable": "1.0.0", "Content-Type": "application/offset+octet-stream"}


async def get(http: httpx.AsyncClient) -> None:
    assert (await http.get("/files/f")).content == CONTENT


async def digest(http: httpx.AsyncClient) -> None:
    assert (await http.head("/files/f", headers=WANT)).headers["repr-digest"] == DIGEST


async def put(http: httpx.AsyncClient) -> None:
    assert (await http.put("/files/new", content=CONTENT)).status_code in (201, 204)


async def resumable(http: httpx.AsyncClient) -> None:
    told = {"Upload-Length": "10", "Upload-Metadata": f"path {b64encode(b'new').decode()}"}
    assert (await http.post("/uploads", headers={**TUS, **told}, content=CONTENT)).status_code == 201


async def listing(http: httpx.AsyncClient) -> None:
    assert [entry["path"] for entry in (await http.get("/files/", params={"prefix": "f"})).json()] == ["f"]


KINDS: dict[str, tuple[object, str, list[Callable[[httpx.AsyncClient], Coroutine[Any, Any, None]]]]] = {
    "digest": (digests, "_sha256", [digest]),
    "upload": (Temporary, "publish", [put, resumable]),
    "listing": (app, "_next_entries", [listing]),
}


@pytest.mark.parametrize("kind", KINDS)
async def test_work_of_one_kind_that_takes_long_holds_up_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    (tmp_path / "f").write_bytes(CONTENT)
    owner, name, own = KINDS[kind]
    begun, go, work = threading.Event(), threading.Event(), getattr(owner, name)

    def slow(*arguments: Any) -> Any:
        begun.set()
        assert go.wait(30)
        return work(*arguments)

    async with files_here(tmp_path, listings=50) as http:
        monkeypatch.setattr(owner, name, slow)
        held = [asyncio.create_task(own[0](http)) for _ in range(40)]  # more than asyncio has threads
        assert await asyncio.to_thread(begun.wait, 20)
        for other in (get, digest, put, resumable, listing):
            if other not in own:
                await other(http)
        assert not any(task.done() for task in held)
        go.set()
        await asyncio.gather(*held)


async def test_digests_that_clients_have_left_hold_up_nothing(
    stack: Stack, own_processes: Processes, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    api = await own_processes.api(stack.store, MILLSTREAM_DATA_DIR=str(data))
    big = data / "big"
    big.touch()
    os.truncate(big, 2**40)  # a digest of it takes a quarter of an hour

    async def begun() -> bool:
        return open_files(api, big) > 0

    async def freed() -> bool:
        return open_files(api, big) == 0

    for _ in range(12):
        async with raw(api) as (_, writer):
            writer.write(b"HEAD /files/big HTTP/1.1\r\nHost: x\r\nWant-Repr-Digest: sha-256=1\r\n\r\n")
            await until(begun, what="a digest to begin")
            writer.transport.abort()
    await until(freed, what="the digests to be given up")
    (data / "f").write_bytes(CONTENT)
    async with web(api) as http:
        await put(http)
        await digest(http)
    assert '"level": "error"' not in api.log.read_text()


async def test_a_file_that_grows_has_no_digest_and_is_sent_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, compute = tmp_path / "f", digests._sha256
    path.write_bytes(CONTENT)

    def growing(*arguments: Any) -> bytes | None:
        with path.open("ab") as file:
            file.write(b"more")
        return compute(*arguments)

    async with files_here(tmp_path) as http:
        with monkeypatch.context() as meanwhile:
            meanwhile.setattr(digests, "_sha256", growing)
            answer = await http.get("/files/f", headers=WANT)
        assert (answer.status_code, answer.content, "repr-digest" in answer.headers) == (200, CONTENT, False)
        answer = await http.get("/files/f", headers=WANT)
        expected = b64encode(hashlib.sha256(CONTENT + b"more").digest()).decode()
        assert (answer.content, answer.headers["repr-digest"]) == (CONTENT + b"more", f"sha-256=:{expected}:")


async def test_the_event_loop_hashes_nothing_and_cuts_nothing_of_a_resumable_upload(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: dict[str, threading.Thread] = {}
    cut = os.ftruncate

    class Watched:
        def update(self, block: bytes) -> None:
            threads["hash"] = threading.current_thread()

        def digest(self) -> bytes:
            return b"other"

    def watched_cut(file: int, size: int) -> None:
        threads["cut"] = threading.current_thread()
        cut(file, size)

    told = {"Upload-Length": "10", "Upload-Metadata": f"path {b64encode(b'f').decode()}"}
    async with files_here(tmp_path) as http:
        monkeypatch.setattr(hashlib, "new", lambda name: Watched())
        monkeypatch.setattr(os, "ftruncate", watched_cut)
        wrong = {**TUS, **told, "Upload-Checksum": "sha256 AAAA"}
        assert (await http.post("/uploads", headers=wrong, content=CONTENT)).status_code == 460
        where = (await http.post("/uploads", headers={**TUS, **told})).headers["location"]
        wrong = {**TUS, "Upload-Offset": "0", "Upload-Checksum": "sha256 AAAA"}
        assert (await http.patch(where, headers=wrong, content=CONTENT)).status_code == 460
        assert (await http.head(where, headers=TUS)).headers["upload-offset"] == "0"
        assert (await http.delete(where, headers=TUS)).status_code == 204
    assert {name: thread.name.partition("_")[0] for name, thread in threads.items()} == {
        "hash": "upload", "cut": "upload",
    }  # fmt: skip
    assert everything(tmp_path) == []


async def test_a_creation_looks_at_no_other_upload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[object] = []

    def watched(text: bytes) -> Any:
        read.append(text)
        return from_json(text)

    monkeypatch.setattr(unfinished, "from_json", watched)
    told = {"Tus-Resumable": "1.0.0", "Upload-Length": "10", "Upload-Metadata": f"path {b64encode(b'f').decode()}"}
    async with files_here(tmp_path) as http:
        for _ in range(3):
            assert (await http.post("/uploads", headers=told)).status_code == 201
    assert read == []
