"""`GET` and `HEAD /files/…`: RFC 9110 end to end."""

import hashlib
import json
import os
import random
import socket
import stat
from base64 import b64encode
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest

from millstream.apikeys import Scope, new_key, write_keys
from tests.integration.conftest import Stack
from tests.integration.web import JSONL, NDJSON, raw, web
from tests.processes import Processes

MIB = 1024 * 1024
JSON = "application/json"
CONTENT = random.Random(2).randbytes(3 * MIB + 77)


@pytest.fixture(scope="module")
def home(stack: Stack) -> Path:
    home = stack.data / "get"
    home.mkdir()
    (home / "big.bin").write_bytes(CONTENT)
    (home / "small.txt").write_bytes(CONTENT[:1000])
    (home / "empty").touch()
    for path in home.iterdir():
        os.utime(path, (1_700_000_000, 1_700_000_000))  # old enough for their Last-Modified to be the true one
    (home.parent.parent / "outside.txt").write_text("secret")
    (home / ".hidden").write_text("secret")
    odd = home / "odd"
    (odd / ".dir").mkdir(parents=True)
    for name in (".hidden", ".dir/x"):
        (odd / name).write_text("secret")
    targets: dict[str, str | Path] = {
        "out": home.parent.parent / "outside.txt",
        "in": "../small.txt",
        "root": "/",
        "up": "..",
        "loop": "loop",
    }
    for name, target in targets.items():
        (odd / name).symlink_to(target)
    os.mkfifo(odd / "pipe")
    os.mknod(odd / "socket", stat.S_IFSOCK | 0o600)
    return home


def test_everything_of_a_file_and_what_is_said_of_it(stack: Stack, home: Path) -> None:
    with httpx.Client(base_url=stack.api.url, trust_env=False) as http:
        for name, content in {"big.bin": CONTENT, "small.txt": CONTENT[:1000], "empty": b""}.items():
            answer = http.get(f"/files/get/{name}")
            assert (answer.status_code, answer.content) == (200, content)
            assert answer.headers["content-length"] == str(len(content))
            assert answer.headers["accept-ranges"] == "bytes"
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["etag"].startswith('"')
            head = http.head(f"/files/get/{name}", headers={"Range": "bytes=0-0"})
            assert (head.status_code, head.content) == (200, b""), "a Range on HEAD does not count"
            names = ("etag", "last-modified", "content-type", "content-length", "content-disposition")
            assert [head.headers[n] for n in names] == [answer.headers[n] for n in names]


@pytest.mark.parametrize("name", ["big.bin", "small.txt"])
@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [("0-0", 0, 0), ("10-99", 10, 99), ("500-", 500, None), ("-7", -7, None), ("0-99999999", 0, None)],
)
async def test_one_range(stack: Stack, home: Path, name: str, asked: str, first: int, last: int | None) -> None:
    content = (home / name).read_bytes()
    async with web(stack.api) as http:
        answer = await http.get(f"/files/get/{name}", headers={"Range": f"bytes={asked}"})
    wanted = content[first:] if last is None else content[first : last + 1]
    assert (answer.status_code, answer.content) == (206, wanted)
    start = len(content) - 7 if first == -7 else first
    assert answer.headers["content-range"] == f"bytes {start}-{start + len(wanted) - 1}/{len(content)}"


@pytest.mark.parametrize(("asked", "status"), [("-5", 200), ("0-", 416), ("0-0", 416), ("-0", 416)])
async def test_ranges_of_an_empty_file(stack: Stack, home: Path, asked: str, status: int) -> None:
    async with web(stack.api) as http:
        answer = await http.get("/files/get/empty", headers={"Range": f"bytes={asked}"})
    assert answer.status_code == status
    assert answer.headers.get("content-range") == ("bytes */0" if status == 416 else None)


async def test_several_ranges_come_in_the_order_asked_for_without_those_that_cannot_be_had(
    stack: Stack, home: Path
) -> None:
    async with web(stack.api) as http:
        asked = "bytes=2000000-2100000,99999999-,5-9,-3"
        answer = await http.get("/files/get/big.bin", headers={"Range": asked})
    assert answer.status_code == 206
    kind, _, boundary = answer.headers["content-type"].partition("; boundary=")
    assert kind == "multipart/byteranges"
    assert answer.headers["content-length"] == str(len(answer.content))
    parts = answer.content.split(f"--{boundary}".encode())
    assert parts[0] == b""
    assert parts[-1] == b"--\r\n"
    size = len(CONTENT)
    for part, (start, end) in zip(parts[1:-1], [(2000000, 2100001), (5, 10), (size - 3, size)], strict=True):
        head, _, body = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        assert f"Content-Range: bytes {start}-{end - 1}/{size}".encode() in head
        assert body.removesuffix(b"\r\n") == CONTENT[start:end]


