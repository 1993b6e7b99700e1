"""Slow clients, however slow, get everything; those that read nothing for the time limit are dropped.

A client here reads whenever a timer of the server's own loop says so, and what is shown of times is the order in which
timers of that loop went off: on a busy machine all of them are late together.
"""

import asyncio
import random
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from starlette.types import Receive, Scope, Send

from millstream.apikeys import Keys
from millstream.confined_fs import ServedDirectory
from millstream_api.files.app import Files
from millstream_api.files.sending import Traffic
from millstream_api.settings import ApiSettings
from millstream_api.wire.uvicorn_adapter import UvicornAdapter
from tests.integration.serving import port, serving
from tests.processes import until

MIB = 1024 * 1024
STALL_S = 0.3
READS = 16  # four of them within STALL_S
LARGE = random.Random(6).randbytes(12 * MIB)
SMALL = LARGE[:32_000]


class Timed:
    """The file tier, on whose loop something is done again and again from the first request on."""

    def __init__(self, data: Path, do: Callable[[], None]) -> None:
        settings = ApiSettings(_env_file=None, send_timeout_s=STALL_S)
        self._files = Files(settings, Keys(None), ServedDirectory(data), Traffic(), asyncio.Event())
        self._do = do
        self.done = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self.done:
            self._tick()
        await self._files(scope, receive, send)

    def _tick(self) -> None:
        if self.done < READS:
            self.done += 1
            asyncio.get_running_loop().call_later(STALL_S / 4, self._tick)
            self._do()


ASKED = {"one large file": (["large"], LARGE), "many small ones": (["small"] * 350, SMALL * 350)}


@pytest.mark.parametrize(("paths", "content"), ASKED.values(), ids=ASKED)
async def test_a_client_that_reads_a_little_now_and_then_gets_everything(
    tmp_path: Path, paths: list[str], content: bytes
) -> None:
    (tmp_path / "large").write_bytes(LARGE)
    (tmp_path / "small").write_bytes(SMALL)
    client, received = socket.socket(), bytearray()

    def read() -> None:
        with suppress(BlockingIOError):
            received.extend(client.recv(20_000))

    timed = Timed(tmp_path, read)

    async def slow_part_over() -> bool:
        return timed.done == READS

    def read_on() -> None:
        client.settimeout(20)
        while more := client.recv(MIB):
            received.extend(more)

    async with serving(UvicornAdapter(timed, stall_s=STALL_S)) as url:
        with client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", port(url)))
            requests = [f"GET /files/{path} HTTP/1.1\r\nHost: x\r\n" for path in paths]
            client.sendall("\r\n".join([*requests[:-1], requests[-1] + "Connection: close\r\n", ""]).encode())
            client.setblocking(False)
            await until(slow_part_over, what="the client to have read slowly for long")
            assert len(received) < len(content)
            await asyncio.to_thread(read_on)
    assert bodies(bytes(received)) == content


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
