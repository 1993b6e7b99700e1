"""The load: sockets that keep a window of messages under way, in a process of its own. Prints what it measured as
JSON.

python -m tests.benchmarks.load URL MODE SECONDS SOCKETS WINDOW

MODE is `plain` (a frame is answered by a frame) or `rpc` (`millstream.v1`, `events: terminal`). Every answer is
checked.
"""

import asyncio
import json
import sys
import time

import uvloop
from websockets.asyncio.client import ClientConnection, connect
from websockets.typing import Subprotocol


async def plain(socket: ClientConnection, until: float, window: int, times: list[float]) -> None:
    """Send, and expect the answers in the order of what was sent."""
    sent: list[tuple[str, float]] = []
    number = 0
    while True:
        while len(sent) < window and time.perf_counter() < until:
            text = f"m{number}"
            number += 1
            sent.append((text, time.perf_counter()))
            await socket.send(text)
        if not sent:
            return
        answer = await socket.recv()
        text, began = sent.pop(0)
        assert answer == f"Processed data: {text}", f"{text!r} was answered by {answer!r}"
        times.append(time.perf_counter() - began)


async def rpc(socket: ClientConnection, until: float, window: int, times: list[float]) -> None:
    """Submit, and expect a reply and a terminal event for each."""
    submitted: dict[int, tuple[str, float]] = {}
    running: dict[str, tuple[str, float]] = {}
    number = 0
    while True:
        while len(submitted) + len(running) < window and time.perf_counter() < until:
            number += 1
            params = {"analysis": "process", "params": {"text": f"m{number}"}, "events": "terminal"}
            submitted[number] = (f"m{number}", time.perf_counter())
            await socket.send(json.dumps({"jsonrpc": "2.0", "id": number, "method": "job.submit", "params": params}))
        if not submitted and not running:
            return
        message = json.loads(await socket.recv())
        if "id" in message:
            running[message["result"]["job"]] = submitted.pop(message["id"])
        else:
            text, began = running.pop(message["params"]["job"])
            assert message["params"]["data"]["result"] == f"Processed data: {text}", message
            times.append(time.perf_counter() - began)


async def main(url: str, mode: str, seconds: float, sockets: int, window: int) -> None:
    protocols = [Subprotocol("millstream.v1")] if mode == "rpc" else None
    opened = [await connect(url, subprotocols=protocols, compression=None) for _ in range(sockets)]
    drive = rpc if mode == "rpc" else plain
    times: list[float] = []
    began = time.perf_counter()
    await asyncio.gather(*(drive(socket, began + seconds, window, times) for socket in opened))
    elapsed = time.perf_counter() - began
    for socket in opened:
        await socket.close()
    times.sort()
    measured = {
        "rate": len(times) / elapsed,
        "p50_ms": times[len(times) // 2] * 1000,
        "p99_ms": times[min(len(times) - 1, len(times) * 99 // 100)] * 1000,
        "count": len(times),
    }
    print(json.dumps(measured))


if __name__ == "__main__":
    url, mode, *numbers = sys.argv[1:]
    uvloop.run(main(url, mode, float(numbers[0]), int(numbers[1]), int(numbers[2])))