async def test_ranges_that_cannot_be_had_are_416_and_strange_ones_are_ignored(stack: Stack, home: Path) -> None:
    async with web(stack.api) as http:
        answer = await http.get("/files/get/small.txt", headers={"Range": "bytes=1000-"})
        assert (answer.status_code, answer.headers["content-range"]) == (416, "bytes */1000")
        assert answer.headers["content-type"] == "application/problem+json"
        for odd in ("lines=1-2", "bytes=5-1", "bytes=", "bytes=" + ",".join(["0-0"] * 33)):
            answer = await http.get("/files/get/small.txt", headers={"Range": odd})
            assert (answer.status_code, len(answer.content)) == (200, 1000), odd


@pytest.mark.parametrize(
    ("name", "disposition"),
    [
        ("plain.txt", 'inline; filename="plain.txt"'),
        ("naïve 漢.txt", "inline; filename=\"na_ve _.txt\"; filename*=UTF-8''na%C3%AFve%20%E6%BC%A2.txt"),
        ('quo"te.txt', "inline; filename=\"quo_te.txt\"; filename*=UTF-8''quo%22te.txt"),
        ("tab\tnew\nline.txt", "inline; filename=\"tab_new_line.txt\"; filename*=UTF-8''tab%09new%0Aline.txt"),
        ("100%.txt", "inline; filename=\"100_.txt\"; filename*=UTF-8''100%25.txt"),
        ("שלום.bin", "attachment; filename=\"____.bin\"; filename*=UTF-8''%D7%A9%D7%9C%D7%95%D7%9D.bin"),
        ("semi;colon, comma.txt", 'inline; filename="semi;colon, comma.txt"'),
        ("page.html", 'attachment; filename="page.html"'),
        ("picture.svg", 'attachment; filename="picture.svg"'),
        ("packed.html.gz", 'attachment; filename="packed.html.gz"'),
    ],
)
async def test_names_in_any_script(stack: Stack, home: Path, name: str, disposition: str) -> None:
    (home / name).write_text("x")
    async with web(stack.api) as http:
        answer = await http.get("/files/get/" + quote(name))
    assert (answer.status_code, answer.headers["content-disposition"]) == (200, disposition)


