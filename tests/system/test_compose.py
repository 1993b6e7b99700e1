"""The project as operators run it: compose.yaml on a real engine, workers scaled while they are busy."""

import asyncio
import json
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from millstream.client.client import Client, Event, Job
from millstream.command.supervisor import DIRECT
from millstream.store.embedded import free_port

ROOT = Path(__file__).parents[2]
PROJECT = f"millstream-test-{os.getpid()}"
OVERRIDE = os.environ.get("MILLSTREAM_COMPOSE_OVERRIDE")

pytestmark = pytest.mark.timeout(420)


class Compose:
    """One project of its own, on a port of its own."""

    def __init__(self) -> None:
        self.port = free_port()
        files = [ROOT / "compose.yaml", *([Path(OVERRIDE)] if OVERRIDE else [])]
        self._command = ["docker", "compose", "-p", PROJECT, *(part for file in files for part in ("-f", str(file)))]
        self._environment = {**os.environ, "MILLSTREAM_PORT": str(self.port), "MILLSTREAM_LEASE_S": "3"}

    def run(self, *arguments: str) -> str:
        done = subprocess.run(
            [*self._command, *arguments], env=self._environment, cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    async def later(self, *arguments: str) -> None:
        await asyncio.to_thread(self.run, *arguments)

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/ws"


@pytest.fixture(scope="module")
def compose() -> Iterator[Compose]:
    if not shutil.which("docker") or subprocess.run(["docker", "info"], capture_output=True, check=False).returncode:
        assert not os.environ.get("CI"), "CI must have an engine to run compose on"
        pytest.skip("there is no container engine here")
    project = Compose()
    try:
        project.run("up", "--detach", "--build", "--wait", "--scale", "worker=3")
        yield project
    finally:
        project.run("down", "--volumes", "--rmi", "local", "--timeout", "3")


async def ended_once(jobs: list[Job]) -> list[list[Event]]:
    """Follow jobs to their ends; each log is whole, and ends once."""

    async def follow(job: Job) -> list[Event]:
        return [event async for event in job]

    logs = await asyncio.gather(*map(follow, jobs))
    for log in logs:
        assert [event["seq"] for event in log] == list(range(2, len(log) + 2))
        assert [event["type"] for event in log if event["type"] in ("succeeded", "failed", "cancelled")] == [
            "succeeded"
        ]
    return logs


def workers(logs: list[list[Event]]) -> Counter[str]:
    return Counter(event["data"]["worker"] for log in logs for event in log if event["type"] == "started")


async def test_all_workers_answer_jobs_from_outside(compose: Compose) -> None:
    async with Client(compose.url) as client:
        jobs = [await client.submit("process", {"text": str(n), "delay_s": 0.2}) for n in range(600)]
        logs = await ended_once(jobs)
    assert len(workers(logs)) == 3


async def test_scaling_down_while_busy_loses_nothing_and_uses_no_attempt(compose: Compose) -> None:
    async with Client(compose.url) as client:
        jobs = [await client.submit("process", {"text": str(n), "delay_s": 2}, max_attempts=1) for n in range(250)]
        scaling = asyncio.create_task(compose.later("up", "--detach", "--no-recreate", "--scale", "worker=1"))
        logs = await ended_once(jobs)
        await scaling
    assert all(event["attempt"] <= 1 for log in logs for event in log)
    await compose.later("up", "--detach", "--no-recreate", "--wait", "--scale", "worker=3")


async def test_a_restarted_store_keeps_what_was_accepted(compose: Compose) -> None:
    async with Client(compose.url) as client:
        jobs = [await client.submit("process", {"text": str(n), "delay_s": 1}, max_attempts=9) for n in range(200)]
        await compose.later("restart", "redis")
        await ended_once(jobs)


async def test_the_parts_report_their_health(compose: Compose) -> None:
    await compose.later("up", "--detach", "--no-recreate", "--wait", "--scale", "worker=3")
    with await asyncio.to_thread(DIRECT.open, f"http://127.0.0.1:{compose.port}/readyz") as answer:
        assert answer.status == 200
    found = [json.loads(line) for line in compose.run("ps", "--format", "json").splitlines()]
    assert Counter(part["Service"] for part in found) == {"redis": 1, "api": 1, "worker": 3}
    assert {part["Health"] for part in found} == {"healthy"}
