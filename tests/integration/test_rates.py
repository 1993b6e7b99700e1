"""How much an owner may submit: a rate over all API processes, jobs in flight, and the depth of a queue."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
import redis.asyncio as redis

from millstream.apikeys import new_key, write_keys
from millstream.store import keys
from tests.integration.conftest import ANALYSES, database
from tests.integration.rpc import Refused, rpc
from tests.integration.web import problem, submit, web
from tests.processes import Process, Processes

RATE, BURST, IN_FLIGHT, DEPTH = 5, 10, 6, 8
LATER = {"delay_s": 600}


@dataclass(frozen=True)
class Limited:
    """Two API processes with a limited rate, a third with few jobs in flight; and owners by name."""

    store: Process
    apis: list[Process]
    keys: dict[str, str]

    def web(self, owner: str, api: int = 0) -> httpx.AsyncClient:
        return web(self.apis[api], self.keys[owner])


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def limited(
    valkey: Process, processes: Processes, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Limited]:
    store = database(valkey, 9)
    path: Path = tmp_path_factory.mktemp("rates") / "keys.json"
    made = {
        name: new_key(name, ["submit", "read", "admin"], None) for name in ("ann", "bob", "cem", "dee", "eve", "fay")
    }
    write_keys(path, [key for _, key in made.values()])
    settings = {
        "MILLSTREAM_API_KEYS_FILE": str(path),
        "MILLSTREAM_SUBMIT_RATE": str(RATE),
        "MILLSTREAM_SUBMIT_BURST": str(BURST),
    }
    few = {
        "MILLSTREAM_OWNER_IN_FLIGHT": str(IN_FLIGHT),
        "MILLSTREAM_QUEUE_DEPTH": str(DEPTH),
        "MILLSTREAM_SUBMIT_RATE": "1000",
        "MILLSTREAM_SUBMIT_BURST": "1000",
    }
    *apis, worker = await asyncio.gather(
        processes.api(store, None, **settings),
        processes.api(store, None, **settings),
        processes.api(store, None, **few, MILLSTREAM_API_KEYS_FILE=str(path)),
        processes.worker(store, MILLSTREAM_ANALYSES=ANALYSES),
    )
    yield Limited(store, apis, {name: text for name, (text, _) in made.items()})
    await asyncio.gather(*(process.kill() for process in (*apis, worker)))


async def test_a_rate_holds_over_two_api_processes_and_says_when_to_come_back(limited: Limited) -> None:
    body = {"analysis": "process", "params": {"text": "x"}}
    loop = asyncio.get_running_loop()
    async with limited.web("ann") as here, limited.web("ann", 1) as there, limited.web("bob") as bob:
        began = loop.time()
        answers = await asyncio.gather(*(http.post("/jobs", json=body) for _ in range(20) for http in (here, there)))
        took = loop.time() - began
        accepted = [answer for answer in answers if answer.status_code == 202]
        refused = [answer for answer in answers if answer.status_code != 202]
        assert BURST <= len(accepted) <= BURST + took * RATE + 1
        for answer in refused:
            problem(answer, "rate_limited")
            assert answer.headers["ratelimit-policy"] == f'"submit";q={BURST};w={BURST // RATE}'
            assert answer.headers["ratelimit"].startswith('"submit";r=0;')
            assert answer.headers["retry-after"] == "1"
            assert 0 < answer.json()["retry_after_s"] <= 1
        for answer in accepted:
            assert answer.headers["ratelimit-policy"] == f'"submit";q={BURST};w={BURST // RATE}'
            left = int(answer.headers["ratelimit"].removeprefix('"submit";r=').partition(";")[0])
            assert 0 <= left < BURST
        assert (await bob.post("/jobs", json=body)).status_code == 202, "another owner is not held up"


async def test_the_rate_holds_on_the_socket_too(limited: Limited) -> None:
    headers = {"Authorization": f"Bearer {limited.keys['cem']}"}
    async with rpc(limited.apis[0], additional_headers=headers) as client:
        calls = (client.call("job.submit", analysis="process", params={"text": "x"}) for _ in range(40))
        answers = await asyncio.gather(*calls, return_exceptions=True)
    refused = [answer for answer in answers if isinstance(answer, Refused)]
    assert 20 <= len(refused) <= 40 - BURST
    for answer in refused:
        assert (answer.code, answer.data["type"]) == (-32029, "/problems/rate_limited")
        assert answer.data["retry_after_s"] > 0


async def test_a_duplicate_costs_nothing_of_the_rate(limited: Limited) -> None:
    body = {"analysis": "process", "params": {"text": "x"}, "key": "again"}
    async with limited.web("dee") as http:
        answers = [await http.post("/jobs", json=body) for _ in range(2 * BURST)]
    assert [answer.status_code for answer in answers] == [202] * 2 * BURST
    for answer in answers:
        left = int(answer.headers["ratelimit"].removeprefix('"submit";r=').partition(";")[0])
        assert BURST - 1 <= left <= BURST


async def test_an_owners_jobs_in_flight_and_a_queues_depth_are_limited(limited: Limited) -> None:
    async with (
        limited.web("eve", 2) as http,
        limited.web("fay", 2) as fay,
        redis.Redis.from_url(limited.store.url) as store,
    ):
        jobs = [await submit(http, "process", {"text": "x"}, **LATER) for _ in range(IN_FLIGHT)]
        later = {"analysis": "process", "params": {"text": "x"}, **LATER}
        answer = await http.post("/jobs", json=later)
        assert problem(answer, "too_many_in_flight")["detail"].startswith(str(IN_FLIGHT))
        assert answer.headers["retry-after"]
        assert answer.headers["ratelimit"].startswith('"submit";r=')
        assert (await http.delete(f"/jobs/{jobs[0]}")).status_code == 202
        jobs[0] = await submit(http, "process", {"text": "x"}, **LATER)

        lane = keys.lane("default", "default")
        while await store.zcard(lane) < DEPTH:
            await submit(fay, "process", {"text": "x"}, **LATER)
        answer = await fay.post("/jobs", json=later)
        problem(answer, "queue_full")
        assert answer.headers["retry-after"]
        assert answer.headers["ratelimit"].startswith('"submit";r=')
        assert (await fay.post("/jobs", json={**later, "priority": "low"})).status_code == 202, "another lane has room"
        listed = (await fay.get("/jobs", params={"status": "queued"})).json()
        for job in (*jobs, *(snapshot["job"] for snapshot in listed)):
            await http.delete(f"/jobs/{job}")
            await fay.delete(f"/jobs/{job}")
        assert await store.zcard(lane) == 0
