"""What still waits for its store ends when it is told to, with nothing left behind."""

import asyncio
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from millstream.store.embedded import free_port
from tests.processes import START_S, Process, Processes, until

PYTHON = [sys.executable, "-P"]
COMMANDS = {
    "api": [*PYTHON, "-m", "millstream_api", "--port", "{port}"],
    "worker": [*PYTHON, "-m", "millstream_worker"],
    "up": [
        *PYTHON, "-c", "from millstream.command import run; run()",
        "up", "--workers", "1", "--port", "{port}", "--data", "{data}", "--redis", "{store}",
    ],
}  # fmt: skip


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """What accepts connections, and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        yield listening


def log_of(process: Process) -> str:
    return process.log.read_text() if process.log.exists() else ""


def children(pid: int) -> list[int]:
    return [int(found) for found in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("away", [True, False], ids=["away", "silent"])
async def test_a_process_without_its_store_ends_when_it_is_told_to(
    own_processes: Processes, tmp_path: Path, silent: socket.socket, name: str, number: signal.Signals, away: bool
) -> None:
    store = f"redis://127.0.0.1:{free_port() if away else silent.getsockname()[1]}/0"
    held = ExitStack()
    words = {"port": free_port(), "data": tmp_path, "store": store}
    process = Process(
        [word.format(**words) for word in COMMANDS[name]],
        {"MILLSTREAM_REDIS_URL": store, "MILLSTREAM_DATA_DIR": str(tmp_path)}, tmp_path / "log",
    )  # fmt: skip
    own_processes.started.append(process)
    await process.start()

    waits = 2 if name == "up" else 1  # an API and a worker do

    async def told() -> bool:
        return log_of(process).count("store unreachable") >= waits

    if away:
        await until(told, what="it to wait for its store", within_s=START_S)
    else:
        async with asyncio.timeout(START_S):
            for _ in range(waits):
                connection, _ = await asyncio.get_running_loop().sock_accept(silent)
                held.enter_context(connection)
    started = children(process.pid)
    with held:
        process.signal(number)
        assert await process.ended() == 0
    assert "Traceback" not in log_of(process)
    assert [pid for pid in started if Path(f"/proc/{pid}").exists()] == []
