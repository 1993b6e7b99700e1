"""Fairness between owners: an owner that floods a queue stands before the others with a few jobs only (fair_window)."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
import redis.asyncio as redis

from millstream.apikeys import new_key, write_keys
from millstream.store import keys
from millstream.store.limits import Limits
from millstream.store.store import Store
from tests.integration.conftest import ANALYSES, Client, database
from tests.integration.jobs import a_job, claim
from tests.integration.rpc import Rpc, rpc
from tests.integration.web import ended, events, following, submit, web
from tests.processes import Process, Processes, until

WINDOW = 10


@dataclass(frozen=True)
class Queue:
    """An API and one worker with one slot."""

    store: Process
    api: Process
    worker: Process
    keys: dict[str, str]

    def web(self, owner: str) -> httpx.AsyncClient:
        return web(self.api, self.keys[owner])

    def rpc(self, owner: str) -> Any:
        return rpc(self.api, additional_headers={"Authorization": f"Bearer {self.keys[owner]}"})


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def queue(
    valkey: Process, processes: Processes, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Queue]:
    store = database(valkey, 10)
    path: Path = tmp_path_factory.mktemp("fairness") / "keys.json"
    made = {name: new_key(name, ["submit", "read"], None) for name in ("ann", "bob", "cem")}
    write_keys(path, [key for _, key in made.values()])
    fair = {"MILLSTREAM_FAIR_WINDOW": str(WINDOW)}
    api, worker = await asyncio.gather(
        processes.api(store, None, MILLSTREAM_API_KEYS_FILE=str(path), **fair),
        processes.worker(store, MILLSTREAM_ANALYSES=ANALYSES, MILLSTREAM_MAX_JOBS="1", **fair),
    )
    yield Queue(store, api, worker, {name: text for name, (text, _) in made.items()})
    await asyncio.gather(api.kill(), worker.kill())


async def blocked(http: httpx.AsyncClient, gate: Path, **options: Any) -> str:
    """Take the one slot until the gate is there."""
    job = await submit(http, "hold", {"gate": str(gate)}, **options)
    async with following(http, job) as stream:
        await stream.until("started")
    return job


async def flood(client: Rpc, count: int, **options: Any) -> list[str]:
    return await asyncio.gather(*(client.submit("process", {"text": str(n)}, **options) for n in range(count)))


async def started(http: httpx.AsyncClient, jobs: list[str]) -> list[tuple[str, str]]:
    """When each job was started, and which."""
    found = []
    for job in jobs:
        (event,) = [event for event in await events(http, job) if event["type"] == "started"]
        found.append((event["at"], job))
    return found


async def test_a_job_of_another_owner_waits_for_a_window_of_a_flood_only(queue: Queue, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    async with queue.web("ann") as ann, queue.web("bob") as bob, queue.rpc("ann") as client:
        await blocked(ann, gate)
        floods = await flood(client, 500)
        others = [await submit(bob, "process", {"text": "b"}) for _ in range(3)]
        gate.touch()
        for job in floods:
            await client.end(job)
        for job in others:
            await ended(bob, job)
        firsts = {job: next(e["at"] for e in client.events(job) if e["type"] == "started") for job in floods}
        for at, _ in await started(bob, others):
            before = [job for job in floods if firsts[job] <= at]
            # The window, and in one millisecond several may start, whose order the times do not tell.
            assert len(before) <= WINDOW + 2 * len(others) + 5
        listed = (await ann.get("/jobs", params={"limit": 500, "analysis": "process"})).json()
        created = {snapshot["job"]: snapshot["created_at"] for snapshot in listed}
        assert set(created) == set(floods)
        order = [created[job] for job in sorted(floods, key=lambda job: (firsts[job], created[job]))]
        assert order == sorted(order), "an owner's own jobs run in their order"
        assert {client.types(job)[-1] for job in floods} == {"succeeded"}
    await leaves_nothing_waiting(queue)


async def test_jobs_of_several_owners_take_turns(queue: Queue, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    async with queue.web("ann") as ann, queue.rpc("ann") as a, queue.rpc("bob") as b, queue.rpc("cem") as c:
        blocker = await blocked(ann, gate)
        jobs = {"ann": await flood(a, 100), "bob": await flood(b, 100), "cem": await flood(c, 100)}
        gate.touch()
        await ended(ann, blocker)
        times = []
        for owner, client in (("ann", a), ("bob", b), ("cem", c)):
            for job in jobs[owner]:
                await client.end(job)
                times.append((next(e["at"] for e in client.events(job) if e["type"] == "started"), owner))
        times.sort()
        half = [owner for _, owner in times[:150]]
        for owner in jobs:
            assert half.count(owner) >= 30, "each has a fair part of the first half"
    await leaves_nothing_waiting(queue)


async def test_when_a_waiting_job_is_cancelled_the_next_moves_up(queue: Queue, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    async with queue.web("ann") as ann, redis.Redis.from_url(queue.store.url, decode_responses=True) as store:
        blocker = await blocked(ann, gate)
        jobs = [await submit(ann, "process", {"text": str(n)}) for n in range(WINDOW + 4)]
        lane = keys.lane()
        front, back = f"{keys.FRONT}{lane}:ann", keys.BACK + lane

        async def waits(wanted: list[str], behind: int) -> None:
            assert set(await store.zrange(front, 0, -1)) == set(wanted)
            assert set(await store.zrange(lane, 0, -1)) == {blocker, *wanted}
            assert await store.zcard(back) == behind

        await waits(jobs[:WINDOW], 4)
        await ann.delete(f"/jobs/{jobs[2]}")
        await waits([*jobs[:2], *jobs[3 : WINDOW + 1]], 3)
        await ann.delete(f"/jobs/{jobs[-1]}")  # from the back: no other moves up for it
        await waits([*jobs[:2], *jobs[3 : WINDOW + 1]], 2)
        gate.touch()
        left = [job for job in jobs if job not in (jobs[2], jobs[-1])]
        assert [(await ended(ann, job))["status"] for job in left] == ["succeeded"] * len(left)
        times = [at for at, _ in await started(ann, left)]
        assert times == sorted(times)
    await leaves_nothing_waiting(queue)


async def test_delayed_jobs_join_the_line_when_they_are_due(queue: Queue, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    async with queue.web("ann") as ann, queue.web("bob") as bob, queue.rpc("ann") as client:
        await blocked(ann, gate)
        late = await flood(client, 60, delay_s=0.3)
        first = (await ann.get(f"/jobs/{late[0]}")).json()
        assert first["status"] == "queued"

        async def due() -> bool:
            async with redis.Redis.from_url(queue.store.url) as store:
                seconds, micros = await store.time()
                lane = keys.lane()
                return int(await store.zcount(lane, 0, seconds * 1000 + micros // 1000)) == len(late)

        await until(due, what="the delayed jobs to be due")
        other = await submit(bob, "process", {"text": "b"})
        gate.touch()
        for job in late:
            await client.end(job)
        assert {client.types(job)[-1] for job in late} == {"succeeded"}
        ((at, _),) = await started(bob, [other])
        firsts = sorted(next(e["at"] for e in client.events(job) if e["type"] == "started") for job in late)
        assert len([time for time in firsts if time <= at]) <= WINDOW + 5, "a flood of delayed jobs is a flood too"
    await leaves_nothing_waiting(queue)


async def test_a_delayed_job_does_not_run_before_it_is_due(queue: Queue) -> None:
    async with queue.web("bob") as bob:
        job = await submit(bob, "process", {"text": "x"}, delay_s=0.5)
        early = await submit(bob, "process", {"text": "x"})
        await ended(bob, early)
        assert (await bob.get(f"/jobs/{job}")).json()["status"] == "queued"
        snapshot = await ended(bob, job)
        assert snapshot["status"] == "succeeded"
        assert ms(snapshot["started_at"]) - ms(snapshot["created_at"]) >= 500


@pytest.fixture
async def fair(store: Store) -> AsyncIterator[Store]:
    """The store, where one job of an owner may wait in a lane."""
    fair = await Store(store.pipeline.url, name="fair", limits=Limits(fair_window=1)).open(10)
    yield fair
    await fair.close()


async def test_jobs_that_ran_out_of_life_hold_no_place_in_the_line(fair: Store, client: Client) -> None:
    await client.zadd(f"{keys.FRONT}{keys.lane()}:ann", {"dead": 1})
    await fair.submit(a_job("alive", owner="ann"))
    assert await client.zrange(keys.lane(), 0, -1) == [b"alive"]
    assert await client.zrange(f"{keys.FRONT}{keys.lane()}:ann", 0, -1) == [b"alive"]


async def test_the_next_that_still_lives_moves_up_past_those_that_do_not(fair: Store, client: Client) -> None:
    for name in ("first", "dead", "dead too", "last"):
        await fair.submit(a_job(name, owner="ann"))
    await client.delete(f"{keys.JOB}dead", f"{keys.JOB}dead too")
    await fair.cancel("first", "ann", None)
    assert [job.id for job in await claim(fair)] == ["last"]
    assert not await client.exists(f"{keys.JOB}dead", f"{keys.JOB}dead too", f"{keys.BACK}{keys.lane()}")


async def test_jobs_at_the_back_of_the_line_are_told_of_as_waiting(fair: Store) -> None:
    for _ in range(3):
        await fair.submit(a_job(owner="ann"))
    assert (await fair.queues(["default"]))[0].by_priority == {"high": 0, "default": 3, "low": 0}


def ms(at: str) -> int:
    hours, minutes, seconds, millis = re.split("[:.]", at[11:-1])
    return ((int(hours) * 60 + int(minutes)) * 60 + int(seconds)) * 1000 + int(millis)


async def leaves_nothing_waiting(queue: Queue) -> None:
    """No job stands in a line any more; what else is in the store has a time to live, or is one of the fixed keys."""
    async with redis.Redis.from_url(queue.store.url, decode_responses=True) as store:

        async def idle() -> bool:
            return not await store.keys(f"{keys.LANE}*")

        await until(idle, what="the lanes to be empty")
        assert not await store.keys(f"{keys.FRONT}*")
        assert not await store.keys(f"{keys.BACK}*")
        fixed = (keys.WORKERS, keys.ANALYSES, keys.BELL)
        for name in await store.keys("*"):
            assert await store.pttl(name) > 0 or name.startswith(fixed), f"{name} stays for ever"


async def test_the_documented_keys_are_all_there_are(queue: Queue) -> None:
    async with queue.web("cem") as cem, redis.Redis.from_url(queue.store.url, decode_responses=True) as store:
        await submit(cem, "process", {"text": "x"}, key="one")
        held = [await submit(cem, "hold") for _ in range(WINDOW + 3)]
        documented = re.findall(r"^\| `([^`<…]+)", keys.__doc__ or "", re.MULTILINE)
        names = await store.keys("*")
        assert len(names) > 10
        for name in names:
            assert name.startswith(tuple(documented)), f"{name} is not in the table of shared/millstream/store/keys.py"
        for job in held:
            assert json.loads((await cem.delete(f"/jobs/{job}")).content)["status"] == "cancelled"
    await leaves_nothing_waiting(queue)
