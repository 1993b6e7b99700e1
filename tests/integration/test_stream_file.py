"""`GET /stream/file`: the bytes of a file of the data directory, and of nothing else."""

import asyncio
import hashlib
import os
import random
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.integration.conftest import Stack
from tests.processes import START_S, open_files, until

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def data(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data directory: what may be asked for in it, and what must not be found."""
    data, elsewhere = stack.data, tmp_path_factory.mktemp("elsewhere")
    (data / "large_file.txt").write_bytes(random.Random(1).randbytes(5 * MIB + 12_345))
    (data / "small.txt").write_text("small\n")
    (data / "empty").touch()
    (data / "sub" / "deep").mkdir(parents=True)
    (data / "sub" / "deep" / "ünï 漢.json").write_text("{}")

    outside = data.parent / "outside.txt"
    for secret in (outside, elsewhere / "inside.txt", data / ".hidden", data / "sub" / ".hidden"):
        secret.write_text("secret")
    for directory in (data / ".git", data / "sub" / ".git"):
        directory.mkdir()
        (directory / "config").write_text("secret")
    links = {"link.txt": outside, "linked": elsewhere, "dangling": elsewhere / "nothing", "loop": data / "loop"}
    for name, target in links.items():
        (data / name).symlink_to(target)
    os.mkfifo(data / "pipe")
    with socket.socket(socket.AF_UNIX) as listening, open_directory(data) as at:
        listening.bind(f"/proc/self/fd/{at}/socket")  # the path itself may be too long for a socket
    return data


@contextmanager
def open_directory(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY)
    yield descriptor
    os.close(descriptor)


async def get(stack: Stack, target: str) -> tuple[int, dict[str, str], bytes]:
    """One request whose path is sent as it is: clients would tidy it up."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(stack.api.url.rpartition(":")[2]))
    try:
        writer.write(f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
        body = await reader.read()
    finally:
        writer.close()
        await writer.wait_closed()
    return int(head[0].split()[1]), headers, body


async def test_the_default_file_comes_byte_for_byte(stack: Stack, data: Path) -> None:
    status, headers, body = await get(stack, "/stream/file")
    expected = (data / "large_file.txt").read_bytes()
    assert (status, headers["content-length"], len(body)) == (200, str(len(expected)), len(expected))
    assert hashlib.sha256(body).digest() == hashlib.sha256(expected).digest()
    assert headers["content-type"].startswith("text/plain")
    assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("name", ["small.txt", "empty", "sub/deep/ünï 漢.json"])
async def test_a_named_file_comes_byte_for_byte(stack: Stack, data: Path, name: str) -> None:
    status, headers, body = await get(stack, f"/stream/file?path={quote(name)}")
    assert (status, body) == (200, (data / name).read_bytes())
    assert headers["content-length"] == str(len(body))


async def test_many_readers_get_the_same_bytes_side_by_side(stack: Stack, data: Path) -> None:
    answers = await asyncio.gather(*(get(stack, "/stream/file") for _ in range(10)))
    assert {hashlib.sha256(body).digest() for _, _, body in answers} == {
        hashlib.sha256((data / "large_file.txt").read_bytes()).digest()
    }


OUTSIDE = [
    "../outside.txt", "sub/../../outside.txt", "sub/../small.txt", "..", "%2e%2e/outside.txt", "%2e%2e%2foutside.txt",
    "..%2foutside.txt", "..%5coutside.txt", "%252e%252e%252foutside.txt", "sub%2f..%2f..%2foutside.txt", "/etc/passwd",
    "%2fetc%2fpasswd", "//etc/passwd", "{outside}", ".hidden", "sub/.hidden", ".git/config", "sub/.git/config", ".",
    "sub", "sub/", "sub/deep", "small.txt/", "/small.txt", "sub//deep/x", "./.hidden", "nothing.txt", "link.txt",
    "linked/inside.txt", "dangling", "loop", "pipe", "socket", "small.txt%00", "%00", "small.txt%00.png", "a" * 300,
    "a/" * 3000 + "b", "small.txt%0a",
]  # fmt: skip


@pytest.mark.parametrize("path", OUTSIDE, ids=lambda path: path[:30])
async def test_what_is_outside_hidden_linked_or_no_file_is_not_there(stack: Stack, data: Path, path: str) -> None:
    query = quote(path.replace("{outside}", str(data.parent / "outside.txt")), safe="/%.")
    async with asyncio.timeout(10):
        status, headers, body = await get(stack, f"/stream/file?path={query}")
    assert status == 404
    assert headers["content-type"] == "application/problem+json"
    assert b"secret" not in body


async def test_a_file_that_is_cut_short_while_it_is_sent_ends_in_an_error_and_not_in_padding(
    stack: Stack, data: Path
) -> None:
    path = data / "shrinks.bin"
    path.write_bytes(b"x" * (64 * MIB))
    reader, writer = await asyncio.open_connection("127.0.0.1", int(stack.api.url.rpartition(":")[2]), limit=64 * 1024)
    writer.write(b"GET /stream/file?path=shrinks.bin HTTP/1.1\r\nHost: x\r\n\r\n")
    head = await reader.readuntil(b"\r\n\r\n")
    assert f"content-length: {64 * MIB}".encode() in head.lower()
    os.truncate(path, 4096)
    async with asyncio.timeout(10):
        received = len(await reader.read(-1))
    assert received < 64 * MIB
    writer.close()
    path.unlink()


async def test_a_client_that_leaves_frees_its_file(stack: Stack, data: Path) -> None:
    path = data / "left.bin"
    path.write_bytes(b"x" * (64 * MIB))

    async def closed() -> bool:
        return open_files(stack.api, path) == 0

    reader, writer = await asyncio.open_connection("127.0.0.1", int(stack.api.url.rpartition(":")[2]), limit=64 * 1024)
    writer.write(b"GET /stream/file?path=left.bin HTTP/1.1\r\nHost: x\r\n\r\n")
    await reader.readuntil(b"\r\n\r\n")
    assert not await closed()
    writer.transport.abort()
    await until(closed, what="the file to be closed")
    path.unlink()


@pytest.mark.parametrize("tier", ["millstream_api", "millstream_worker"])
async def test_a_data_directory_that_is_none_is_told_at_the_start(tmp_path: Path, tier: str) -> None:
    (tmp_path / "file").touch()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", tier, env={**os.environ, "MILLSTREAM_DATA_DIR": str(tmp_path / "file")},
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(START_S):
        _, said = await process.communicate()
    expected = f"MILLSTREAM_DATA_DIR: {tmp_path / 'file'} cannot be used: File exists.\n"
    assert (process.returncode, said.decode()) == (2, expected)
