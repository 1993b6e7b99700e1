"""While the store is away, each request for it is told so after the patience, and each is answered when it is back."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from millstream.store.limits import Limits
from millstream.store.store import Store
from millstream_api.app import create_app, with_files
from millstream_api.settings import ApiSettings
from millstream_worker.loading import load_analyses
from tests.integration.rpc import Refused, rpc
from tests.integration.serving import serving
from tests.integration.web import problem, submit, web
from tests.processes import Process, Processes, until

PROCESS: dict[str, Any] = {"analysis": "process", "params": {"text": "x"}}


@dataclass(frozen=True)
class Alone:
    """An API whose store was killed, after it took one job."""

    api: Process
    store: Process
    job: str


@pytest.fixture
async def alone(own_processes: Processes, tmp_path: Path) -> AsyncIterator[Alone]:
    server = await own_processes.store()
    store = await Store(server.url, name="s", limits=Limits()).open(10)
    await store.advertise([analysis.advertisement(60) for analysis in load_analyses("").values()])
    await store.close()
    settings = ApiSettings(redis_url=server.url, store_patience_s=0.2, data_dir=tmp_path)
    async with serving(with_files(create_app(settings)), lifespan="on") as url:
        api = replace(server, url=url)
        async with web(api) as http:
            job = await submit(http, **PROCESS)
        await server.kill()
        yield Alone(api, server, job)


async def test_http_answers_503_to_all_that_needs_the_store_and_goes_on_when_it_is_back(alone: Alone) -> None:
    job = f"/jobs/{alone.job}"

    async with web(alone.api) as http:

        async def ask() -> list[httpx.Response]:
            paths = ["/jobs", "/jobs?status=queued", job, f"{job}/result", f"{job}/events", "/workers", "/queues"]
            reads = [http.get(path) for path in paths]
            return await asyncio.gather(*reads, http.post("/jobs", json=PROCESS), http.delete(job))

        for answer in await ask():
            problem(answer, "store_unavailable")
            assert answer.headers["retry-after"] == "1"
        assert (await http.get("/analyses")).status_code == 200, "which this process remembers"
        await alone.store.start()

        async def back() -> bool:
            return (await http.get("/jobs")).status_code == 200

        await until(back, what="the list of jobs")
        (listed,) = (await http.get("/jobs")).json()
        assert (listed["job"], listed["status"]) == (alone.job, "queued")
        for answer in await ask():
            assert answer.status_code < 500, answer.text


async def test_the_socket_says_so_for_each_method_and_stays_open(alone: Alone) -> None:
    async with rpc(alone.api) as client:
        for method, params in {
            "job.submit": PROCESS, "job.get": {"job": alone.job}, "job.attach": {"job": alone.job},
            "job.cancel": {"job": alone.job},
        }.items():  # fmt: skip
            with pytest.raises(Refused) as caught:
                await client.call(method, **params)
            assert (caught.value.code, caught.value.data["type"]) == (-32033, "/problems/store_unavailable"), method
            assert caught.value.data["retry_after_s"] == 1
        assert await client.call("ping") == {}
