"""An API that is told to end, and one whose store is away."""

import asyncio
import resource
import signal
from pathlib import Path

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from millstream_api.jobs.hub import State
from tests.integration.conftest import Stack
from tests.integration.jobs import a_job
from tests.integration.rpc import Refused, plain, rpc
from tests.integration.web import JSONL, SSE, following, problem, submit, web
from tests.integration.within import within
from tests.processes import Process, Processes, until


async def test_a_server_that_ends_says_so_gives_the_answers_it_owes_and_closes_with_1012(
    stack: Stack, own_processes: Processes, tmp_path: Path
) -> None:
    api = await own_processes.api(stack.store, MILLSTREAM_RECONNECT_MS="500")
    gate = tmp_path / "gate"
    async with (
        httpx.AsyncClient(base_url=api.url) as http,
        plain(api, "?analysis=wait_for") as owed,
        rpc(api) as told,
        rpc(stack.api) as elsewhere,
    ):
        await owed.send(str(gate))
        job = await told.submit("hold", {"gate": str(gate)}, on_disconnect="cancel")
        await told.until(job, "log")
        assert (await http.get("/readyz")).status_code == 200

        api.signal(signal.SIGTERM)
        await told.wait(lambda: told.close_code is not None, what="the close")
        assert told.close_code == 1012
        assert told.frames[-1]["method"] == "server.drain"
        assert 0 <= told.frames[-1]["params"]["reconnect_after_ms"] <= 500

        ready = await http.get("/readyz")
        assert (ready.status_code, ready.json()["type"]) == (503, "/problems/draining")
        assert ready.headers["retry-after"] == "1"
        assert (await http.get("/healthz")).status_code == 200
        async with connect(api.ws) as late:
            with pytest.raises(ConnectionClosed):
                await late.recv()
            assert late.close_code == 1012
        await owed.send(str(gate))

        await elsewhere.call("job.attach", job=job)
        gate.touch()
        assert [await owed.recv(), str(await owed.recv())[:6]] == [str(gate), "Error:"]
        with pytest.raises(ConnectionClosed):
            await owed.recv()
        assert owed.close_code == 1012
        assert (await elsewhere.end(job))[-1]["type"] == "succeeded", "the job ran on without its server"
    assert api.running is not None

    async def ended() -> bool:
        assert api.running is not None
        return api.running.returncode is not None

    await until(ended, what="the end of the process")
    assert api.running.returncode == 0


async def test_while_the_store_is_away_requests_fail_in_words_and_afterwards_all_is_well(tmp_path: Path) -> None:
    async with Processes(tmp_path) as processes:
        store = await processes.store()
        api, worker = await asyncio.gather(
            processes.api(store, MILLSTREAM_STORE_PATIENCE_S="0.2"), processes.worker(store, MILLSTREAM_LEASE_S="1")
        )
        async with httpx.AsyncClient(base_url=api.url) as http, rpc(api) as client, plain(api) as simple:
            job = await client.submit("process", {"text": "long", "delay_s": 1})
            await client.until(job, "started")
            store.signal(signal.SIGTERM)  # with all that it was given: a kill may lose the last second
            await store.ended()
            for method, params in (
                ("job.submit", {"analysis": "process", "params": {"text": "x"}}),
                ("job.get", {"job": job}),
                ("job.attach", {"job": job}),
                ("job.cancel", {"job": job}),
            ):
                with pytest.raises(Refused) as caught:
                    await client.call(method, **params)
                assert (caught.value.code, caught.value.data["status"]) == (-32033, 503)
            assert await client.call("ping") == {}
            await simple.send("hello")
            assert str(await simple.recv()).startswith("Error: The store cannot be reached")
            ready = await http.get("/readyz")
            assert (ready.status_code, ready.json()["type"]) == (503, "/problems/store_unavailable")
            assert (await http.get("/healthz")).status_code == 200
            body = {"analysis": "process", "params": {"text": "x"}}
            for answer in await asyncio.gather(
                http.post("/jobs", json=body), http.post("/jobs", json=body, headers={"Accept": SSE}),
                http.get("/jobs"), http.get(f"/jobs/{job}"), http.get(f"/jobs/{job}/events"),
                http.get(f"/jobs/{job}/result"), http.delete(f"/jobs/{job}"), http.get("/workers"), http.get("/queues"),
            ):  # fmt: skip
                problem(answer, "store_unavailable")
                assert answer.headers["retry-after"] == "1"

            await store.start()
            await processes.answers(api)
            assert (await client.end(job))[-1]["data"]["result"] == "Processed data: long"
            await simple.send("hello")
            assert await simple.recv() == "Processed data: hello"
        assert worker.running is not None
        assert worker.running.returncode is None, "the worker lived through it"


