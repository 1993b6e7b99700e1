"""One connection for a whole process: order, errors, and what happens when it breaks."""

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any

import hiredis
import pytest
import redis.asyncio as redis

from millstream.protocol.errors import StoreUnavailable
from millstream.store import keys
from millstream.store.embedded import free_port
from millstream.store.limits import Limits
from millstream.store.pipeline import Pipeline, shown
from millstream.store.store import ANY_OWNER, Store
from tests.integration.conftest import Client
from tests.integration.jobs import a_job, claim, running
from tests.processes import Process, Processes, until


@pytest.fixture
async def pipeline(valkey: Process, client: Client) -> AsyncIterator[Pipeline]:
    pipeline = await Pipeline(valkey.url, name="under-test").open(10)
    yield pipeline
    await pipeline.close()


async def kill_connections(client: Client, name: str) -> int:
    """Break every connection of this name; returns how many there were."""
    found = [item for item in await client.client_list() if item["name"] == name]
    for item in found:
        await client.client_kill_filter(_id=item["id"])
    return len(found)


async def test_calls_are_carried_out_and_answered_in_the_order_they_were_made(
    pipeline: Pipeline, client: Client
) -> None:
    replies = await asyncio.gather(*(pipeline.call("RPUSH", "list", number) for number in range(1000)))
    assert replies == list(range(1, 1001))
    assert await client.lrange("list", 0, -1) == [b"%d" % number for number in range(1000)]


async def test_calls_of_one_tick_leave_together(own_processes: Processes) -> None:
    store = await own_processes.store()  # that no other test reads from
    pipeline = await Pipeline(store.url, name="under-test").open(10)
    client = redis.Redis.from_url(store.url)
    await pipeline.call("PING")
    before = (await client.info("stats"))["total_reads_processed"]
    await asyncio.gather(*(pipeline.call("PING") for _ in range(200)))
    after = (await client.info("stats"))["total_reads_processed"]
    assert after - before <= 5, "each read of the store's socket should bring many calls"
    await client.aclose()
    await pipeline.close()


async def test_an_error_reply_is_that_calls_alone(pipeline: Pipeline) -> None:
    await pipeline.call("SET", "text", "x")
    calls = [pipeline.call("GET", "text"), pipeline.call("INCR", "text"), pipeline.call("GET", "text")]
    first, second, third = await asyncio.gather(*calls, return_exceptions=True)
    assert (first, third) == (b"x", b"x")
    assert isinstance(second, hiredis.ReplyError)


async def test_a_call_that_nobody_waits_for_any_more_does_not_shift_the_replies(pipeline: Pipeline) -> None:
    calls = [pipeline.call("ECHO", number) for number in range(3)]
    calls[1].cancel()
    assert (await calls[0], await calls[2]) == (b"0", b"2")
    assert await pipeline.call("ECHO", "after") == b"after"


async def test_any_bytes_go_through(pipeline: Pipeline) -> None:
    data = bytes(range(256)) * 5000
    assert await pipeline.call("ECHO", data) == data


async def test_a_killed_connection_is_made_again_and_calls_in_flight_are_told(
    pipeline: Pipeline, client: Client
) -> None:
    waiting = pipeline.call("BLPOP", "nothing", 0)
    await until(lambda: blocked(client), what="the call to wait")
    assert await kill_connections(client, "under-test") == 1
    with pytest.raises(StoreUnavailable):
        await waiting
    async with asyncio.timeout(20):
        await pipeline.connected.wait()
    assert await pipeline.call("PING") == b"PONG"


async def blocked(client: Client) -> bool:
    return bool((await client.info("clients"))["blocked_clients"])


async def test_a_listening_connection_subscribes_again(valkey: Process, client: Client) -> None:
    heard: list[list[Any]] = []

    async def subscribe(pipeline: Pipeline) -> None:
        pipeline.send("SUBSCRIBE", "channel")

    listener = await Pipeline(valkey.url, name="ear", on_connect=subscribe, on_push=heard.append).open(10)

    async def reached() -> bool:
        return bool(await client.publish("channel", "x"))

    for _ in range(2):
        await until(reached, what="the subscription")
        await until(lambda: said(heard, b"message"), what="the message")
        heard.clear()
        await kill_connections(client, "ear")
        await until(lambda: said(heard, b"subscribe"), what="the new subscription")
    await listener.close()


async def said(heard: list[list[Any]], kind: bytes) -> bool:
    return any(message[0] == kind for message in heard)


async def test_a_callback_that_fails_costs_the_connection_and_not_the_pipeline(valkey: Process, client: Client) -> None:
    heard: list[Any] = []

    def on_push(message: list[Any]) -> None:
        heard.append(message[0])
        if message[0] == b"message":
            raise RuntimeError("a defect")

    async def subscribe(pipeline: Pipeline) -> None:
        pipeline.send("SUBSCRIBE", "channel")

    async def twice() -> bool:
        return heard.count(b"subscribe") == 2

    listener = await Pipeline(valkey.url, name="ear", on_connect=subscribe, on_push=on_push).open(10)
    await until(lambda: said([[kind] for kind in heard], b"subscribe"), what="the subscription")
    await client.publish("channel", "x")
    await until(twice, what="the subscription after the defect")
    await listener.close()


async def break_often(client: Client, work: Awaitable[None], stop: asyncio.Event) -> None:
    """Break the store's connection five times while `work` goes on, which ends after `stop`."""
    working = asyncio.ensure_future(work)
    for _ in range(5):

        async def broken() -> bool:
            return await kill_connections(client, "tests") == 1

        await until(broken, what="a connection to break")
    stop.set()
    await working


