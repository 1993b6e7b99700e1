"""The API is killed, or told to leave: clients come back, and have missed nothing."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from millstream.client.client import Client, Job
from millstream.store import keys
from tests.processes import Process, Processes, until
from tests.system.stack import start
from tests.system.witness import JOB_FAILURES, Json, check_whole, logged, witness


@asynccontextmanager
async def plain(api: Process, query: str = "") -> AsyncIterator[ClientConnection]:
    async with connect(api.ws + query, max_size=None, compression=None) as socket:
        yield socket


async def test_a_client_that_attaches_with_its_cursor_after_a_kill_misses_nothing(processes: Processes) -> None:
    stack = await start(processes)
    async with witness(stack.api) as before:
        job = await before.submit("counts", {"to": 1000, "pause_s": 0.002})
        await before.until([job], "chunk", times=100)
        await stack.api.kill()
    heard = before.of(job)
    await stack.restart(stack.api)
    async with witness(stack.api) as after:
        snapshot = await after.attach(job, heard[-1]["cursor"])
        assert snapshot["replay_from"] == heard[-1]["cursor"]
        await after.until([job], *JOB_FAILURES)
        assert not after.notices
    end = check_whole(heard + after.of(job), after=1)
    assert end["data"]["result"] == 1000
    assert [event["data"][0] for event in (heard + after.of(job)) if event["type"] == "chunk"] == list(range(1, 1001))


async def test_the_python_client_comes_back_by_itself(processes: Processes) -> None:
    stack = await start(processes)
    async with Client(stack.api.ws) as client:
        jobs = [await client.submit("counts", {"to": 800, "pause_s": 0.005}) for _ in range(5)]
        heard: dict[str, list[Json]] = {job.id: [] for job in jobs}

        async def listen() -> None:
            for job in jobs:
                async for event in job:
                    heard[job.id].append(event)

        listening = asyncio.create_task(listen())
        for _ in range(3):
            await stack.api.kill()
            await stack.restart(stack.api)
            job = await client.submit("process", {"text": "back"})
            assert await job.done() == "Processed data: back"
        await listening
        assert client.gaps == 0
    for events in heard.values():
        assert check_whole(events, after=1)["data"]["result"] == 800


async def test_what_was_submitted_while_the_api_was_killed_is_one_job_each(processes: Processes) -> None:
    stack = await start(processes)
    jobs: dict[int, Job] = {}
    numbers = iter(range(400))
    async with Client(stack.api.ws) as client:

        async def submit() -> None:
            for n in numbers:
                jobs[n] = await client.submit("process", {"text": str(n), "delay_s": 0.01})

        submitting = asyncio.gather(*(submit() for _ in range(20)))
        for enough in (50, 150, 250):

            async def submitted(enough: int = enough) -> bool:
                return len(jobs) >= enough

            await until(submitted, what=f"{enough} jobs")
            assert len(jobs) < 400
            await stack.api.kill()
            await stack.restart(stack.api)
        await submitting
        for n, job in jobs.items():
            assert await job.done() == f"Processed data: {n}"
    async with stack.client() as store:
        assert len(await store.keys(keys.JOB + "*")) == len({job.id for job in jobs.values()}) == 400


async def test_a_rolling_restart_goes_unnoticed_by_those_who_submit(processes: Processes) -> None:
    stack = await start(processes)
    jobs: list[Job] = []
    restarting = True
    async with Client(stack.api.ws) as client:

        async def submit() -> None:
            while restarting:
                jobs.append(job := await client.submit("process", {"text": "", "delay_s": 0.01}))
                assert await job.done() == "Processed data: "

        submitting = [asyncio.create_task(submit()) for _ in range(50)]
        for _ in range(3):
            stack.api.signal(signal.SIGTERM)
            assert await stack.api.ended() == 0
            await stack.restart(stack.api)
        restarting = False
        await asyncio.gather(*submitting)
    async with stack.client() as store:
        assert len(await store.keys(keys.JOB + "*")) == len({job.id for job in jobs}) == len(jobs)


async def test_a_leaving_api_says_so_and_closes_with_1012(processes: Processes) -> None:
    stack = await start(processes, api={"MILLSTREAM_RECONNECT_MS": "1234"})
    async with witness(stack.api) as client, plain(stack.api) as idle:
        job = await client.submit("counts", {"to": 500, "pause_s": 0.005})
        await client.until([job], "chunk", times=10)
        stack.api.signal(signal.SIGTERM)
        await asyncio.wait_for(client.socket.wait_closed(), 10)
        with pytest.raises(ConnectionClosed):
            await asyncio.wait_for(idle.recv(), 10)
        assert await stack.api.ended() == 0
    [notice] = client.notices
    assert notice["method"] == "server.drain"
    assert 0 <= notice["params"]["reconnect_after_ms"] <= 1234
    assert (client.socket.close_code, idle.close_code) == (1012, 1012)
    await stack.restart(stack.api)
    heard = client.of(job)
    async with witness(stack.api) as after:
        await after.attach(job, heard[-1]["cursor"])
        await after.until([job], *JOB_FAILURES)
    check_whole(heard + after.of(job), after=1)


async def test_a_leaving_api_first_sends_the_answers_that_it_owes(processes: Processes) -> None:
    stack = await start(processes)
    async with plain(stack.api, "?analysis=later") as client, httpx.AsyncClient(base_url=stack.api.url) as http:
        for n in range(20):
            await client.send(str(n))
        async with stack.client() as store:

            async def all_accepted() -> bool:
                return len(await store.keys(keys.JOB + "*")) == 20

            await until(all_accepted, what="all of them to be jobs")
        assert (await http.get("/readyz")).status_code == 200
        stack.api.signal(signal.SIGTERM)
        while (ready := await http.get("/readyz")).status_code == 200:
            pass
        assert ready.status_code == 503
        assert ready.json()["type"] == "/problems/draining"
        assert (await http.get("/healthz")).status_code == 200
        async with connect(stack.api.ws) as late:
            with pytest.raises(ConnectionClosed):
                await late.recv()
            assert late.close_code == 1012
        answers = [await asyncio.wait_for(client.recv(), 10) for _ in range(20)]
        with pytest.raises(ConnectionClosed):
            await asyncio.wait_for(client.recv(), 10)
        assert answers == [str(n) for n in range(20)]
        assert client.close_code == 1012
        assert await stack.api.ended() == 0


async def test_jobs_go_on_while_no_api_is_there(processes: Processes) -> None:
    stack = await start(processes)
    async with witness(stack.api) as client:
        job = await client.submit("counts", {"to": 100, "pause_s": 0.01})
        await client.until([job], "started")
        await stack.api.kill()
    end = ""
    while end not in JOB_FAILURES:
        end = (await logged(stack.store, job))[-1]["type"]
    assert check_whole(await logged(stack.store, job))["data"]["result"] == 100
