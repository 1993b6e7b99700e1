"""The load: sockets that each keep a window of messages under way, in a process of its own.

It shares the machine with what it measures, so it speaks only as much of RFC 6455 as that takes, and costs a few
microseconds a message. Every answer is checked: the right text, once, and (where that is promised) in the right order.
"""

import asyncio
import json
import sys
from asyncio.subprocess import PIPE
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from itertools import count
from time import perf_counter
from typing import Literal, cast
from urllib.parse import urlsplit

import uvloop

Mode = Literal["ordered", "unordered", "rpc"]

WARM_UP_S = 0.3  # not measured
PATIENCE_S = 30  # how long the last answers may take
ANSWER = b"Processed data: "
TEXT, CLOSE, PING, PONG = 0x81, 0x88, 0x89, 0x8A  # first bytes of frames that are a whole message


class WrongAnswer(Exception):
    """What came back is not what had to come back."""


@dataclass(frozen=True, slots=True)
class Load:
    url: str
    mode: Mode
    sockets: int
    window: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Measured:
    """Answers a second, and their round trips in milliseconds."""

    rate: float
    p50_ms: float
    p99_ms: float


async def measure(load: Load) -> Measured:
    """Run a load in a process of its own. Raises WrongAnswer."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", __name__, json.dumps(asdict(load)), stdout=PIPE, stderr=PIPE
    )  # fmt: skip
    output, errors = await process.communicate()
    if process.returncode:
        raise WrongAnswer(f"{load}: {errors.decode().strip() or 'the load ended without a word'}")
    return Measured(**json.loads(output))


class Plain:
    """A text for a text."""

    def __init__(self, socket: int, *, ordered: bool) -> None:
        self._numbers, self._socket, self._ordered = count(), socket, ordered
        self._asked: dict[bytes, float] = {}  # by the answer that is due

    def ask(self) -> bytes:
        text = b"message %d of socket %d" % (next(self._numbers), self._socket)
        self._asked[ANSWER + text] = perf_counter()
        return text

    def hear(self, message: bytes) -> float:
        """When the question was asked that this message answers. Raises WrongAnswer."""
        if message not in self._asked or (self._ordered and message != next(iter(self._asked))):
            raise WrongAnswer(f"{message!r}, while due were {[*self._asked][:3]}")
        return self._asked.pop(message)


class Rpc:
    """`millstream.v1`: a submit, its reply, and the job's last event, which is the answer."""

    def __init__(self, socket: int) -> None:
        self._numbers, self._socket = count(), socket
        self._asked: dict[int, tuple[str, float]] = {}  # by request
        self._accepted: dict[str, tuple[str, float]] = {}  # by job

    def ask(self) -> bytes:
        number = next(self._numbers)
        text = f"message {number} of socket {self._socket}"
        self._asked[number] = ANSWER.decode() + text, perf_counter()
        return (
            f'{{"jsonrpc":"2.0","id":{number},"method":"job.submit","params":'
            f'{{"analysis":"process","params":{{"text":"{text}"}},"events":"terminal"}}}}'
        ).encode()

    def hear(self, message: bytes) -> float | None:
        """As above; None for a reply, which answers nothing yet."""
        try:
            document = json.loads(message)
            if "id" in document:
                self._accepted[document["result"]["job"]] = self._asked.pop(document["id"])
                return None
            event = document["params"]
            due, asked = self._accepted.pop(event["job"])
            if event["data"]["result"] == due:
                return asked
        except (KeyError, TypeError, ValueError) as error:
            raise WrongAnswer(f"{message!r} ({error!r})") from None
        raise WrongAnswer(f"{message!r} instead of {due!r}")


