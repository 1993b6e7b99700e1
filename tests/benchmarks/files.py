"""`make bench-files`: the file tier beside nginx, Starlette's FileResponse and the tutorial's way, in alternating
runs.

Everything runs on this machine and shares its cores, so only ratios of the same run mean anything. nginx has one
worker process and `tcp_nopush off`: with it on, keep-alive ranges stall and flatter us.
"""

import argparse
import asyncio
import os
import random
import re
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import httpx
from rich.console import Console
from rich.table import Table
from websockets.asyncio.client import connect

from millstream.store.embedded import free_port
from tests.processes import Process, Processes

NGINX = """
daemon off; worker_processes 1; pid {home}/nginx.pid; error_log {home}/error.log;
events {{ worker_connections 4096; }}
http {{
  access_log off; sendfile on; tcp_nopush off; keepalive_requests 1000000; client_body_temp_path {home}/body;
  proxy_temp_path {home}/proxy; fastcgi_temp_path {home}/fastcgi;
  uwsgi_temp_path {home}/uwsgi; scgi_temp_path {home}/scgi;
  server {{ listen 127.0.0.1:{port}; location /files/ {{ alias {data}/; }} }}
}}
user root;
"""


@dataclass
class Contestant:
    """A server that serves the same files below `/files/`."""

    name: str
    port: int
    pids: Callable[[], list[int]]

    def cpu_s(self) -> float:
        """CPU seconds of the server's processes so far, to the nanosecond (clock_getcpuclockid(3))."""
        return sum(time.clock_gettime(~pid << 3 | 2) for pid in self.pids())

    def rss_mib(self) -> float:
        pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in self.pids())
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *map(int, found)]


# The load.


def request(path: str) -> bytes:
    return f"GET /files/{path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


class Connection:
    """One keep-alive connection that reads and forgets."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = bytearray(1024 * 1024)

    def get(self, message: bytes) -> int:
        """One request; returns the length of its body. Raises AssertionError for anything but success."""
        self._socket.sendall(message)
        head = b""
        while b"\r\n\r\n" not in head:
            data = self._socket.recv(65536)
            assert data, "the connection was closed"
            head += data
        head, _, body = head.partition(b"\r\n\r\n")
        assert head.split(b" ", 2)[1] in (b"200", b"206"), head[:200]
        chunked = b"chunked" in head.lower()
        if chunked:
            return self._chunked(body)
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
        left = length - len(body)
        while left:
            left -= self._received(left)
        return length

    def _received(self, most: int) -> int:
        count = self._socket.recv_into(self._buffer, min(most, len(self._buffer)))
        assert count, "the body is short"
        return count

    def _chunked(self, body: bytes) -> int:
        total = len(body)
        tail = body[-7:]
        while not tail.endswith(b"0\r\n\r\n"):
            count = self._received(len(self._buffer))
            total += count
            tail = (tail + bytes(self._buffer[max(0, count - 7) : count]))[-7:]
        return total

    def close(self) -> None:
        self._socket.close()


def streams(port: int, count: int, path: str, *, times: int = 1) -> tuple[float, int]:
    """Each of so many connections gets the file so many times → (bytes per second, bytes)"""
    got: list[int] = []

    def read() -> None:
        connection = Connection(port)
        got.extend(connection.get(request(path)) for _ in range(times))
        connection.close()

    threads = [threading.Thread(target=read) for _ in range(count)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(got) / (time.perf_counter() - began), sum(got)


RANDOM_RANGES = """
math.randomseed(os.time())
function request()
  local start = math.random(0, {last})
  return wrk.format("GET", nil, {{ ["Range"] = "bytes=" .. start .. "-" .. start + 65535 }})
