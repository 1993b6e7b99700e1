"""Directories come and go with the files in them."""

import asyncio
from base64 import b64encode
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest_asyncio

from tests.integration.conftest import Stack
from tests.integration.web import everything, raw, web
from tests.processes import Process, Processes, until


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def api(stack: Stack, processes: Processes) -> AsyncIterator[Process]:
    api = await processes.api(stack.store, MILLSTREAM_DATA_DIR=str(stack.data))
    yield api
    await api.kill()


async def test_an_upload_that_fails_leaves_none_of_the_directories_that_it_made(api: Process, home: Path) -> None:
    (home / "there").mkdir(parents=True)
    wrong = {"Repr-Digest": f"sha-256=:{b64encode(bytes(32)).decode()}:"}
    async with web(api) as http:
        for path in ("new/deep/f", "there/new/f", "there/f"):
            assert (await http.put(f"/files/{home.name}/{path}", content=b"x", headers=wrong)).status_code == 400
        assert [str(path.relative_to(home)) for path in home.rglob("*")] == ["there"]
        long = "/".join(["x" * 200] * 30)  # more than a path may have
        assert (await http.put(f"/files/{home.name}/{long}", content=b"x")).status_code == 404
        assert [path.name for path in home.rglob("*")] == ["there"]
        assert (await http.put(f"/files/{home.name}/new", content=b"x")).status_code == 201, "nothing is in its way"


async def test_of_uploads_into_the_same_new_directory_that_all_break_nothing_is_left(api: Process, home: Path) -> None:
    async def all_begun() -> bool:
        return len(everything(home)) == 5

    async def gone() -> bool:
        return not home.exists()

    async with raw(api) as (_, a), raw(api) as (_, b), raw(api) as (_, c), raw(api) as (_, d), raw(api) as (_, e):
        for number, writer in enumerate((a, b, c, d, e)):
            head = f"PUT /files/{home.name}/deep/{number} HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n"
            writer.write(head.encode())
        await until(all_begun, what="the uploads to begin")
        for writer in (a, b, c, d, e):
            writer.transport.abort()
    await until(gone, what="the directories to be removed")


async def test_the_last_file_of_a_directory_takes_the_directory_with_it(api: Process, home: Path) -> None:
    async with web(api) as http:
        for name in ("a/b/c/f", "a/b/c/g", "a/h"):
            assert (await http.put(f"/files/{home.name}/{name}", content=b"x")).status_code == 201
        assert (await http.delete(f"/files/{home.name}/a/b/c/f")).status_code == 204
        assert everything(home) == ["a/b/c/g", "a/h"]
        assert (await http.delete(f"/files/{home.name}/a/b/c/g")).status_code == 204
        assert [path.name for path in (home / "a").iterdir()] == ["h"]
        assert (await http.put(f"/files/{home.name}/a/b", content=b"x")).status_code == 201, "nothing is in its way"
        for name in ("a/b", "a/h"):
            assert (await http.delete(f"/files/{home.name}/{name}")).status_code == 204
    assert not home.exists()
    assert home.parent.exists()


async def test_whoever_writes_into_a_directory_that_others_remove_makes_it_again(
    stack: Stack, api: Process, home: Path
) -> None:
    wrong = {"Repr-Digest": f"sha-256=:{b64encode(bytes(32)).decode()}:"}
    path = f"/files/{home.name}/a/b/c"
    async with web(api) as http, web(stack.api) as other:  # two processes on one directory

        async def come_and_go(client: httpx.AsyncClient, name: str) -> None:
            for _ in range(40):
                assert (await client.put(f"{path}/{name}", content=b"x", headers=wrong)).status_code == 400
                assert (await client.put(f"{path}/{name}", content=b"x")).status_code == 201
                assert (await client.delete(f"{path}/{name}")).status_code == 204

        await asyncio.gather(*(come_and_go((http, other)[n % 2], str(n)) for n in range(6)))
    assert everything(home) == []