class Socket(asyncio.Protocol):
    """A client's end of one WebSocket. `done` is set when every question of the time given has had its answer."""

    def __init__(self, load: Load, talk: Plain | Rpc, begin: float, answered: Callable[[float], None]) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._load, self._talk, self._answered = load, talk, answered
        self._begin, self._end = begin, begin + load.seconds
        self._under_way = 0
        self._receive = self._handshake
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but its class
        url = urlsplit(self._load.url)
        protocol = "Sec-WebSocket-Protocol: millstream.v1\r\n" if self._load.mode == "rpc" else ""
        self._transport.write(
            f"GET {url.path} HTTP/1.1\r\nHost: {url.netloc}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n{protocol}"
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
        )

    def data_received(self, data: bytes) -> None:
        try:
            self._rest = self._receive(self._rest + data)
        except WrongAnswer as error:
            self._fail(error)

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(WrongAnswer(f"the connection broke with {self._under_way} messages under way"))

    def _fail(self, error: WrongAnswer) -> None:
        if not self.done.done():
            self.done.set_exception(error)

    def _handshake(self, data: bytes) -> bytes:
        head, end, rest = data.partition(b"\r\n\r\n")
        if not end:
            return data
        if not head.startswith(b"HTTP/1.1 101 "):
            raise WrongAnswer(head.decode(errors="replace"))
        self._receive = self._frames
        for _ in range(self._load.window):
            self._ask()
        return rest

    def _frames(self, data: bytes) -> bytes:
        """Hear every whole frame (a server masks none, RFC 6455 §5.1); returns what is left."""
        at, end = 0, len(data)
        while end - at >= 2:
            size, start = data[at + 1], at + 2
            if size == 126:
                size, start = int.from_bytes(data[at + 2 : at + 4]), at + 4
            if start + size > end:
                break
            self._frame(data[at], data[start : start + size])
            at = start + size
        return data[at:]

    def _frame(self, kind: int, payload: bytes) -> None:
        if kind == PING:
            self._send(PONG, payload)
            return
        if kind != TEXT:
            raise WrongAnswer(f"a frame of kind {kind:#x}: {payload!r}")
        asked = self._talk.hear(payload)
        if asked is None:
            return
        self._under_way -= 1
        now = perf_counter()
        if self._begin <= now < self._end:
            self._answered(now - asked)
        if now < self._end:
            self._ask()
        elif not self._under_way and not self.done.done():
            self.done.set_result(None)
            self._send(CLOSE, b"")

    def _ask(self) -> None:
        self._under_way += 1
        self._send(TEXT, self._talk.ask())

    def _send(self, kind: int, payload: bytes) -> None:
        """A client's frame, masked with 0, which leaves the payload as it is (RFC 6455 §5.3)."""
        size = bytes([0x80 | len(payload)]) if len(payload) < 126 else b"\xfe" + len(payload).to_bytes(2)
        self._transport.write(bytes([kind]) + size + bytes(4) + payload)


async def _run(load: Load) -> Measured:
    begin = perf_counter() + WARM_UP_S
    trips: list[float] = []
    host, _, port = urlsplit(load.url).netloc.partition(":")
    sockets = []
    for number in range(load.sockets):
        talk = Rpc(number) if load.mode == "rpc" else Plain(number, ordered=load.mode == "ordered")
        connect = partial(Socket, load, talk, begin, trips.append)
        _, socket = await asyncio.get_running_loop().create_connection(connect, host, int(port))
        sockets.append(socket)
    try:
        async with asyncio.timeout(WARM_UP_S + load.seconds + PATIENCE_S):
            await asyncio.gather(*(socket.done for socket in sockets))
    except TimeoutError:
        raise WrongAnswer(f"some messages had no answer {PATIENCE_S} s after the last was sent") from None
    if not trips:
        raise WrongAnswer("no message was answered within the time of the measurement")
    trips.sort()
    return Measured(len(trips) / load.seconds, *(trips[int(len(trips) * part)] * 1000 for part in (0.5, 0.99)))


if __name__ == "__main__":
    try:
        print(json.dumps(asdict(uvloop.run(_run(Load(**json.loads(sys.argv[1])))))))
    except (WrongAnswer, OSError) as error:
        sys.exit(str(error))
