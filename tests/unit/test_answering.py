"""A whole response in one message, against a connection that only notes what it is asked for."""

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from millstream_api.wire.answering import ANSWER, SMALL, write_answer
from millstream_api.wire.answers import Answer, Span
from millstream_api.wire.backpressure import wait_until_sent
from millstream_api.wire.connection import ClientGone
from millstream_api.wire.pagecache import FileTruncated

CONTENT = bytes(range(256)) * 200
LARGE = Span(10, SMALL + 1)
STALL_S = 0.001  # how often a waiting test looks; none depends on how long that takes


class NotingConnection:
    """A `Connection`. Descriptor: one end of a pair of sockets; `calls`: what it was asked for, in order."""

    def __init__(self, out: socket.socket) -> None:
        self.calls: list[str] = []
        self.timed = False
        self.write_paused = False
        self.closing = False
        self.sizes: list[int] = []  # what the write buffer holds at each call; then nothing
        self.empty = asyncio.Event()
        self._out = out

    def write(self, data: bytes | bytearray) -> None:
        self.calls.append(f"write {len(data)}")

    def flush(self) -> None:
        self.calls.append("flush")

    def get_write_buffer_size(self) -> int:
        if not self.sizes:
            self.empty.set()
            return 0
        return self.sizes.pop(0)

    async def wait_until_empty(self) -> None:
        self.calls.append("wait")
        await self.empty.wait()
        self.write_paused = False

    def fileno(self) -> int:
        return self._out.fileno()

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.calls.append("close")

    def abort(self) -> None:
        self.calls.append("abort")

    def start_response(self, status: int, head: bytes) -> None:
        self.calls.append(f"start {status}")

    def end_response(self) -> None:
        self.calls.append("end")


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
async def connection(pair: tuple[socket.socket, socket.socket]) -> NotingConnection:
    return NotingConnection(pair[0])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file.bin"
    path.write_bytes(CONTENT)
    return path


async def write(connection: NotingConnection, path: Path, *parts: bytes | Span) -> list[int]:
    """What `on_sent` was told."""
    sent: list[int] = []
    with path.open("rb") as file:
        message = {"type": ANSWER, "answer": Answer(206, b"", parts), "file": file.fileno(), "on_sent": sent.append}
        await write_answer(connection, message, STALL_S)
    return sent


async def test_small_parts_are_written_in_order_behind_the_head(connection: NotingConnection, path: Path) -> None:
    assert await write(connection, path, b"ab", Span(5, SMALL), b"c", Span(0, 3)) == [SMALL, 3]
    assert connection.calls == ["start 206", "write 2", f"write {SMALL}", "write 1", "write 3", "end"]


async def test_a_large_span_goes_to_the_socket_behind_what_was_written(
    connection: NotingConnection, path: Path, pair: tuple[socket.socket, socket.socket]
) -> None:
    assert sum(await write(connection, path, b"ab", LARGE, b"c")) == LARGE.length
    assert connection.calls == ["start 206", "write 2", "flush", "write 1", "end"]
    assert pair[1].recv(LARGE.length + 1, socket.MSG_WAITALL | socket.MSG_DONTWAIT) == CONTENT[10 : SMALL + 11]


async def test_nothing_is_written_while_the_write_buffer_is_full(connection: NotingConnection, path: Path) -> None:
    connection.write_paused, connection.sizes = True, [9, 8, 7]
    await write(connection, path, b"ab")
    assert connection.calls == ["wait", "start 206", "write 2", "end"]


@pytest.mark.parametrize("span", [Span(len(CONTENT) - 1, 2), Span(len(CONTENT) - 1, SMALL + 1)])
async def test_a_response_whose_file_was_truncated_is_aborted_and_never_ended(
    connection: NotingConnection, path: Path, span: Span
) -> None:
    with pytest.raises(FileTruncated, match="the file was truncated"):
        await write(connection, path, span)
    assert connection.calls[-1] == "abort"
    assert "end" not in connection.calls


async def test_a_client_that_reads_less_and_less_is_waited_for(connection: NotingConnection) -> None:
    connection.sizes = [9, 8, 2, 1]
    await wait_until_sent(connection, STALL_S)
    assert connection.calls == ["wait"]


async def test_a_client_that_stops_reading_is_given_up(connection: NotingConnection) -> None:
    connection.sizes = [9, 8, 8, 1]
    with pytest.raises(ClientGone, match="reads nothing"):
        await wait_until_sent(connection, STALL_S)
    assert connection.calls == ["wait", "abort"]
    assert connection.sizes == [1]


async def test_a_client_that_has_left_is_not_waited_for(connection: NotingConnection) -> None:
    connection.closing = True
    with pytest.raises(ClientGone, match="left"):
        await wait_until_sent(connection, STALL_S)
    assert connection.calls == []
