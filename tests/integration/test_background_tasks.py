"""Every background task of both tiers goes on after an error, and what fails can be seen from outside."""

import asyncio
from threading import Event
from typing import Any

import httpx
import pytest

from millstream.background import Health
from millstream.protocol.fleet import Heartbeat
from millstream.store import keys
from millstream_api import app as api
from millstream_api.files.tus import Tus
from millstream_api.jobs.commands import Commands
from millstream_api.jobs.relay import Relay
from millstream_api.jobs.websocket import Sockets
from millstream_api.settings import ApiSettings
from millstream_api.wire.population import Population
from millstream_worker.leases import Leases
from tests.integration.conftest import Client
from tests.processes import Process, Processes, until

API_TASKS = [
    (Commands, "refresh", "read the catalog"),
    (Commands, "expire", "expire jobs"),
    (Relay, "check", "check quiet logs"),
    (Sockets, "close_revoked", "close sockets of revoked keys"),
    (Population, "sweep", "end connections whose time is over"),
    (Tus, "sweep", "sweep unfinished uploads"),
    (api, "sweep", "sweep broken uploads"),
]


@pytest.mark.parametrize(("owner", "step", "task"), API_TASKS, ids=[task for _, _, task in API_TASKS])
async def test_a_task_of_the_api_goes_on(
    valkey: Process, client: Client, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, owner: Any, step: str, task: str
) -> None:
    heal, healed, real = asyncio.Event(), asyncio.Event(), getattr(owner, step)

    async def odd(*arguments: Any) -> None:
        if not heal.is_set():
            raise RuntimeError("an odd reply")
        await real(*arguments)
        healed.set()

    monkeypatch.setattr(owner, step, odd)
    settings = ApiSettings(redis_url=valkey.url, data_dir=tmp_path, check_s=0.05)
    app = api.create_app(settings)
    transport = httpx.ASGITransport(app)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://a") as http:

        async def failing() -> bool:
            return bool((await http.get("/readyz")).json() == {"status": "ready", "failing": [task]})

        async def well() -> bool:
            return bool((await http.get("/readyz")).json() == {"status": "ready"})

        await until(failing, what=f"{task!r} to be told as failing")
        heal.set()
        async with asyncio.timeout(10):
            await healed.wait()
        await until(well, what=f"{task!r} to be told as well")
        metrics = (await http.get("/metrics")).text
        assert f'millstream_background_failures_total{{task="{task}"}}' in metrics
        assert f'millstream_background_failing{{task="{task}"}}' not in metrics


async def test_every_task_of_the_api_is_tried(valkey: Process, client: Client, tmp_path: Any) -> None:
    app = api.create_app(ApiSettings(redis_url=valkey.url, data_dir=tmp_path))
    before = asyncio.all_tasks()
    async with app.router.lifespan_context(app):
        started = {task.get_name() for task in asyncio.all_tasks() - before}
        names = {name for name in started if not name.startswith(("Task-", "pipeline "))}
    assert names == {task for _, _, task in API_TASKS}


async def test_an_api_reads_the_catalog_once_the_store_answers_as_it_should(
    valkey: Process, client: Client, own_processes: Processes
) -> None:
    await client.set(keys.ANALYSES, "of another type")
    server = await own_processes.api(valkey)
    async with httpx.AsyncClient(base_url=server.url, trust_env=False) as http:

        async def failing() -> bool:
            return bool((await http.get("/readyz")).json().get("failing") == ["read the catalog"])

        async def known() -> bool:
            return [entry["name"] for entry in (await http.get("/analyses")).json()] == ["process", "text.stats"]

        await until(failing, what="the catalog to be told as failing")
        await client.delete(keys.ANALYSES)
        await own_processes.worker(valkey)
        await until(known, what="the catalog")
    assert "Traceback" in server.log.read_text() or "WRONGTYPE" in server.log.read_text()


@pytest.mark.parametrize(
    ("key", "task"),
    [
        (keys.ABORT, "abort for stock arq"),
        (keys.ANALYSES, "advertise again"),
        (keys.lane("default", "high"), "claim jobs"),
    ],
)
async def test_a_worker_tells_of_its_failing_tasks_in_its_heartbeat_and_goes_on(
    valkey: Process, client: Client, own_processes: Processes, key: str, task: str
) -> None:
    worker = await own_processes.worker(valkey, MILLSTREAM_LEASE_S="0.5")
    await client.set(key, "of another type")

    async def failures() -> int:
        beat = await client.get(keys.WORKER + worker.url)
        return Heartbeat.model_validate_json(beat).failures.get(task, 0) if beat else 0

    async def failed() -> bool:
        return await failures() > 0

    await until(failed, what="the failure to be told")
    await client.delete(key)

    async def works() -> bool:
        return "background task works again" in worker.log.read_text()

    await until(works, what="the task to work again")


def test_the_heartbeat_goes_on(valkey: Process, monkeypatch: pytest.MonkeyPatch) -> None:

    health, beats = Health(), Event()
    leases = Leases(
        valkey.url, "w", lease_s=0.3, stall_s=60, slots=1, queue="default", on_lost=lambda *_: None, health=health
    )

    def odd() -> None:
        if health.failures["heartbeat"] < 2:
            raise ValueError("an odd reply")
        beats.set()

    monkeypatch.setattr(leases, "_beat", odd)
    leases.start()
    assert beats.wait(20)
    leases.stop()
    assert (health.failures["heartbeat"], health.failing) == (2, {})
