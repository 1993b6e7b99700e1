"""A body that is not as long as Content-Length says is no upload, even where the server takes it for a whole one."""

import asyncio
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.types import Message, Scope

from millstream.apikeys import Keys
from millstream.confined_fs import ServedDirectory
from millstream_api.files.app import Files
from millstream_api.files.sending import Traffic
from millstream_api.files.tus import CONTENT_TYPE, Tus
from millstream_api.files.uploads import BLOCK, Uploads
from millstream_api.settings import ApiSettings
from tests.integration.web import everything

NAMED = {"tus-resumable": "1.0.0", "upload-metadata": f"path {b64encode(b'f').decode()}"}
TUS = {**NAMED, "content-type": CONTENT_TYPE}


class Tier:
    """The file tier without a server: a test says what the body is, and whether that is its end."""

    def __init__(self, data: Path) -> None:
        settings = ApiSettings(_env_file=None)
        self._directory = ServedDirectory(data)
        uploads = Uploads(settings, self._directory)
        self._files = Files(settings, Keys(None), self._directory, uploads, Traffic(), asyncio.Event())
        self._tus = Tus(settings, Keys(None), self._directory, uploads)

    async def ask(self, method: str, path: str, headers: dict[str, str], *body: bytes) -> tuple[int, Message, bytes]:
        """The status, the start and the body of the answer."""
        left = [{"type": "http.request", "body": piece, "more_body": True} for piece in body]
        left[-1]["more_body"] = False
        sent: list[Message] = []

        async def receive() -> Message:
            return left.pop(0)

        async def send(message: Message) -> None:
            sent.append(message)

        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        scope: Scope = {"type": "http", "method": method, "path": path, "query_string": b"", "headers": raw}
        await (self._tus if path.startswith("/uploads") else self._files)(scope, receive, send)
        return sent[0]["status"], sent[0], b"".join(message.get("body", b"") for message in sent)

    def close(self) -> None:
        self._directory.close()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def tier(data: Path) -> Iterator[Tier]:
    tier = Tier(data)
    yield tier
    tier.close()


BODIES = {
    "nothing": (b"",), "fewer": (b"x" * 999,), "fewer in pieces": (b"x" * 500, b"x" * 499), "more": (b"x" * 1001,),
    "more at the end": (b"x" * 1000, b"x"), "much more": (b"x" * BLOCK, b"x" * BLOCK),
}  # fmt: skip


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
async def test_a_put_of_another_length_than_announced_is_refused_and_leaves_nothing(
    tier: Tier, data: Path, body: tuple[bytes, ...]
) -> None:
    (data / "f").write_bytes(b"old")
    for path in ("/files/f", "/files/new/g"):
        status, _, text = await tier.ask("PUT", path, {"content-length": "1000"}, *body)
        assert status == 400
        assert b"1000 bytes that Content-Length announced" in text
    assert everything(data) == ["f"]
    assert (data / "f").read_bytes() == b"old"


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
async def test_a_creation_with_another_length_than_announced_is_refused_and_leaves_nothing(
    tier: Tier, data: Path, body: tuple[bytes, ...]
) -> None:
    for length in (999, 1000, 1001, 2 * BLOCK):
        headers = {**TUS, "upload-length": str(length), "content-length": "1000"}
        status, _, _ = await tier.ask("POST", "/uploads", headers, *body)
        assert status in (400, 413)
        assert everything(data) == []


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
async def test_a_part_with_another_length_than_announced_is_refused_and_publishes_nothing(
    tier: Tier, data: Path, body: tuple[bytes, ...]
) -> None:
    for length in (999, 1000, 1001, 2 * BLOCK):
        status, start, _ = await tier.ask("POST", "/uploads", {**NAMED, "upload-length": str(length)}, b"")
        assert status == 201
        where = dict(start["headers"])[b"location"].decode()
        headers = {**TUS, "upload-offset": "0", "content-length": "1000"}
        status, _, _ = await tier.ask("PATCH", where, headers, *body)
        assert status in (400, 413)
        assert not (data / "f").exists()
        status, start, _ = await tier.ask("HEAD", where, {"tus-resumable": "1.0.0"}, b"")
        kept = int(dict(start["headers"])[b"upload-offset"])
        assert kept <= 1000, "what came of the announced bytes counts, and it can go on from there"


@pytest.mark.parametrize("odd", ["", "x", "-1", "1.5", "5, 5", "0x5", "٣", "9" * 5000])
async def test_a_content_length_that_is_no_number_is_refused(tier: Tier, data: Path, odd: str) -> None:
    for method, path, headers in (
        ("PUT", "/files/f", {}), ("POST", "/uploads", {**TUS, "upload-length": "5"}),
    ):  # fmt: skip
        status, _, text = await tier.ask(method, path, {**headers, "content-length": odd}, b"12345")
        assert (status, b"Content-Length must be a number of bytes" in text) == (400, True)
    assert everything(data) == []


async def test_a_body_in_chunks_ends_where_it_says(tier: Tier, data: Path) -> None:
    headers = {"transfer-encoding": "chunked", "content-length": "1"}  # RFC 9112 §6.3: the former counts
    assert (await tier.ask("PUT", "/files/f", headers, b"123", b"45"))[0] == 201
    assert (data / "f").read_bytes() == b"12345"
