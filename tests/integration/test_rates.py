"""How much an owner may submit: a rate over all API processes, jobs in flight, and the depth of a queue."""

import asyncio
import math
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
import redis.asyncio as redis

from millstream.apikeys import new_key, write_keys
from millstream.protocol.errors import Problem
from millstream.store import keys
from millstream.store.limits import Limits
from millstream.store.store import Store, Submitted
from tests.integration.conftest import ANALYSES, Client, database
from tests.integration.jobs import a_job
from tests.integration.rpc import Refused, rpc
from tests.integration.web import problem, submit, web
from tests.processes import Process, Processes

RATE, BURST, IN_FLIGHT, DEPTH = 0.01, 10, 6, 8  # so slow that no token comes back while a test runs
POLICY = '"submit";q=10;w=1000'
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
    async with limited.web("ann") as here, limited.web("ann", 1) as there, limited.web("bob") as bob:
        answers = await asyncio.gather(*(http.post("/jobs", json=body) for _ in range(20) for http in (here, there)))
        accepted = [answer for answer in answers if answer.status_code == 202]
        refused = [answer for answer in answers if answer.status_code != 202]
        assert len(accepted) == BURST
        for answer in refused:
            problem(answer, "rate_limited")
            assert answer.headers["ratelimit-policy"] == POLICY
            assert answer.headers["ratelimit"] == '"submit";r=0;t=100'
            wait_s = answer.json()["retry_after_s"]
            assert 0 < wait_s <= 100
            assert answer.headers["retry-after"] == str(math.ceil(wait_s))
        for answer in accepted:
            assert answer.headers["ratelimit-policy"] == POLICY
        assert sorted(map(left, accepted)) == list(range(BURST))
        assert (await bob.post("/jobs", json=body)).status_code == 202, "another owner is not held up"


def left(answer: httpx.Response) -> int:
    """The submissions that an answer says are left."""
    return int(answer.headers["ratelimit"].removeprefix('"submit";r=').partition(";")[0])


async def test_the_rate_holds_on_the_socket_too(limited: Limited) -> None:
    headers = {"Authorization": f"Bearer {limited.keys['cem']}"}
    async with rpc(limited.apis[0], additional_headers=headers) as client:
        calls = (client.call("job.submit", analysis="process", params={"text": "x"}) for _ in range(40))
        answers = await asyncio.gather(*calls, return_exceptions=True)
    refused = [answer for answer in answers if isinstance(answer, Refused)]
    assert len(refused) == 40 - BURST
    for answer in refused:
        assert (answer.code, answer.data["type"]) == (-32029, "/problems/rate_limited")
        assert answer.data["retry_after_s"] > 0


async def test_a_duplicate_costs_nothing_of_the_rate(limited: Limited) -> None:
    body = {"analysis": "process", "params": {"text": "x"}, "key": "again"}
    async with limited.web("dee") as http:
        answers = [await http.post("/jobs", json=body) for _ in range(2 * BURST)]
    assert [answer.status_code for answer in answers] == [202] * 2 * BURST
    assert {left(answer) for answer in answers} == {BURST - 1}


@pytest.fixture
async def slow(store: Store) -> AsyncIterator[Store]:
    """The store, with room for three submissions at once."""
    slow = await Store(store.pipeline.url, name="slow", limits=Limits(submit_rate=RATE, submit_burst=3)).open(10)
    yield slow
    await slow.close()


async def let_pass(client: Client, seconds: int) -> None:
    """As if so much time had passed since the owner's last submission."""
    await client.hincrby(f"{keys.BUCKET}ann", "at", -1000 * seconds)


async def accepted(slow: Store) -> int:
    """How many of ten submits come through; the others are refused for the rate."""
    outcomes = await asyncio.gather(*(slow.submit(a_job(owner="ann")) for _ in range(10)), return_exceptions=True)
    refused = [outcome for outcome in outcomes if not isinstance(outcome, Submitted)]
    assert {outcome.slug for outcome in refused if isinstance(outcome, Problem)} == {"rate_limited"}
    return len(outcomes) - len(refused)


async def test_what_an_owner_may_submit_comes_back_with_time_and_never_exceeds_the_burst(
    slow: Store, client: Client
) -> None:
    assert await accepted(slow) == 3
    await let_pass(client, 250)
    assert await accepted(slow) == 2
    await let_pass(client, 60)
    assert await accepted(slow) == 1, "half a submission was left"
    await let_pass(client, 86_400)
    assert await accepted(slow) == 3


async def test_a_refused_submit_is_told_when_there_is_room_again(slow: Store, client: Client) -> None:
    await accepted(slow)
    await let_pass(client, 50)
    with pytest.raises(Problem) as caught:
        await slow.submit(a_job(owner="ann"))
    assert caught.value.retry_after_s is not None
    assert 0 < caught.value.retry_after_s <= 50


async def test_what_was_submitted_is_remembered_until_all_of_it_has_come_back(slow: Store, client: Client) -> None:
    assert await accepted(slow) == 3
    assert await client.pttl(f"{keys.BUCKET}ann") > 250_000


async def test_a_clock_that_is_set_back_costs_no_submissions(slow: Store, client: Client) -> None:
    await slow.submit(a_job(owner="ann"))
    await let_pass(client, -3600)
    assert await accepted(slow) == 2


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

        lane = keys.lane()
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
