"""What the API keeps for its readers: nothing for one that has left, though its request was still under way, and
nothing for a request that was refused.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from millstream.protocol.jobs import Status
from millstream.store.store import Store
from millstream_api.jobs.hub import State
from tests.integration.conftest import Stack
from tests.integration.jobs import running
from tests.integration.rpc import Refused, plain, rpc
from tests.integration.web import JSONL, SSE, following, problem, submit, web
from tests.integration.within import Held, Within, hold_call, hold_reply, within
from tests.processes import Process, until

NO_JOB = "0" * 32


@pytest.fixture
async def here(stack: Stack) -> AsyncIterator[Within]:
    async with within(stack.store, check_s=3600, wait_s=0.1) as here:
        yield here


async def leave_during(here: Within, call: Held, method: str, **params: Any) -> None:
    """Send a request and leave before its reply comes from the store."""
    async with rpc(here.api) as client:
        await client.send({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
        await call.came.wait()
    await here.left()
    call.release.set()
    await call.returned.wait()


@pytest.mark.parametrize(("on_disconnect", "then"), [("cancel", Status.CANCELLED), ("continue", Status.QUEUED)])
async def test_leaving_during_a_submit_is_leaving_after_it(
    here: Within, monkeypatch: pytest.MonkeyPatch, on_disconnect: str, then: Status
) -> None:
    store = here.commands.stores.only
    held = hold_reply(monkeypatch, store, "submit")
    await leave_during(here, held, "job.submit", analysis="hold", delay_s=60, on_disconnect=on_disconnect)
    assert here.followers == []
    job = held.results[0].job
    found = await store.snapshot(job)  # on the connection that a cancel would have taken before
    assert found is not None
    assert found.status is then
    await store.cancel(job, "", None)


async def test_a_known_job_is_not_followed_for_a_client_that_left_during_its_submit(
    here: Within, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with web(here.api) as http:
        job = await submit(http, "hold", key="left meanwhile")
        held = hold_reply(monkeypatch, here.commands.stores.only, "submit")
        await leave_during(here, held, "job.submit", analysis="hold", key="left meanwhile", on_disconnect="cancel")
        assert held.results[0].duplicate
        assert here.followers == []
        assert (await http.get(f"/jobs/{job}")).json()["status"] in ("queued", "running"), "it is not theirs to end"
        await http.delete(f"/jobs/{job}")


async def test_a_job_is_not_followed_for_a_client_that_left_during_its_attach(
    here: Within, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with web(here.api) as http:
        job = await submit(http, "hold")
        held = hold_reply(monkeypatch, here.commands.stores.only, "attach")
        await leave_during(here, held, "job.attach", job=job)
        assert here.followers == []
        await http.delete(f"/jobs/{job}")


async def test_what_is_refused_is_not_followed(here: Within) -> None:
    async with rpc(here.api) as client, web(here.api) as http:
        with pytest.raises(Refused):
            await client.submit("nothing")
        assert here.followers == [], "after a submit"
        with pytest.raises(Refused):
            await client.call("job.attach", job=NO_JOB)
        assert here.followers == [], "after an attach"
        problem(await http.post("/jobs", json={"analysis": "nothing"}, headers={"Accept": SSE}), "unknown_analysis")
        assert here.followers == [], "after a submit over HTTP"
        problem(await http.get(f"/jobs/{NO_JOB}/events"), "job_not_found")
        assert here.followers == [], "after asking for events over HTTP"


async def test_a_job_is_followed_only_as_long_as_its_stream_is_read_or_its_end_waited_for(here: Within) -> None:
    async def none() -> bool:
        return here.followers == []

    async with web(here.api) as http:
        answer = await http.post("/jobs", json={"analysis": "hold"}, headers={"Prefer": "wait=60"})
        assert answer.status_code == 202
        assert here.followers == [], "after a wait that was not long enough"
        job = answer.json()["job"]
        async with following(http, job, JSONL) as stream:
            await stream.until("log")
            assert len(here.followers) == 1
        await until(none, what="the stream that the client left to be dropped")
        end = (await http.delete(f"/jobs/{job}")).json()["cursor"]
        assert (await http.get(f"/jobs/{job}/events", params={"after": end})).status_code == 204
        assert here.followers == [], "after the end was read before"


async def test_a_reader_that_comes_back_before_the_store_heard_that_it_had_left_misses_nothing(
    valkey: Process, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await running(store)
    async with within(valkey, check_s=3600) as here, rpc(here.api) as client:
        await client.call("job.attach", job=job.id)
        await client.until(job.id, "started")
        held = hold_call(monkeypatch, here.commands.stores.only, "detach")
        await client.call("job.detach", job=job.id)
        await held.came.wait()
        await client.call("job.attach", job=job.id)
        await client.until(job.id, "started", times=2)
        (follower,) = here.followers

        async def live() -> bool:
            return follower.state is State.LIVE

        await until(live, what="the log to be read")
        held.release.set()
        await held.returned.wait()
        await store.append(job, 1, [("chunk", b"1")])
        assert (await client.until(job.id, "chunk"))["data"] == 1


async def test_a_plain_client_that_leaves_while_its_frame_waits_for_room_is_waited_for_no_longer(stack: Stack) -> None:
    async with within(stack.store, queue_depth=1) as here, web(stack.api) as http:
        job = await submit(http, "hold", delay_s=60)
        before = len(asyncio.all_tasks())
        async with plain(here.api) as socket:
            await socket.send("x")

            async def refused() -> bool:
                return here.commands.submissions["queue_full"] > 1

            await until(refused, what="the frame to wait for room")
        await here.left()

        async def none_left() -> bool:
            return len(asyncio.all_tasks()) <= before

        await until(none_left, what="the task of the frame to end")
        await http.delete(f"/jobs/{job}")