async def test_while_the_store_is_away_readers_that_are_behind_hold_up_no_answer(own_processes: Processes) -> None:
    store = await own_processes.store()
    async with within(store, store_patience_s=3600) as here, rpc(here.api) as client:
        job = a_job()
        await here.commands.stores.only.submit(job)
        await client.call("job.attach", job=job.id)
        await client.seen(job.id, 1)
        store.signal(signal.SIGTERM)  # with all that it was given: a kill may lose the last second
        await store.ended()
        here.commands.relay.hub.resync(lambda _: True)
        for _ in range(3):
            assert await client.call("ping") == {}
        assert [follower.state for follower in here.followers] == [State.BEHIND]
        await store.start()

        async def caught_up() -> bool:
            return [follower.state for follower in here.followers] == [State.LIVE]

        await until(caught_up, what="the log to be read when the store is back")


async def test_a_server_that_ends_does_not_send_all_its_clients_back_at_the_same_time(valkey: Process) -> None:
    async with within(valkey, reconnect_ms=1_000_000) as here:
        async with rpc(here.api) as one, rpc(here.api) as two, rpc(here.api) as three:
            sockets = (one, two, three)
            for socket in sockets:
                await socket.call("ping")
            await here.sockets.drain()
            for socket in sockets:
                await socket.wait(lambda: socket.close_code is not None, what="the close")  # noqa: B023
            waits = [socket.frames[-1]["params"]["reconnect_after_ms"] for socket in sockets]
        assert all(0 <= wait <= 1_000_000 for wait in waits)
        assert len(set(waits)) > 1


async def test_streams_of_events_end_in_order_when_the_server_does_and_say_when_to_come_back(
    stack: Stack, own_processes: Processes
) -> None:
    api = await own_processes.api(stack.store, MILLSTREAM_RECONNECT_MS="1000000")
    async with web(stack.api) as elsewhere, web(api) as http:
        job = await submit(elsewhere, "hold")
        streams = [following(http, job, accept) for accept in (SSE, SSE, SSE, JSONL)]
        async with streams[0] as first, streams[1] as second, streams[2] as third, streams[3] as lines:
            for stream in (first, second, third):
                while not (await stream.next()).startswith("event: log"):
                    pass
            await lines.until("log")
            api.signal(signal.SIGTERM)
            rests = [[line async for line in stream.lines if line] for stream in (first, second, third, lines)]
        assert rests.pop() == [], "JSON Lines have no word for it"
        assert not [line for rest in rests for line in rest if line.startswith("event: ")]
        waits = [rest[-1].partition(": ") for rest in rests]
        assert {name for name, _, _ in waits} == {"retry"}
        assert all(0 <= int(wait) <= 1_000_000 for _, _, wait in waits)
        assert len({wait for _, _, wait in waits}) > 1, "not all at the same time"
        await elsewhere.delete(f"/jobs/{job}")


async def test_a_drain_ends_what_follows_a_file_and_takes_no_longer_than_it_may(
    stack: Stack, own_processes: Processes, tmp_path: Path
) -> None:
    (tmp_path / "log.txt").write_text("line\n")
    api = await own_processes.api(
        stack.store, MILLSTREAM_DATA_DIR=str(tmp_path), MILLSTREAM_DRAIN_S="0.5", MILLSTREAM_FOLLOW_S="0.05"
    )
    async with httpx.AsyncClient(base_url=api.url, trust_env=False) as http, plain(api, "?analysis=hold") as held:
        await held.send(str(tmp_path / "never"))
        async with http.stream("GET", "/files/log.txt?follow=true") as following:
            lines = following.aiter_lines()
            assert await anext(lines) == "line"
            api.signal(signal.SIGTERM)
            assert [line async for line in lines] == [], "the stream ends, and in order"
        assert await api.ended() == 0, "though the answer that the socket waits for never comes"
    assert "/files/log.txt" not in api.log.read_text()


async def test_an_api_takes_as_many_files_as_it_may(stack: Stack, own_processes: Processes) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        api = await own_processes.api(stack.store)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert resource.prlimit(api.pid, resource.RLIMIT_NOFILE) == (hard, hard)


async def test_a_drain_waits_for_no_async_route(stack: Stack, own_processes: Processes) -> None:
    api = await own_processes.api(stack.store)
    reader, writer = await asyncio.open_connection("127.0.0.1", int(api.url.rpartition(":")[2]))
    writer.write(b"GET /async_route?delay=60 HTTP/1.1\r\nHost: x\r\n\r\n")
    async with httpx.AsyncClient(base_url=api.url, trust_env=False) as http:  # a later request, so the other has come
        assert (await http.get("/healthz")).status_code == 200
    api.signal(signal.SIGTERM)
    answer = (await asyncio.wait_for(reader.read(), 10)).decode().lower()
    assert answer.startswith("http/1.1 503 ")
    assert '"type":"/problems/draining"' in answer
    assert "\r\nretry-after: 1\r\n" in answer
    writer.close()
    assert api.running is not None
    assert await asyncio.wait_for(api.running.wait(), 10) == 0
    assert '"level": "error"' not in api.log.read_text()