async def test_jobs_submitted_while_the_connection_breaks_again_and_again_are_there_once(
    store: Store, client: Client
) -> None:
    stop = asyncio.Event()
    jobs: list[str] = []

    async def submit_many() -> None:
        while not stop.is_set():
            jobs.extend(item.job for item in await asyncio.gather(*(store.submit(a_job()) for _ in range(10))))

    await break_often(client, submit_many(), stop)
    assert sorted(await client.zrange(keys.lane(), 0, -1)) == sorted(job.encode() for job in jobs)


async def test_events_appended_while_the_connection_breaks_are_there_once(store: Store, client: Client) -> None:
    job = await running(store)
    stop = asyncio.Event()
    sent: list[bytes] = []

    async def append_many() -> None:
        while not stop.is_set():
            pair = [b"%d" % len(sent), b"%d" % (len(sent) + 1)]
            await store.append(job, len(sent) + 1, [("chunk", data) for data in pair])
            sent.extend(pair)

    await break_often(client, append_many(), stop)
    page = await store.attach(job.id, limit=len(sent) + 10, limit_bytes=10_000_000)
    assert page is not None
    assert [event.data for event in page.events[2:]] == sent


async def test_scripts_that_the_store_forgot_are_loaded_again(store: Store, client: Client) -> None:
    await client.script_flush()
    job = a_job()
    assert (await store.submit(job)).job == job.id
    await client.script_flush()
    assert [claimed.id for claimed in await claim(store)] == [job.id]
    await client.script_flush()
    jobs = [a_job() for _ in range(50)]
    assert {item.job for item in await asyncio.gather(*map(store.submit, jobs))} == {job.id for job in jobs}


async def test_an_error_in_a_script_is_raised_and_not_repeated(store: Store, client: Client) -> None:
    await client.set(f"{keys.JOB}broken", "not a hash")
    with pytest.raises(hiredis.ReplyError, match="WRONGTYPE"):
        await store.snapshot("broken")


async def test_a_store_that_is_down_is_waited_for_and_then_said_to_be_unavailable(tmp_path: Path) -> None:
    async with Processes(tmp_path) as processes:
        process = await processes.store()
        store = await Store(process.url, name="s", limits=Limits(), patience_s=0.3).open(10)
        kept = a_job()
        await store.submit(kept)
        await process.kill()

        patient = asyncio.create_task(store.run("snapshot", id=kept.id, owner=ANY_OWNER, patience_s=60))
        with pytest.raises(StoreUnavailable):
            await store.submit(a_job())
        assert not patient.done(), "each call waits as long as it may"
        with pytest.raises(StoreUnavailable):
            await store.pipeline.call("PING")
        with pytest.raises(StoreUnavailable):
            store.pipeline.send("PING")
        with pytest.raises(StoreUnavailable):
            await claim(store)

        store.patience_s = 30
        waiting = asyncio.create_task(store.submit(a_job("patient")))
        await process.start()
        assert (await waiting).job == "patient"
        assert await patient
        assert sorted(job.id for job in await claim(store)) == sorted([kept.id, "patient"])
        await store.close()


async def test_a_store_that_stopped_answering_is_said_to_be_unavailable(tmp_path: Path) -> None:
    async with Processes(tmp_path) as processes:
        process = await processes.store()
        store = await Store(process.url, name="s", limits=Limits(), patience_s=0.3).open(10)
        process.signal(signal.SIGSTOP)
        try:
            async with asyncio.timeout(20):
                with pytest.raises(StoreUnavailable):
                    await store.submit(a_job())
        finally:
            process.signal(signal.SIGCONT)
        store.patience_s = 10
        assert (await store.submit(a_job("later"))).job == "later"
        await store.close()


async def test_a_store_that_may_not_be_written_to_for_a_moment_is_waited_for(own_processes: Processes) -> None:
    """As when a replica is about to take over."""
    process = await own_processes.store()
    store = await Store(process.url, name="s", limits=Limits(), patience_s=30).open(10)
    async with redis.Redis.from_url(process.url) as client:

        async def refused() -> bool:
            return "errorstat_READONLY" in await client.info("errorstats")

        await client.replicaof("127.0.0.1", str(free_port()))
        waiting = asyncio.create_task(store.submit(a_job("j")))
        await until(refused, what="the store to refuse the job")
        assert not waiting.done()
        await client.replicaof("NO", "ONE")
        assert (await waiting).job == "j"
    await store.close()


async def test_opening_a_store_that_is_not_there_gives_up_in_time() -> None:
    url = f"redis://:secret@127.0.0.1:{free_port()}/0"
    with pytest.raises(StoreUnavailable) as caught:
        await Pipeline(url, name="p").open(0.2)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("redis://127.0.0.1:6379/0", "redis://127.0.0.1:6379/0"),
        ("rediss://user:pa@ss@host:1/2", "rediss://host:1/2"),
        ("unix:///run/valkey.sock", "unix:///run/valkey.sock"),
        ("unix:///run/valkey.sock?db=1&password=secret", "unix:///run/valkey.sock?db=1"),
        ("redis://host:1/2?PASSWORD=secret&p%61ssword=secret", "redis://host:1/2"),
        ("redis://:secret@host:1/0?password=se@cret", "redis://host:1/0"),
        (":secret@host:1", "host:1"),
        ("redis://:sec?ret@host:1/0", "redis://…"),
    ],
)
def test_a_stores_address_is_shown_without_its_password(url: str, text: str) -> None:
    assert shown(url) == text
