"""Slow clients, however slow, get everything; those that read nothing for the time limit are dropped.

A client here reads whenever a timer of the server's own loop says so, and what is shown of times is the order in which
timers of that loop went off: on a busy machine all of them are late together.
"""

import asyncio
import random
import socket
import threading
from pathlib import Path

import pytest
from starlette.types import Receive, Scope, Send

from millstream.apikeys import Keys
from millstream.confined_fs import ServedDirectory
from millstream_api.files.app import Files
from millstream_api.files.sending import Traffic
from millstream_api.files.uploads import Uploads
from millstream_api.settings import ApiSettings
from millstream_api.wire.http_connection import Limits
from tests.integration.serving import port, serving

MIB = 1024 * 1024
STALL_S = 0.3
READS = 16  # four of them within STALL_S
LARGE = random.Random(6).randbytes(12 * MIB)
SMALL = LARGE[:32_000]


class Timed:
    """The file tier, on whose loop a client reads, from its first request on: READS times a little, then all it can."""

    def __init__(self, data: Path, client: socket.socket) -> None:
        settings = ApiSettings(_env_file=None, send_timeout_s=STALL_S)
        directory = ServedDirectory(data)
        uploads = Uploads(settings, directory)
        self._files = Files(settings, Keys(None), directory, uploads, Traffic(), asyncio.Event())
        self._client = client
        self._reads = 0
        self.received = bytearray()
        self.slowly = 0  # bytes
        self.ended = threading.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._reads:
            self._read()
        await self._files(scope, receive, send)

    def _read(self) -> None:
        slow = self._reads < READS
        self._reads += 1
        try:
            some = self._client.recv(20_000 if slow else MIB, socket.MSG_DONTWAIT)
        except BlockingIOError:
            pass
        except ConnectionResetError:
            self.ended.set()
            return
        else:
            self.received += some
            if not some:
                self.ended.set()
                return
        if slow:
            self.slowly = len(self.received)
        else:
            self._client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, MIB)
        asyncio.get_running_loop().call_later(STALL_S / 4 if slow else 0.001, self._read)


ASKED = {"one large file": (["large"], LARGE), "many small ones": (["small"] * 350, SMALL * 350)}


@pytest.mark.parametrize(("paths", "content"), ASKED.values(), ids=ASKED)
async def test_a_client_that_reads_a_little_now_and_then_gets_everything(
    tmp_path: Path, paths: list[str], content: bytes
) -> None:
    (tmp_path / "large").write_bytes(LARGE)
    (tmp_path / "small").write_bytes(SMALL)
    requests = [f"GET /files/{path} HTTP/1.1\r\nHost: x\r\n" for path in paths]
    with socket.socket() as client:
        timed = Timed(tmp_path, client)
        async with serving(timed, Limits(stall_s=STALL_S)) as url:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", port(url)))
            client.sendall("\r\n".join([*requests[:-1], requests[-1] + "Connection: close\r\n", ""]).encode())
            assert await asyncio.to_thread(timed.ended.wait, 50)
    assert 0 < timed.slowly < len(content) / 10
    assert bodies(bytes(timed.received)) == content


def bodies(answers: bytes) -> bytes:
    """The bodies of all answers in a row."""
    found = bytearray()
    rest = memoryview(answers)
    while rest:
        head, _, _ = bytes(rest[:2000]).partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        begin = len(head) + 4
        found += rest[begin : begin + length]
        rest = rest[begin + length :]
    return bytes(found)
