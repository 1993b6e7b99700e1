"""Validators of a file and conditions on them: RFC 9110 §8.8 and §13 end to end."""

import gzip
import hashlib
import os
import time
from base64 import b64encode
from email.utils import formatdate, parsedate_to_datetime
from pathlib import Path

import httpx

from tests.integration.conftest import Stack
from tests.integration.web import web


def one_file(home: Path) -> tuple[Path, str]:
    """A file that is not there yet, and its address."""
    home.mkdir()
    return home / "file", f"/files/{home.name}/file"


async def test_conditions_and_if_range(stack: Stack, home: Path) -> None:
    path, address = one_file(home)
    path.write_bytes(bytes(1000))
    os.utime(path, (1_700_000_000, 1_700_000_000))  # old enough for its Last-Modified to be the true one
    async with web(stack.api) as http:
        plain = await http.get(address)
        etag, date = plain.headers["etag"], plain.headers["last-modified"]

        async def status(**headers: str) -> int:
            given = {name.replace("_", "-"): value for name, value in headers.items()}
            return (await http.get(address, headers=given)).status_code

        assert await status(if_none_match=etag) == 304
        assert await status(if_none_match='"other"') == 200
        assert await status(if_modified_since=date) == 304
        assert await status(if_match='"other"') == 412
        assert await status(if_match=etag) == 200
        assert await status(range="bytes=0-0", if_range=etag) == 206
        assert await status(range="bytes=0-0", if_range='"other"') == 200
        assert await status(range="bytes=0-0", if_range=f"W/{etag}") == 200
        assert await status(range="bytes=5000-", if_range='"other"') == 200, "no 416 for a range that does not count"
        assert await status(range="bytes=5000-", if_none_match=etag) == 304
        assert await status(if_match="*") == 200
        assert await status(if_none_match="*") == 304
        assert await status(if_none_match=f'"other", W/{etag}') == 304
        assert await status(if_none_match='"other"', if_modified_since=date) == 200
        assert await status(if_match=etag, if_unmodified_since="Sun, 06 Nov 1994 08:49:37 GMT") == 200
        assert await status(if_unmodified_since="Sun, 06 Nov 1994 08:49:37 GMT") == 412
        assert await status(if_unmodified_since=date) == 200
        assert await status(if_modified_since="last week", if_unmodified_since="whenever") == 200
        os.utime(path, (1_000_000_000, 1_000_000_000))
        old = (await http.head(address)).headers["last-modified"]
        assert old == "Sun, 09 Sep 2001 01:46:40 GMT"
        assert await status(range="bytes=0-0", if_range=old) == 206
        assert await status(range="bytes=0-0", if_range=date) == 200
        assert await status(if_none_match=etag) == 200, "another time of change is another state"
        etag = (await http.head(address)).headers["etag"]
        not_modified = await http.get(address, headers={"If-None-Match": etag})
        assert (not_modified.content, not_modified.headers["etag"]) == (b"", etag)


async def test_what_last_modified_says_can_be_asked_for_at_once(stack: Stack, home: Path) -> None:
    """However new the file is; and it is never later than Date (RFC 9110 §8.8.2.1)."""
    path, address = one_file(home)
    async with web(stack.api) as http:

        async def get(**headers: str) -> httpx.Response:
            given = {name.replace("_", "-"): value for name, value in headers.items()}
            answer = await http.get(address, headers=given)
            if "last-modified" in answer.headers:
                told, date = (parsedate_to_datetime(answer.headers[name]) for name in ("last-modified", "date"))
                assert told <= date
            return answer

        began = time.time()
        while time.time() - began < 1.2:
            path.write_bytes(b"young")
            answer = await get()
            assert answer.headers["last-modified"] == formatdate(int(path.stat().st_mtime), usegmt=True)
        shown = answer.headers["last-modified"]
        assert (await get(If_Modified_Since=shown)).status_code == 304
        assert (await get(If_Unmodified_Since=shown)).status_code == 200
        assert (await http.put(address, content=b"new", headers={"If-Unmodified-Since": shown})).status_code == 204

        within = False  # the same second
        while not within:
            path.write_bytes(b"young")
            shown = (await get()).headers["last-modified"]
            status = (await get(If_Range=shown, Range="bytes=0-0")).status_code
            within = formatdate(time.time(), usegmt=True) == shown
        assert status == 200, "it may change in the same second"

        tomorrow = time.time() + 86_400
        os.utime(path, (tomorrow, tomorrow))
        answer = await get()
        true = formatdate(tomorrow, usegmt=True)
        assert (await get(If_Modified_Since=answer.headers["last-modified"])).status_code == 200
        assert (await get(If_Modified_Since=true)).status_code == 304
        assert (await get(If_Unmodified_Since=true)).status_code == 200


async def test_the_etag_changes_with_the_content_even_of_the_same_size_at_once(stack: Stack, home: Path) -> None:
    path, address = one_file(home)
    seen = set()
    async with web(stack.api) as http:
        for number in range(20):
            path.write_bytes(bytes([number]) * 100)
            answer = await http.get(address)
            assert answer.content == bytes([number]) * 100
            seen.add(answer.headers["etag"])
    assert len(seen) == 20


async def test_the_etag_and_the_digest_change_with_the_content_even_when_the_time_is_set_back(
    stack: Stack, home: Path
) -> None:
    path, address = one_file(home)
    path.write_bytes(b"one")
    os.utime(path, (1_000_000_000, 1_000_000_000))
    before = path.stat()
    async with web(stack.api) as http:
        first = await http.get(address, headers={"Want-Repr-Digest": "sha-256=1"})
        assert path.stat().st_ctime_ns == before.st_ctime_ns, "asking for a digest is no change"
        with path.open("r+b") as file:
            file.write(b"two")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        now = path.stat()
        assert (now.st_ino, now.st_size, now.st_mtime_ns) == (before.st_ino, before.st_size, before.st_mtime_ns)
        second = await http.get(address, headers={"Want-Repr-Digest": "sha-256=1"})
        digest = b64encode(hashlib.sha256(b"two").digest()).decode()
        assert (second.content, second.headers["repr-digest"]) == (b"two", f"sha-256=:{digest}:")
        assert second.headers["etag"] != first.headers["etag"]
        assert second.headers["last-modified"] == first.headers["last-modified"]
        listed = (await http.get(f"/files/?prefix={home.name}")).json()
        assert listed[0]["etag"] == second.headers["etag"]


async def test_who_has_seen_a_compressed_sibling_may_replace_the_file(stack: Stack, home: Path) -> None:
    path, address = one_file(home)
    path.write_bytes(b"[1]")
    path.with_name("file.gz").write_bytes(gzip.compress(b"[1]"))
    async with web(stack.api) as http:
        seen = await http.get(address, headers={"Accept-Encoding": "gzip"})
        assert (seen.headers["content-encoding"], seen.content) == ("gzip", b"[1]")
        packed = {"If-Match": seen.headers["etag"]}
        assert (await http.put(address, content=b"[2]", headers=packed)).status_code == 204
        assert (await http.put(address, content=b"[3]", headers=packed)).status_code == 412, "that is older by now"
        assert (await http.delete(address, headers=packed)).status_code == 412
        assert (await http.get(address, headers={"Accept-Encoding": "gzip"})).content == b"[2]"
        os.utime(path, (0, 0))
        none = {"If-None-Match": seen.headers["etag"]}
        assert (await http.put(address, content=b"[3]", headers=none)).status_code == 412
        assert (await http.delete(address, headers=packed)).status_code == 204
