"""A job's body that is not as long as Content-Length says is refused, even where the server took it for a whole one."""

import pytest
from starlette.requests import Request
from starlette.types import Message

from millstream.protocol.errors import Problem
from millstream_api.jobs.http import _read


async def read(headers: dict[str, str], *body: bytes) -> bytes:
    left = [{"type": "http.request", "body": piece, "more_body": True} for piece in body]
    left[-1]["more_body"] = False

    async def receive() -> Message:
        return left.pop(0)

    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    return await _read(Request({"type": "http", "headers": raw}, receive), 1000)


@pytest.mark.parametrize("body", [(b"",), (b"1234",), (b"12", b"34"), (b"123456",), (b"12345", b"6")])
async def test_a_body_of_another_length_than_announced_is_refused(body: tuple[bytes, ...]) -> None:
    with pytest.raises(Problem, match="Content-Length announced 5") as caught:
        await read({"content-length": "5"}, *body)
    assert caught.value.slug == "parse_error"


@pytest.mark.parametrize(
    "headers", [{}, {"content-length": "5"}, {"transfer-encoding": "chunked", "content-length": "1"}]
)
async def test_a_whole_body_is_read(headers: dict[str, str]) -> None:
    assert await read(headers, b"12", b"345") == b"12345"