@pytest.mark.parametrize("path", ["./get/small.txt", "get/./small.txt", "get/small.txt/.", "%2e/get/%2E/./small.txt"])
async def test_a_dot_in_a_path_means_the_step_before_it(stack: Stack, home: Path, path: str) -> None:
    lines = [f"GET /files/{path} HTTP/1.1", f"GET /stream/file?path={path} HTTP/1.1"]
    for line in lines:
        async with raw(stack.api) as (reader, writer):  # clients would tidy it up
            writer.write(f"{line}\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        assert b'filename="small.txt"' in head
        assert body == CONTENT[:1000]


async def test_a_digest_on_request(stack: Stack, home: Path) -> None:
    expected = f"sha-256=:{b64encode(hashlib.sha256(CONTENT).digest()).decode()}:"
    async with web(stack.api) as http:
        for headers in ({"Want-Repr-Digest": "sha-256=10"}, {"Want-Repr-Digest": "sha-512=3, sha-256=1"}):
            answer = await http.get("/files/get/big.bin", headers={**headers, "Range": "bytes=0-9"})
            assert answer.headers["repr-digest"] == expected, "of the whole, not of the part"
        assert "repr-digest" not in (await http.head("/files/get/big.bin")).headers
        (home / "digested").write_bytes(b"one")
        for content in (b"one", b"two", b"three"):
            (home / "digested").write_bytes(content)
            for _ in range(2):  # computed, and kept
                answer = await http.get("/files/get/digested", headers={"Want-Repr-Digest": "sha-256=1"})
                digest = b64encode(hashlib.sha256(content).digest()).decode()
                assert (answer.content, answer.headers["repr-digest"]) == (content, f"sha-256=:{digest}:")
        answer = await http.head("/files/get/big.bin", headers={"Want-Repr-Digest": "sha-256=0"})
        assert "repr-digest" not in answer.headers


def test_requests_on_one_connection_are_answered_in_order(stack: Stack, home: Path) -> None:
    host, port = stack.api.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as client:
        paths = ["get/big.bin", "get/small.txt", "get/missing", "get/big.bin", "get/empty"]
        client.sendall(b"".join(f"GET /files/{path} HTTP/1.1\r\nHost: x\r\n\r\n".encode() for path in paths))
        stream = client.makefile("rb")
        for status, length in ((200, len(CONTENT)), (200, 1000), (404, None), (200, len(CONTENT)), (200, 0)):
            assert stream.readline().split()[1] == str(status).encode()
            headers = {}
            while line := stream.readline().strip():
                name, _, value = line.partition(b": ")
                headers[name.lower()] = value
            body = stream.read(int(headers[b"content-length"]))
            assert length is None or body == CONTENT[:length]


async def test_the_listing(stack: Stack, home: Path) -> None:
    async with web(stack.api) as http:
        listed = (await http.get("/files/", params={"prefix": "get/sm"})).json()
        assert [(entry["path"], entry["size"]) for entry in listed] == [("get/small.txt", 1000)]
        assert listed[0]["etag"] == (await http.head("/files/get/small.txt")).headers["etag"]
        lines = await http.get("/files/", params={"prefix": "get/"}, headers={"Accept": "application/jsonl"})
        assert (lines.headers["content-type"], lines.headers["x-accel-buffering"]) == ("application/jsonl", "no")
        assert lines.text.count("\n") == len((await http.get("/files/", params={"prefix": "get/"})).json())
        assert (await http.get("/files/", params={"prefix": "nothing"})).json() == []
        (home / os.fsdecode(b"no-text-\xff")).write_bytes(b"x")
        (home / "back\\slash").write_bytes(b"x")
        (home / "link").symlink_to("small.txt")
        names = [entry["path"] for entry in (await http.get("/files/", params={"prefix": "get/"})).json()]
        assert names == sorted(names)
        for name in names:
            assert (await http.head("/files/" + quote(name))).status_code == 200, "what is listed is there"


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("*/*", JSON), ("text/html", JSON), (JSONL, JSONL), (NDJSON, NDJSON), (f"{JSONL};q=0.5, {JSON}", JSON),
        (f"{JSON};q=0.5, {NDJSON};q=0.9, {JSONL};q=0.7", NDJSON), (f"{JSONL};q=0", JSON), ("Application/JSONL", JSONL),
    ],
)  # fmt: skip
async def test_accept_chooses_the_form_of_the_listing(stack: Stack, home: Path, accept: str, kind: str) -> None:
    async with web(stack.api) as http:
        answer = await http.get("/files/?prefix=get/small.txt", headers={"Accept": accept})
    assert (answer.headers["content-type"], answer.headers["vary"]) == (kind, "Accept")
    found = answer.json() if kind == JSON else [json.loads(line) for line in answer.text.splitlines()]
    assert [entry["path"] for entry in found] == ["get/small.txt"]


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "POST"])
async def test_a_name_that_is_not_utf_8_is_nowhere(stack: Stack, home: Path, method: str) -> None:
    (home / "\N{REPLACEMENT CHARACTER}").write_bytes(b"real")
    before = sorted(home.rglob("*"))
    async with web(stack.api) as http:
        for name in ("%ff", "%fe", "%ef%bf%bd%ff", "%ed%a0%80", "new%c3", "%ff/new"):
            answer = await http.request(method, f"/files/get/{name}", content=b"x" if method == "PUT" else None)
            assert answer.status_code == 404, name
            if method in ("GET", "HEAD"):
                assert (await http.request(method, f"/stream/file?path=get/{name}")).status_code == 404, name
        assert (await http.get("/files/get/%ef%bf%bd")).content == b"real", "a name like any other"
        assert (await http.get("/stream/file?path=get/%ef%bf%bd")).content == b"real"
        assert len((await http.get("/files/?prefix=get/%ef%bf%bd")).json()) == 1
        assert (await http.get("/files/?prefix=get/%ff")).json() == []
    assert sorted(home.rglob("*")) == before


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("POST", "/files/get/small.txt", "GET, HEAD, PUT, DELETE"), ("PATCH", "/files/x", "GET, HEAD, PUT, DELETE"),
     ("OPTIONS", "/files/x", "GET, HEAD, PUT, DELETE"), ("PUT", "/stream/file", "GET, HEAD"),
     ("DELETE", "/stream/file", "GET, HEAD"), ("DELETE", "/files/", "GET, HEAD"), ("PUT", "/files/", "GET, HEAD")],
)  # fmt: skip
async def test_other_methods_are_told_which_there_are(
    stack: Stack, home: Path, method: str, path: str, allowed: str
) -> None:
    async with web(stack.api) as http:
        answer = await http.request(method, path)
    assert (answer.status_code, answer.headers["allow"]) == (405, allowed)
    assert answer.headers["content-type"] == "application/problem+json"