end
"""


def requests(port: int, seconds: float, path: str, length: int, script: str = "") -> tuple[float, int]:
    """wrk over 8 keep-alive connections → (requests per second, bytes)"""
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as lua:
        lua.write(script)
        lua.flush()
        url = f"http://127.0.0.1:{port}/files/{path}"
        arguments = ["wrk", "-t1", "-c8", f"-d{round(seconds)}s", *(["-s", lua.name] if script else []), url]
        printed = subprocess.run(arguments, capture_output=True, text=True, check=True).stdout
    assert "Non-2xx" not in printed, printed
    assert "Socket errors" not in printed, printed
    found = re.search(r"(\d+) requests in", printed)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", printed)
    assert found is not None, printed
    assert rate is not None, printed
    return float(rate.group(1)), int(found.group(1)) * length


Measure = Callable[[Contestant], tuple[float, int] | None]


def measurements(big: int, seconds: float) -> dict[str, Measure]:
    """What is measured; None where a contestant cannot take part (the tutorial knows no ranges)."""
    ranges = RANDOM_RANGES.format(last=big - 65536)
    return {
        "one stream of 1 GiB, GB/s": lambda c: _scaled(
            streams(c.port, 1, "ten.bin" if c.name == "tutorial" else "big.bin")
        ),
        "8 streams of 10 MiB, GB/s": lambda c: _scaled(
            streams(c.port, 8, "ten.bin", times=1 if c.name == "tutorial" else 10)
        ),
        "64 KiB ranges, requests/s": lambda c: (
            None if c.name == "tutorial" else requests(c.port, seconds, "big.bin", 65536, ranges)
        ),
        "4 KiB files, requests/s": lambda c: requests(c.port, seconds, "small.bin", 4096),
    }


def _scaled(result: tuple[float, int]) -> tuple[float, int]:
    return result[0] / 1e9, result[1]


# The contestants.


async def start(processes: Processes, data: Path) -> list[Contestant]:
    store = await processes.store()
    api = await processes.api(store, MILLSTREAM_DATA_DIR=str(data), MILLSTREAM_STREAMS="20000")
    home, port = processes.directory, free_port()
    (home / "nginx.conf").write_text(NGINX.format(home=home, port=port, data=data))
    nginx = await _started(processes, ["nginx", "-c", str(home / "nginx.conf"), "-p", str(home)], port, {})
    found = [
        Contestant("nginx", port, lambda: children(nginx.pid)),
        Contestant("millstream", int(api.url.rpartition(":")[2]), lambda: [api.pid]),
    ]
    for name in ("fileresponse", "tutorial"):
        port = free_port()
        arguments = [sys.executable, "-m", "tests.benchmarks.file_peers", name, str(port), str(data)]
        peer = await _started(processes, arguments, port, {})
        found.append(Contestant(name, port, lambda peer=peer: [peer.pid]))  # type: ignore[misc]
    return found


async def _started(processes: Processes, arguments: list[str], port: int, environment: dict[str, str]) -> Process:
    process = Process(arguments, environment, processes.directory / f"{Path(arguments[0]).name}-{port}.log")
    processes.started.append(process)
    await process.start()
    for _ in range(200):
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return process
        except OSError:
            await asyncio.sleep(0.05)
    raise SystemExit(f"{arguments[0]} did not start: {process.log.read_text()[-500:]}")


async def bench(rounds: int, seconds: float, big: int) -> None:
    with tempfile.TemporaryDirectory() as home:
        data = Path(home) / "files"
        data.mkdir()
        for name, size in (("big.bin", big), ("ten.bin", 10 * 2**20), ("small.bin", 4096)):
            with (data / name).open("wb") as file:
                for offset in range(0, size, 2**20):
                    file.write(os.urandom(min(size - offset, 2**20)))
        async with Processes(Path(home)) as processes:
            contestants = await start(processes, data)
            table = Table(title=f"Files, {date.today()}, one machine, medians of {rounds} alternating rounds (min–max)")
            for column in ("", *(c.name for c in contestants), "millstream / nginx", "/ fileresponse", "CPU / nginx"):
                table.add_column(column, justify="right")
            for title, measure in measurements(big, seconds).items():
                table.add_row(title, *await asyncio.to_thread(_row, contestants, measure, rounds))
            table.add_row("RSS afterwards, MiB", *(f"{c.rss_mib():.0f}" for c in contestants), "", "", "")
            Console(width=150).print(table)


def _row(contestants: list[Contestant], measure: Measure, rounds: int) -> list[str]:
    speeds: dict[str, list[float]] = {c.name: [] for c in contestants}
    cpu: dict[str, list[float]] = {c.name: [] for c in contestants}
    for number in range(rounds + 1):  # the first warms up
        for contestant in contestants:
            before = contestant.cpu_s()
            measured = measure(contestant)
            if measured and number:
                speeds[contestant.name].append(measured[0])
                cpu[contestant.name].append((contestant.cpu_s() - before) / measured[1] * 1e9)
    cells = [_cell(speeds[c.name], cpu[c.name]) for c in contestants]
    ours, nginx, theirs = speeds["millstream"], speeds["nginx"], speeds["fileresponse"]
    paired = statistics.median(m / n for m, n in zip(ours, nginx, strict=True))
    cpu_ratio = statistics.median(cpu["millstream"]) / max(1e-9, statistics.median(cpu["nginx"]))
    return [*cells, f"{paired:.2f}", f"{statistics.median(ours) / statistics.median(theirs):.1f}", f"{cpu_ratio:.2f}"]


def _cell(speeds: list[float], cpu: list[float]) -> str:
    if not speeds:
        return "–"
    speed = f"{statistics.median(speeds):,.4g} ({min(speeds):,.3g}–{max(speeds):,.3g})"
    return f"{speed}\n{statistics.median(cpu):.2f} CPU s/GB"


async def slow(readers: int, seconds: float) -> float:
    """Many slow readers of one large file: what each costs in memory (in KiB, returned), what others feel (printed)."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with tempfile.TemporaryDirectory() as home:
        data = Path(home) / "files"
        data.mkdir()
        with (data / "big.bin").open("wb") as file:
            file.truncate(2**30)
        async with Processes(Path(home)) as processes:
            store = await processes.store()
            api = await processes.api(store, None, MILLSTREAM_DATA_DIR=str(data), MILLSTREAM_STREAMS=str(readers + 10))
            await processes.worker(store, MILLSTREAM_DATA_DIR=str(data))
            idle = await _felt(api, seconds / 3)
            before = api.rss_bytes()
            reading = [asyncio.create_task(_slow_reader(api)) for _ in range(readers)]
            async with httpx.AsyncClient(base_url=api.url, trust_env=False) as http:
                while (await http.get("/streams")).json()["open"] < readers:  # noqa: ASYNC110 (asked over HTTP)
                    await asyncio.sleep(0.1)
                busy = await _felt(api, seconds)
                assert (await http.get("/streams")).json()["open"] == readers, "no reader was disconnected"
            grown = (api.rss_bytes() - before) / readers / 1024
            for task in reading:
                task.cancel()
            await asyncio.gather(*reading, return_exceptions=True)
    print(f"{readers} slow readers of 1 GiB: {grown:.1f} KiB of memory each")
    for name in idle:
        values = [f"{statistics.median(v):.2f} / {sorted(v)[len(v) * 99 // 100]:.2f}" for v in (idle[name], busy[name])]
        print(f"{name:<22} p50 / p99 ms: {values[0]} without them, {values[1]} with them")
    return grown


