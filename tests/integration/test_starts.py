"""What cannot work says so in a line and ends; what can, starts. And `up` ends when it is told to."""

import asyncio
import os
import runpy
import signal
import subprocess
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest
import redis.asyncio as redis

from millstream.command import main
from millstream.command.supervisor import Supervisor
from millstream.store.embedded import free_port
from tests.integration.conftest import database
from tests.integration.web import ended, submit, web
from tests.processes import START_S, Process, Processes, until

PYTHON = [sys.executable, "-P"]
COMMANDS = {
    "api": [*PYTHON, "-m", "millstream_api", "--port", "0"],
    "worker": [*PYTHON, "-m", "millstream_worker"],
    "up": [*PYTHON, "-c", "from millstream.command import run; run()", "up", "--port", "0", "--workers", "1"],
}
WRONG = {
    "a queue of no analysis": ("worker", {"QUEUE": "gpu"}, ["MILLSTREAM_QUEUE=gpu", "analyses of: default"]),
    "a module that does not parse": ("worker", {"ANALYSES": "./bad.py"}, ["bad.py", "SyntaxError", "line 1"]),
    "up with such a module": ("up", {"ANALYSES": "./bad.py"}, ["bad.py", "SyntaxError", "worker 1 could not"]),
    "a key file that is missing": ("api", {"API_KEYS_FILE": "k.json"}, ["k.json: there is no such", "keys new NAME"]),
    "an origin with a path": ("api", {"ORIGINS": "http://x/"}, ["MILLSTREAM_ORIGINS=http://x/", "lower case"]),
    "a store that is no URL": ("worker", {"REDIS_URL": "store"}, ["MILLSTREAM_REDIS_URL=store", "redis://"]),
    "a port that is none": ("api", {"REDIS_URL": "redis://u:secret@h:x/0"}, ["MILLSTREAM_REDIS_URL=redis://h:x/0"]),
    "up with such a store": ("up", {"REDIS_URL": "redis://h:x/0"}, ["MILLSTREAM_REDIS_URL=redis://h:x/0"]),
}  # fmt: skip


@pytest.mark.parametrize(("command", "settings", "words"), WRONG.values(), ids=WRONG)
async def test_what_cannot_work_is_told_in_words_with_exit_code_2(
    tmp_path: Path, command: str, settings: dict[str, str], words: list[str]
) -> None:
    (tmp_path / "bad.py").write_text("def f(:")
    environment = {**os.environ, **{f"MILLSTREAM_{name}": value for name, value in settings.items()}}
    found = await asyncio.to_thread(
        subprocess.run, COMMANDS[command], env=environment, cwd=tmp_path, capture_output=True, text=True,
        timeout=START_S,
    )  # fmt: skip
    assert found.returncode == 2, found.stderr
    for word in words:
        assert word in found.stderr
    for never in ("Traceback", "secret"):
        assert never not in found.stdout + found.stderr


async def test_a_worker_needs_no_right_to_know_the_store(
    valkey: Process, own_processes: Processes, tmp_path: Path
) -> None:
    store = database(valkey, 7)
    async with redis.Redis.from_url(valkey.url) as client:
        await client.execute_command(
            "ACL", "SETUSER", "limited", "reset", "on", ">pw", "~*", "&*", "+@all", "-@dangerous", "-@admin"
        )
    limited = replace(store, url=store.url.replace("redis://", "redis://limited:pw@"))
    await own_processes.worker(limited)
    api = await own_processes.api(limited, MILLSTREAM_DATA_DIR=str(tmp_path))
    async with web(api) as http:
        assert (await ended(http, await submit(http, "process", {"text": "x"})))["status"] == "succeeded"


async def test_up_ends_though_what_it_waits_for_does_not_hear_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = asyncio.Event()

    async def deaf(self: Supervisor) -> None:
        began.set()
        for _ in range(2):  # as wait_for() of Python 3.11 may
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                pass
        await asyncio.Event().wait()

    monkeypatch.setattr(Supervisor, "start", deaf)
    running = asyncio.create_task(main._run(Supervisor("127.0.0.1", free_port(), 0, tmp_path)))
    await began.wait()
    os.kill(os.getpid(), signal.SIGINT)
    async with asyncio.timeout(20):
        assert await running == 0


async def test_up_starts_no_child_again_once_it_is_to_end(own_processes: Processes, tmp_path: Path) -> None:
    (tmp_path / "crashes.py").write_text("import os; os._exit(1)")
    up = Process(
        COMMANDS["up"], {"MILLSTREAM_ANALYSES": str(tmp_path / "crashes.py"), "MILLSTREAM_DATA_DIR": str(tmp_path)},
        tmp_path / "log",
    )  # fmt: skip
    own_processes.started.append(up)
    await up.start()

    async def crashed() -> bool:
        return up.log.exists() and "worker 1 (pid" in up.log.read_text()

    await until(crashed, what="the worker to crash", within_s=START_S)
    up.signal(signal.SIGINT)
    assert await up.ended() == 0
    assert "started again" not in up.log.read_text().rpartition("Draining")[2]


@pytest.mark.parametrize("installed", [True, False])
def test_the_version_is_that_of_the_package_from_wherever_it_is_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], installed: bool
) -> None:
    if not installed:
        monkeypatch.setattr(metadata, "version", lambda name: metadata.distribution("no-such-package"))
    app = runpy.run_path(str(main.__file__), run_name="elsewhere")["app"]
    app("--version", result_action="return_value")
    expected = metadata.version("millstream") if installed else "unknown: this source tree is not installed"
    assert capsys.readouterr().out.strip() == expected
