"""`make bench`: the main job, no-op, beside the same on arq and an echo without a queue, in interleaved rounds.

Everything (store, API, workers, load) shares this machine's cores, so only ratios of one run mean anything.
"""

import argparse
import asyncio
import json
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

from rich.console import Console
from rich.table import Table

from shared.embedded import free_port
from tests.processes import Process, Processes

ALONE, CROWD = (1, 1), (10, 10)  # sockets, window


@dataclass
class Contestant:
    """A system under test, and what was measured of it: by (workers, sockets, window), one result a round."""

    name: str
    kind: str
    mode: str = "plain"
    results: dict[tuple[int, int, int], list[dict[str, float]]] = field(default_factory=dict)

    def median(self, key: tuple[int, int, int], what: str) -> float:
        return statistics.median(result[what] for result in self.results[key])

    def cell(self, key: tuple[int, int, int], what: str) -> str:
        if key not in self.results:
            return "–"
        values = [result[what] for result in self.results[key]]
        digits = 0 if what == "rate" else 2
        return f"{self.median(key, what):,.{digits}f} ({min(values):,.{digits}f}–{max(values):,.{digits}f})"


def contestants() -> list[Contestant]:
    return [
        Contestant("millstream, plain", "millstream"),
        Contestant("millstream, JSON-RPC", "millstream", "rpc"),
        Contestant("arq as it comes", "arq"),
        Contestant("arq tuned", "arq-tuned"),
        Contestant("echo, no queue", "echo"),
    ]


async def measure(contestant: Contestant, workers: int, seconds: float, shapes: Iterable[tuple[int, int]]) -> None:
    """Start the system with a store of its own, warm it up, and load it."""
    async with AsyncExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        processes = await stack.enter_async_context(Processes(home))
        store = await processes.store()
        if contestant.kind == "millstream":
            api = await processes.api(store, MILLSTREAM_DATA_DIR=str(home))
            for _ in range(workers):
                await processes.worker(store, MILLSTREAM_LEASE_S="10", MILLSTREAM_DATA_DIR=str(home))
        else:
            port = free_port()
            api = await peer(processes, f"http://127.0.0.1:{port}", "api", contestant.kind, str(port), store.url)
            await processes.answers(api, "/openapi.json")
            for _ in range(workers if contestant.kind != "echo" else 0):
                await peer(processes, "", "worker", contestant.kind, store.url)
        await load(api, contestant.mode, 0.5, 1, 1)
        for sockets, window in shapes:
            result = await load(api, contestant.mode, seconds, sockets, window)
            contestant.results.setdefault((workers, sockets, window), []).append(result)


async def peer(processes: Processes, url: str, *arguments: str) -> Process:
    log = processes.directory / f"{'-'.join(arguments[:2])}-{len(processes.started)}.log"
    process = Process([sys.executable, "-m", "tests.benchmarks.peers", *arguments], {}, log, url)
    processes.started.append(process)
    await process.start()
    return process


async def load(api: Process, mode: str, seconds: float, sockets: int, window: int) -> dict[str, float]:
    arguments = ["-m", "tests.benchmarks.load", api.ws, mode, str(seconds), str(sockets), str(window)]
    running = await asyncio.create_subprocess_exec(sys.executable, *arguments, stdout=asyncio.subprocess.PIPE)
    async with asyncio.timeout(60 + seconds):
        printed, _ = await running.communicate()
    if running.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed: a wrong answer, or none")
    measured: dict[str, float] = json.loads(printed)
    return measured


async def bench(rounds: int, seconds: float) -> list[Contestant]:
    entered = contestants()
    for _ in range(rounds):
        for workers in (1, 2, 4):
            for contestant in entered:
                if contestant.kind == "echo" and workers > 1:
                    continue
                await measure(contestant, workers, seconds, [ALONE, CROWD] if workers == 1 else [CROWD])
    return entered


def show(entered: list[Contestant], rounds: int) -> None:
    one = (1, *ALONE)
    table = Table(
        title=f"No-op job, {date.today()}, Python {platform.python_version()}, {os.cpu_count()} cores for everything; "
        f"medians of {rounds} interleaved rounds (min–max)"
    )
    columns = ("", "p50 ms, one at a time", "p99 ms", "messages/s 10×10, 1 worker", "2 workers", "4 workers")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    for c in entered:
        rates = [c.cell((workers, *CROWD), "rate") for workers in (1, 2, 4)]
        table.add_row(c.name, c.cell(one, "p50_ms"), c.cell(one, "p99_ms"), *rates)
    console = Console(width=150)
    console.print(table)

    ours, rpc, arq, tuned, echo = entered

    def rate(c: Contestant, workers: int = 1) -> float:
        return c.median((workers, *CROWD), "rate")

    best = min(arq.median(one, "p50_ms"), tuned.median(one, "p50_ms"))
    p50 = ours.median(one, "p50_ms")
    for text, ratio in {
        "messages/s, plain / arq tuned": rate(ours) / rate(tuned),
        "messages/s, JSON-RPC / arq tuned": rate(rpc) / rate(tuned),
        "messages/s, plain / echo": rate(ours) / rate(echo),
        "p50, plain / the better arq's": p50 / best,
        "p50, plain / echo": p50 / echo.median(one, "p50_ms"),
        "2 workers / 1": rate(ours, 2) / rate(ours),
        "4 workers / 1": rate(ours, 4) / rate(ours),
    }.items():
        console.print(f"{text:<34} {ratio:8.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="make bench", description="The main job beside the same on arq.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3, help="for each measurement")
    given = parser.parse_args()
    show(asyncio.run(bench(given.rounds, given.seconds)), given.rounds)
