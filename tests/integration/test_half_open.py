"""A connection on which nothing comes any more, though nothing says that it broke, is noticed and made again."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from millstream import Context
from millstream.store.pipeline import Pipeline
from millstream.store.store import Store
from tests.integration.conftest import Client
from tests.integration.fault_proxy import FaultProxy, fault_proxy
from tests.integration.jobs import a_job, running
from tests.integration.rpc import rpc
from tests.integration.test_engine import Faulty, Start, at_once, gate, start, until_types
from tests.integration.test_relay import attached
from tests.integration.within import within
from tests.processes import Process, until

__all__ = ["gate", "start"]  # fixtures

pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated close:DeprecationWarning")  # by arq, of redis

PATIENCE_S = 1.0  # so that half a second of silence is too long


@pytest.fixture
async def proxy(valkey: Process, client: Client) -> AsyncIterator[FaultProxy]:
    async with fault_proxy(valkey) as proxy:
        yield proxy


async def listener(proxy: FaultProxy, heard: list[Any]) -> Pipeline:
    async def subscribe(pipeline: Pipeline) -> None:
        pipeline.send("SUBSCRIBE", "channel")

    ear = Pipeline(proxy.url, name="ear", on_connect=subscribe, on_push=heard.append, silence_s=0.05)
    return await ear.open(10)


async def test_one_that_listens_subscribes_again_and_hears_what_comes_then(proxy: FaultProxy, client: Client) -> None:
    heard: list[Any] = []
    ear = await listener(proxy, heard)
    proxy.swallow("SUBSCRIBE")
    await client.publish("channel", "lost")
    await proxy.came("SUBSCRIBE", 2)
    await ear.connected.wait()
    await client.publish("channel", "heard")

    async def came() -> bool:
        return len(heard) == 3

    await until(came, what="the message")
    assert [message[0] for message in heard] == [b"subscribe", b"subscribe", b"message"]
    assert heard[-1][2] == b"heard"
    await ear.close()


@pytest.mark.parametrize("error", [None, "MISCONF x", "BUSY x"])
async def test_one_that_is_only_quiet_stays(proxy: FaultProxy, error: str | None) -> None:
    """Any answer to a PING is a sign of life."""
    heard: list[Any] = []
    ear = await listener(proxy, heard)
    if error:
        proxy.inject("PING", error)
    await proxy.came("PING", 5)
    assert proxy.commands.count("SUBSCRIBE") == 1
    assert [message[0] for message in heard] == [b"subscribe"]
    await ear.close()


async def test_one_that_may_not_subscribe_yet_subscribes_later(proxy: FaultProxy) -> None:
    proxy.inject("SUBSCRIBE", "BUSY x", times=2)
    heard: list[Any] = []
    ear = await listener(proxy, heard)
    assert (proxy.commands.count("SUBSCRIBE"), len(heard)) == (3, 1)
    await ear.close()


async def test_the_api_reads_from_the_log_what_did_not_come(valkey: Process, store: Store, proxy: FaultProxy) -> None:
    job = await running(store)
    behind = replace(valkey, url=proxy.url)
    async with within(behind, check_s=3600, store_patience_s=PATIENCE_S) as here, rpc(here.api) as reader:
        await attached(here, reader, job)
        proxy.swallow("SUBSCRIBE")
        await store.append(job, 1, [("chunk", b"1")])
        assert (await reader.until(job.id, "chunk"))["data"] == 1
        await store.append(job, 2, [("chunk", b"2")])
        await reader.until(job.id, "chunk", times=2)
    assert here.commands.relay.events == 1, "the first was not published to it"


@pytest.fixture
async def behind(proxy: FaultProxy) -> AsyncIterator[Faulty]:
    """The store of a worker, behind the proxy."""
    store = await Faulty(proxy.url).open(10)
    assert isinstance(store, Faulty)
    yield store
    await store.close()


async def test_a_worker_hears_again_what_it_is_to_stop(behind: Faulty, proxy: FaultProxy, start: Start) -> None:
    stopped = asyncio.Event()

    async def hold(ctx: Context) -> None:
        await ctx.log("here")
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    async with start(behind, hold, lease_s=3600, store_patience_s=PATIENCE_S) as engine:
        await behind.submit(a_job("j"))
        await until_types(behind, "j", "queued", "started", "log")
        proxy.swallow("SUBSCRIBE")
        await proxy.came("SUBSCRIBE", 2)
        await engine._stops.connected.wait()
        await behind.cancel("j", "", None)
        await asyncio.wait_for(stopped.wait(), 15)


async def test_a_worker_whose_bell_is_silent_claims_again(behind: Faulty, proxy: FaultProxy, start: Start) -> None:
    async with start(behind, at_once, lease_s=3600, store_patience_s=PATIENCE_S):
        await proxy.came("BLPOP", 1)
        proxy.swallow("BLPOP")
        await behind.submit(a_job("j"))
        await until_types(behind, "j", "queued", "started", "succeeded")
