"""A project that has folders and modules called as ours once were: servers, client and tests of analyses work in it."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from millstream.store.embedded import free_port
from tests.processes import Process, Processes

FILES = {
    "api/__init__.py": "raise RuntimeError('a folder of the project was imported')",
    "shared/__init__.py": "raise RuntimeError('a folder of the project was imported')",
    "worker.py": "raise RuntimeError('a module of the project was imported')",
    "redis.py": "raise RuntimeError('a module of the project was imported')",
    "my_analyses.py": """
from millstream import Context, analysis

@analysis()
async def shout(ctx: Context, text: str) -> str:
    await ctx.emit(text)
    return text.upper()
""",
    "use.py": """
import asyncio, sys
from millstream import Client

async def main():
    async with Client(sys.argv[1]) as client:
        job = await client.submit("shout", {"text": "hello"})
        print(await job.done())

asyncio.run(main())
""",
    "test_mine.py": """
import asyncio
from my_analyses import shout

def test_it_shouts():
    class Context:
        async def emit(self, value): assert value == "hello"
    assert asyncio.run(shout(Context(), "hello")) == "HELLO"
""",
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


async def run(project: Path, *arguments: str) -> tuple[int, str]:
    """Run Python in the project: the exit code, and what was printed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, cwd=project, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    async with asyncio.timeout(45):
        said, _ = await process.communicate()
    return process.returncode or 0, said.decode()


@pytest.mark.parametrize("named", ["my_analyses", "./my_analyses.py"])
async def test_everything_runs_there(project: Path, own_processes: Processes, named: str) -> None:
    port = free_port()
    command = Path(sys.executable).with_name("millstream")
    up = Process(
        ["env", "-C", str(project), str(command), "up", "--port", str(port), "--workers", "1"],
        {"MILLSTREAM_ANALYSES": named},
        project / "log",
        f"http://127.0.0.1:{port}",
    )
    own_processes.started.append(up)
    await up.start()
    await own_processes.answers(up)
    assert await run(project, "use.py", up.ws) == (0, "HELLO\n"), up.log.read_text()
    up.signal(signal.SIGINT)
    assert await up.ended() == 0


async def test_an_analysis_is_tested_like_any_function(project: Path) -> None:
    code, said = await run(project, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull, "test_mine.py")
    assert (code, "1 passed" in said) == (0, True), said
