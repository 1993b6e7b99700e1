"""What the API hears from the store through its one connection for that, and what becomes of what it did not hear."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from typing import Any

import pytest

from millstream.protocol.fleet import Advertisement
from millstream.store.store import Claimed, Store
from millstream_api.jobs.hub import State
from tests.integration.conftest import Client
from tests.integration.jobs import running
from tests.integration.rpc import Rpc, rpc
from tests.integration.within import Within, within
from tests.processes import Process, until


async def attached(here: Within, client: Rpc, job: Claimed) -> None:
    """Follow a job, and wait until its events are heard as they are published."""
    await client.call("job.attach", job=job.id)
    await client.until(job.id, "started")

    async def live() -> bool:
        return [follower.state for follower in here.followers] == [State.LIVE]

    await until(live, what="the log to be read")


@pytest.fixture
async def here(valkey: Process, client: Client) -> AsyncIterator[Within]:
    """It does not compare its logs with the store by itself."""
    async with within(valkey, check_s=3600) as here:
        yield here


async def while_it_hears_nothing(here: Within, client: Client, store: Store, doing: Awaitable[Any]) -> None:
    """Break its connection, and do something before it can be there again: both leave in one write."""
    (id,) = [one["id"] for one in await client.client_list() if one["name"] == f"{here.commands.relay.node}-relay"]

    async def kill() -> Any:
        return await store.pipeline.call("CLIENT", "KILL", "ID", id)

    assert (await asyncio.gather(kill(), doing))[0] == 1


async def test_what_was_published_while_the_connection_was_broken_is_read_from_the_log(
    here: Within, client: Client, store: Store
) -> None:
    job = await running(store)
    async with rpc(here.api) as reader:
        await attached(here, reader, job)
        await while_it_hears_nothing(here, client, store, store.append(job, 1, [("chunk", b"1")]))
        assert (await reader.until(job.id, "chunk"))["data"] == 1
        await store.append(job, 2, [("chunk", b"2")])
        await reader.until(job.id, "chunk", times=2)
    assert here.commands.relay.events == 1, "the first was not published to it"


async def test_what_workers_advertised_while_the_connection_was_broken_is_read_when_it_is_back(
    here: Within, client: Client, store: Store
) -> None:
    async def known() -> bool:
        return "new" in here.commands.catalog.entries

    entry = Advertisement(name="new", description="", params_schema={}, result_schema={}, timeout_s=1, queue="default")
    await while_it_hears_nothing(here, client, store, store.advertise([entry]))
    await until(known, what="the analysis to be known")


async def test_an_end_that_was_not_heard_is_found_in_the_store(valkey: Process, store: Store) -> None:
    job = await running(store)
    async with within(valkey, check_s=0.05) as here, rpc(here.api) as reader:
        await attached(here, reader, job)
        await store.detach(job.id, here.commands.relay.node)  # so that it is not told
        await store.finish(job, "succeeded", b'{"result":1,"elapsed_s":1.0}', events=0)
        assert (await reader.end(job.id))[-1]["type"] == "succeeded"
    assert here.commands.relay.events == 0
