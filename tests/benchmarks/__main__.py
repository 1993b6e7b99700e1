"""`make bench`: the no-op job in Millstream, in a plain relay on other queues, and answered at once without a queue.

Each round starts every contestant in turn, with a store of its own, measures it, and ends it: what is not being
measured costs nothing. Ratios are taken within a round. Times are never a pass mark; a wrong answer is.
"""

import asyncio
import os
import platform
import sys
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Annotated, Literal

import redis.asyncio as redis
from cyclopts import App, Parameter
from cyclopts.types import PositiveFloat, PositiveInt
from rich import box
from rich.console import Console
from rich.table import Table

from millstream.store.embedded import free_port
from tests.benchmarks.load import Load, Mode, WrongAnswer, measure
from tests.benchmarks.peers import STARTED
from tests.processes import Process, Processes, until

Name = Literal["millstream", "arq", "arq-tuned", "saq", "streaq", "echo"]
Key = Literal["p50", "p99"] | int  # a round trip, or messages a second with so many workers
Round = dict[Key, float]
Place = tuple[str, Key]  # row and column

ROWS: dict[Name, dict[str, Mode]] = {
    "millstream": {"Millstream, plain": "ordered", "Millstream, JSON-RPC": "rpc"},
    "arq": {"stock arq": "unordered"},
    "arq-tuned": {"arq tuned": "unordered"},
    "saq": {"SAQ": "unordered"},
    "streaq": {"streaQ": "unordered"},
    "echo": {"echo, no queue": "ordered"},
}
OURS, ECHO = "Millstream, plain", "echo, no queue"
PEERS = ("stock arq", "arq tuned", "SAQ", "streaQ")
WORKERS = (1, 2, 4)
AIMS = {("peer", 1): "≥ 10", ("echo", 1): "≥ 0.3"}  # with more workers: never less
SOCKETS = WINDOW = 10


@dataclass(frozen=True, slots=True)
class Turn:
    """One contestant, up and running."""

    name: Name
    processes: Processes
    store: Process

    async def start_front(self) -> Process:
        if self.name == "millstream":
            return await self.processes.api(self.store, MILLSTREAM_DATA_DIR=str(self.processes.directory))
        port = str(free_port())
        arguments = ["echo", port] if self.name == "echo" else ["relay", self.name, port, self.store.url]
        front = await self._peer(*arguments, url=f"http://127.0.0.1:{port}")
        await self.processes.answers(front)
        return front

    async def start_workers(self, number: int) -> None:
        """Start as many workers as are lacking to this number."""
        if self.name == "millstream":
            data = str(self.processes.directory)
            running = sum(process.arguments[-1] == "millstream_worker" for process in self.processes.started)
            for _ in range(number - running):
                await self.processes.worker(self.store, MILLSTREAM_LEASE_S="10", MILLSTREAM_DATA_DIR=data)
            return
        async with redis.Redis.from_url(self.store.url) as client:

            async def started() -> bool:
                return int(await client.get(STARTED) or 0) == number

            for _ in range(number - int(await client.get(STARTED) or 0)):
                await self._peer("worker", self.name, self.store.url)
            await until(started, what=f"{number} workers to start")

    async def _peer(self, *arguments: str, url: str = "") -> Process:
        started = self.processes.started
        log = self.processes.directory / f"{arguments[0]}-{len(started)}.log"
        process = Process([sys.executable, "-m", "tests.benchmarks.peers", *arguments], {}, log, url)
        started.append(process)
        await process.start()
        return process

    async def run(self, seconds: float) -> dict[str, Round]:
        """Everything that is measured of it in one round, by row."""
        front = await self.start_front()
        rows: dict[str, Round] = {row: {} for row in ROWS[self.name]}
        for workers in WORKERS[:1] if self.name == "echo" else WORKERS:
            if self.name != "echo":
                await self.start_workers(workers)
            for row, mode in ROWS[self.name].items():
                if workers == 1:
                    alone = await measure(Load(front.ws, mode, 1, 1, seconds))
                    rows[row]["p50"], rows[row]["p99"] = alone.p50_ms, alone.p99_ms
                rows[row][workers] = (await measure(Load(front.ws, mode, SOCKETS, WINDOW, seconds))).rate
        return rows