async def _slow_reader(api: Process) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(api.url.rpartition(":")[2]), limit=8192)
    writer.write(request("big.bin"))
    try:
        while True:
            await reader.read(4096)
            await asyncio.sleep(random.uniform(0.3, 0.7))
    finally:
        writer.close()


async def _felt(api: Process, seconds: float) -> dict[str, list[float]]:
    """What a request and a job take meanwhile, in ms."""
    felt: dict[str, list[float]] = {"GET /healthz": [], "a job over the socket": []}
    end = time.perf_counter() + seconds
    async with httpx.AsyncClient(base_url=api.url, trust_env=False) as http, connect(api.ws) as plain:
        while time.perf_counter() < end:
            began = time.perf_counter()
            await http.get("/healthz")
            between = time.perf_counter()
            await plain.send("x")
            await plain.recv()
            felt["GET /healthz"].append((between - began) * 1000)
            felt["a job over the socket"].append((time.perf_counter() - between) * 1000)
            await asyncio.sleep(0.005)
    return felt


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="make bench-files", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--big", type=int, default=2**30, help="bytes of the one large file")
    parser.add_argument("--slow", type=int, metavar="N", help="instead: N slow readers of one large file")
    given = parser.parse_args()
    if given.slow:
        asyncio.run(slow(given.slow, 12))
        raise SystemExit
    if missing := [name for name in ("nginx", "wrk") if not shutil.which(name)]:
        raise SystemExit(f"Install {' and '.join(missing)} first: apt-get install nginx-light wrk")
    asyncio.run(bench(given.rounds, given.seconds, given.big))