async def test_the_tutorials_route_is_the_same_stream(stack: Stack, home: Path) -> None:
    async with web(stack.api) as http:
        for headers in ({}, {"Range": "bytes=5-99"}, {"Range": "bytes=0-1,7-8"}, {"Range": "bytes=9999999-"}):
            one = await http.get("/files/get/big.bin", headers=headers)
            other = await http.get("/stream/file", params={"path": "get/big.bin"}, headers=headers)
            assert one.status_code == other.status_code
            kind = one.headers["content-type"].partition("; boundary=")
            bodies = [
                a.content.replace(a.headers["content-type"].rpartition("=")[2].encode(), b"") for a in (one, other)
            ]
            assert kind[1] == "" or bodies[0] == bodies[1]
            if not kind[1] and one.status_code < 400:
                assert one.content == other.content
                names = (
                    "etag",
                    "last-modified",
                    "content-type",
                    "content-length",
                    "content-disposition",
                    "accept-ranges",
                )
                assert [one.headers[n] for n in names] == [other.headers[n] for n in names]
        etag = (await http.head("/stream/file", params={"path": "get/big.bin"})).headers["etag"]
        answer = await http.get("/stream/file", params={"path": "get/big.bin"}, headers={"If-None-Match": etag})
        assert answer.status_code == 304


@pytest.mark.parametrize(
    "path",
    ["../outside.txt", "%2e%2e/outside.txt", "get/%2e%2e%2f%2e%2e/x", "/etc/passwd", "%2fetc%2fpasswd", "get", "get/",
     "get//small.txt", "get/small.txt%00", "get%5csmall.txt", ".store/lock", "get/.hidden", "get/missing",
     "get/odd/out", "get/odd/in",
     "get/odd/root/etc/passwd", "get/odd/pipe", "get/odd/socket", "get/odd/up/small.txt", "get/odd/loop", "get/.", "..",
     "get/../get/small.txt", "get/odd/.hidden", "get/odd/.dir/x", "get/odd", "get/odd/", "get/small.txt/", "%00",
     "get/small.txt%2f..%2fbig.bin", "%252e%252e/x", "get/%c0%ae%c0%ae/x", "%2e/get/.hidden", "get%00/small.txt"],
)  # fmt: skip
def test_what_is_never_served_is_404(stack: Stack, home: Path, path: str) -> None:
    host, port = stack.api.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as client:
        client.sendall(f"GET /files/{path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        while data := client.recv(65536):
            answer += data
    assert answer.startswith(b"HTTP/1.1 404 "), answer[:200]
    assert b'"title":"Not Found"' in answer
    assert b"secret" not in answer


async def test_keys_need_the_scope_of_what_they_do(
    stack: Stack, home: Path, own_processes: Processes, tmp_path: Path
) -> None:
    scopes: dict[str, list[Scope]] = {
        "reader": ["files:read"], "writer": ["files:write"], "jobs": ["submit", "read"], "boss": ["admin"],
    }  # fmt: skip
    made = {name: new_key(name, of, None) for name, of in scopes.items()}
    write_keys(tmp_path / "keys.json", [key for _, key in made.values()])
    settings = {"MILLSTREAM_API_KEYS_FILE": str(tmp_path / "keys.json"), "MILLSTREAM_DATA_DIR": str(stack.data)}
    api = await own_processes.api(stack.store, None, **settings)
    calls = {
        ("GET", "/files/get/small.txt"): ("reader", 200), ("HEAD", "/files/get/small.txt"): ("reader", 200),
        ("GET", "/files/?prefix=get/small"): ("reader", 200), ("GET", "/files/get/missing"): ("reader", 404),
        ("GET", "/stream/file?path=get/small.txt"): ("reader", 200), ("PUT", "/files/get/keyed"): ("writer", 201),
        ("DELETE", "/files/get/keyed"): ("writer", 204), ("POST", "/uploads"): ("writer", 412),
        ("GET", "/files/get/small.txt?follow=true&offset=x"): ("reader", 422),
    }  # fmt: skip
    for (method, path), (scope, status) in calls.items():
        async with web(api) as http:
            answer = await http.request(method, path)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer"), path
            assert (await http.request(method, path, headers={"Authorization": "Bearer ms_x_y"})).status_code == 401
        for name, (key, _) in made.items():
            async with web(api, key) as http:
                answer = await http.request(method, path.replace("keyed", f"keyed-{name}"))
                assert answer.status_code == (status if name in (scope, "boss") else 403), (name, method, path)