async def bench(rounds: int, seconds: float, names: list[Name]) -> tuple[list[dict[str, Round]], str]:
    """The rounds, and the store's version. Raises WrongAnswer."""
    results, version = [], ""
    for number in range(rounds):
        result: dict[str, Round] = {}
        for name in names[number % len(names) :] + names[: number % len(names)]:
            print(f"round {number + 1} of {rounds}: {name} …", file=sys.stderr)
            with tempfile.TemporaryDirectory() as directory:
                async with Processes(Path(directory)) as processes:
                    store = await processes.store()
                    version = version or await _version(store)
                    result |= await Turn(name, processes, store).run(seconds)
        results.append(result)
    return results, version


async def _version(store: Process) -> str:
    async with redis.Redis.from_url(store.url) as client:
        server = await client.info("server")
    return f"Valkey {server['valkey_version']}" if "valkey_version" in server else f"Redis {server['redis_version']}"


def ratios() -> list[tuple[str, str, Place, Place]]:
    """What each is called, what it should come to, what is divided, and by what."""
    speed = "messages/s: Millstream"
    return [
        *(
            (f"{speed} / {peer}, workers: {n}", AIMS.get(("peer", n), ""), (OURS, n), (peer, n))
            for peer in PEERS[1:]
            for n in WORKERS
        ),
        *((f"{speed} / echo, workers: {n}", AIMS.get(("echo", n), ""), (OURS, n), (ECHO, 1)) for n in WORKERS),
        *((f"p50: Millstream / {peer}", "≤ 0.4", (OURS, "p50"), (peer, "p50")) for peer in PEERS[1:]),
        ("p50: Millstream / echo", "≤ 5", (OURS, "p50"), (ECHO, "p50")),
        *((f"{speed}, {n} workers / 1", "≥ 1", (OURS, n), (OURS, 1)) for n in WORKERS[1:]),
    ]


def show(rounds: list[dict[str, Round]], console: Console) -> None:
    table = Table("", "p50 ms", "p99 ms", *(f"{n} worker{'s' * (n > 1)}" for n in WORKERS), box=box.SIMPLE_HEAD)
    for row in (row for rows in ROWS.values() for row in rows if row in rounds[0]):
        keys: list[Key] = ["p50", "p99", *WORKERS]
        table.add_row(row, *(_spread([r[row][key] for r in rounds if key in r[row]]) for key in keys))
    compared = Table("ratio, taken within each round", "median (range)", "aim", box=box.SIMPLE_HEAD)
    for name, aim, (row, key), (other, column) in ratios():
        if {row, other} <= rounds[0].keys():
            found = [r[row][key] / r[other][column] for r in rounds]
            compared.add_row(name, _spread(found), aim)
    for each in (table, compared):
        for number, titled in enumerate(each.columns):
            titled.no_wrap = True
            titled.justify = "right" if number else "left"
        if each.rows:
            console.print(each)


def _spread(values: list[float]) -> str:
    """Median (min–max)."""
    if not values:
        return "–"
    digits = 0 if max(values) >= 100 else 2
    middle, low, high = (f"{value:,.{digits}f}" for value in (median(values), min(values), max(values)))
    return f"{middle} ({low}–{high})"


def main(
    *,
    rounds: Annotated[PositiveInt, Parameter(help="how often everybody has a turn")] = 3,
    seconds: Annotated[PositiveFloat, Parameter(help="how long each measurement takes; 1 or more")] = 2,
    only: Annotated[list[Name] | None, Parameter(help="leave the others out; may be repeated")] = None,
) -> int:
    names = [name for name in ROWS if name in (only or ROWS)]
    try:
        results, version = asyncio.run(bench(rounds, seconds, names))
    except WrongAnswer as error:
        print(f"A wrong answer, so nothing was measured: {error}", file=sys.stderr)
        return 1
    console = Console(width=150, highlight=False)
    console.print(
        f"The no-op job, {datetime.now(UTC):%Y-%m-%d}. Python {platform.python_version()}, {version}, AOF everysec.\n"
        f"Median (range) of {rounds} interleaved rounds, {seconds:g} s for each measurement.\n"
        f"p50, p99: round trips, one at a time. 1, 2, 4 workers: messages/s at {SOCKETS} sockets × window {WINDOW}.\n"
        f"Store, API, workers and load share this machine's {os.cpu_count()} cores: only ratios mean anything."
    )
    show(results, console)
    return 0


if __name__ == "__main__":
    app = App(
        name="make bench", help="The no-op job beside the same on arq, SAQ, streaQ and an echo.", version_flags=[]
    )
    app.default(main)
    sys.exit(app())
