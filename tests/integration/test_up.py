"""`millstream up` takes the settings that the processes it starts take, and no proxy is in its way."""

import asyncio
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from millstream.store.embedded import free_port
from tests.integration.conftest import Stack
from tests.integration.web import ended, submit, web
from tests.processes import START_S, Process, Processes, until

ROOT = Path(__file__).parents[2]
MILLSTREAM = [
    sys.executable,
    "-c",
    "import os, sys; from millstream.command.main import app; os.chdir(sys.argv.pop(1)); app()",
]


@pytest.mark.parametrize("how", ["variable", "file", "option"])
async def test_the_directory_that_is_served_is_the_one_that_is_set(
    own_processes: Processes, tmp_path: Path, how: str
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "hello.txt").write_text("hello")
    if how != "variable":
        (tmp_path / ".env").write_text(f"MILLSTREAM_DATA_DIR={'mine' if how == 'file' else 'another'}\n")
    port = free_port()
    up = Process(
        [*MILLSTREAM, str(tmp_path), "up", "--port", str(port), "--workers", "0",
         *(["--data", "mine"] if how == "option" else [])],
        {"PYTHONPATH": str(Path.cwd()), **({"MILLSTREAM_DATA_DIR": "mine"} if how == "variable" else {})},
        tmp_path / "log", f"http://127.0.0.1:{port}",
    )  # fmt: skip
    own_processes.started.append(up)
    await up.start()
    await own_processes.answers(up)
    async with httpx.AsyncClient(trust_env=False) as http:
        assert (await http.get(f"{up.url}/files/hello.txt")).text == "hello"
    assert (tmp_path / "mine" / ".store").is_dir()
    up.signal(signal.SIGINT)
    assert await up.ended() == 0


async def test_it_is_up_at_an_address_that_it_does_not_answer_for(own_processes: Processes, tmp_path: Path) -> None:
    port = free_port()
    settings = {"MILLSTREAM_INSECURE": "true", "MILLSTREAM_HOSTS": "a.example", "PYTHONPATH": str(Path.cwd())}
    up = Process(
        [*MILLSTREAM, str(tmp_path), "up", "--host", "0.0.0.0", "--port", str(port), "--workers", "0"], settings,
        tmp_path / "log", f"http://127.0.0.1:{port}",
    )  # fmt: skip
    own_processes.started.append(up)
    await up.start()
    await own_processes.answers(up)

    async def said() -> bool:
        return "running at" in up.log.read_text()

    await until(said, what="it to see that the API is up")
    async with httpx.AsyncClient(trust_env=False) as http:
        assert (await http.get(f"{up.url}/readyz", headers={"Host": "0.0.0.0"})).status_code == 421
    up.signal(signal.SIGINT)
    assert await up.ended() == 0


async def test_a_setting_that_is_wrong_is_named(tmp_path: Path) -> None:
    wrong = {**os.environ, "MILLSTREAM_QUEUE_DEPTH": "0", "PYTHONPATH": str(Path.cwd())}
    found = await asyncio.to_thread(
        subprocess.run, [*MILLSTREAM, str(tmp_path), "up"], env=wrong, capture_output=True, text=True, timeout=START_S
    )
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr.startswith("MILLSTREAM_QUEUE_DEPTH=0: ")
    assert "Traceback" not in found.stderr


async def test_it_runs_jobs_at_a_port_that_is_free_whatever_proxy_is_set(
    own_processes: Processes, tmp_path: Path
) -> None:
    proxy = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), "http://127.0.0.1:9")  # answers nobody
    settings = {"PYTHONUNBUFFERED": "1", "no_proxy": "", **proxy}
    up = Process(
        [*MILLSTREAM, str(tmp_path), "up", "--port", "0", "--workers", "1"],
        settings, tmp_path / "log",
    )  # fmt: skip
    own_processes.started.append(up)
    await up.start()

    async def said() -> bool:
        return "running at" in up.log.read_text()

    await until(said, what="it to be up", within_s=START_S)
    up.url = re.findall(r"running at (\S+);", up.log.read_text())[0]
    async with web(up) as http:
        job = await submit(http, "process", {"text": "x"})
        assert (await ended(http, job))["status"] == "succeeded"
    assert "store    unix:///" in up.log.read_text()
    up.signal(signal.SIGINT)
    assert await up.ended() == 0


async def test_the_health_check_of_compose_needs_no_proxy(stack: Stack) -> None:
    (check,) = re.findall(r'"-c", "(import urllib.*?)"\]', (ROOT / "compose.yaml").read_text())
    here = check.replace("http://127.0.0.1:8000", stack.api.url)
    environment = {**os.environ, "http_proxy": "http://127.0.0.1:9", "no_proxy": ""}
    ran = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", here], env=environment, timeout=START_S)
    assert ran.returncode == 0
