"""Compressed siblings: sent whole to clients that take their coding. Ranges are always those of the file."""

import asyncio
import gzip
import hashlib
import os
import random
import subprocess
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path

import aiohttp
import httpx
import pytest
import requests

from tests.integration.conftest import Stack
from tests.integration.web import web

CONTENT = random.Random(2).randbytes(5000)


async def test_compressed_siblings_by_what_the_client_takes(stack: Stack, home: Path) -> None:
    home.mkdir()
    plain, packed = b"text " * 5000, gzip.compress(b"text " * 5000)
    (home / "t.txt").write_bytes(plain)
    (home / "t.txt.gz").write_bytes(packed)
    (home / "t.txt.br").write_bytes(b"brotli")
    for sibling in ("t.txt.gz", "t.txt.br"):
        later = (home / "t.txt").stat().st_mtime_ns + 1
        os.utime(home / sibling, ns=(later, later))
    async with web(stack.api) as http:

        async def get(accepted: str, **headers: str) -> httpx.Response:
            given = {"Accept-Encoding": accepted, **{name.replace("_", "-"): v for name, v in headers.items()}}
            request = http.build_request("GET", f"/files/{home.name}/t.txt", headers=given)
            answer = await http.send(request, stream=True)
            answer._content = b"".join([part async for part in answer.aiter_raw()])
            await answer.aclose()
            coded = "content-encoding" in answer.headers or answer.status_code == 304
            assert answer.headers["vary"] == ("Accept-Encoding, Range" if coded else "Accept-Encoding")
            assert answer.status_code == 304 or answer.headers["content-type"].startswith("text/plain")
            return answer

        answer = await get("gzip")
        assert (answer.headers["content-encoding"], answer._content) == ("gzip", packed)
        assert (await get("gzip;q=0.5, br"))._content == b"brotli"
        assert (await get("br;q=0, gzip"))._content == packed
        assert (await get("gzip;q=0, *"))._content == b"brotli"
        assert (await get("GZIP"))._content == packed
        assert (await get("gzip;q=0.5, identity"))._content == plain, "what is wanted most"
        assert (await get("gzip;q=0.5, identity;q=0.4"))._content == packed
        assert (await get("gzip;q=0, br;q=0"))._content == plain
        assert (await get("deflate"))._content == plain
        digest = b64encode(hashlib.sha256(packed).digest()).decode()
        assert (await get("gzip", Want_Repr_Digest="sha-256=1")).headers["repr-digest"] == f"sha-256=:{digest}:"
        unchanged = await get("gzip", If_None_Match=answer.headers["etag"])
        assert (unchanged.status_code, unchanged._content) == (304, b"")
        assert (await get("identity", If_None_Match=answer.headers["etag"])).status_code == 200
        assert (await get("identity"))._content == plain
        assert (await get("identity")).headers["etag"] != answer.headers["etag"]
        part = await get("gzip", Range="bytes=2-5")
        assert (part.status_code, part._content, part.headers["etag"]) == (
            206, plain[2:6], (await get("identity")).headers["etag"],
        )  # fmt: skip
        whole = await get("gzip", Range="bytes=2-5", If_Range=answer.headers["etag"])
        assert (whole.status_code, whole._content) == (200, plain), "the ETag of the sibling is not that of the file"
        os.utime(home / "t.txt")
        assert (await get("gzip"))._content == plain, "a sibling that is older is not the same any more"


def by_requests(url: str, headers: dict[str, str]) -> bytes:
    return requests.get(url, headers=headers, timeout=20).content


def by_httpx(url: str, headers: dict[str, str]) -> bytes:
    return httpx.get(url, headers=headers, trust_env=False).content


def by_aiohttp(url: str, headers: dict[str, str]) -> bytes:
    async def get() -> bytes:
        async with aiohttp.ClientSession() as session, session.get(url, headers=headers) as answer:
            return await answer.read()

    return asyncio.run(get())


def by_curl(url: str, headers: dict[str, str]) -> bytes:
    told = [part for name, value in headers.items() for part in ("-H", f"{name}: {value}")]
    command = ["curl", "-sf", "--noproxy", "*", "--compressed", *told, url]
    return subprocess.run(command, capture_output=True, check=True, timeout=20).stdout


@pytest.mark.parametrize("client", [by_requests, by_httpx, by_aiohttp, by_curl])
async def test_clients_that_take_gzip_get_a_file_range_by_range(
    stack: Stack, home: Path, client: Callable[[str, dict[str, str]], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    home.mkdir()
    (home / "parts.txt").write_bytes(CONTENT)
    (home / "parts.txt.gz").write_bytes(gzip.compress(CONTENT))
    url, found = f"{stack.api.url}/files/{home.name}/parts.txt", b""
    for start in range(0, 5000, 1000):
        found += await asyncio.to_thread(client, url, {"Range": f"bytes={start}-{start + 999}"})
    assert found == CONTENT
    assert await asyncio.to_thread(client, url, {}) == CONTENT


async def test_the_length_of_a_compressed_sibling_is_not_told_for_that_of_the_file(stack: Stack, home: Path) -> None:
    """Programs that fetch in parts ask HEAD for the length, and then for so many bytes."""
    home.mkdir()
    (home / "head.txt").write_bytes(b"text " * 5000)
    (home / "head.txt.gz").write_bytes(gzip.compress(b"text " * 5000))
    async with web(stack.api) as http:
        head = await http.head(f"/files/{home.name}/head.txt", headers={"Accept-Encoding": "gzip"})
        assert (head.headers["content-encoding"], "content-length" in head.headers) == ("gzip", False)
        whole = await http.get(f"/files/{home.name}/head.txt", headers={"Accept-Encoding": "gzip"})
        assert whole.headers["etag"] == head.headers["etag"]
        assert int(whole.headers["content-length"]) < 25_000
        for headers in ({"Accept-Encoding": "identity"}, {"Accept-Encoding": "gzip", "Range": "bytes=0-"}):
            assert (await http.head(f"/files/{home.name}/head.txt", headers=headers)).headers[
                "content-length"
            ] == "25000"
