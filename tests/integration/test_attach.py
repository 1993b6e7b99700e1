"""attach, detach, snapshot, positions, cancel: what readers get, page by page, and what they are told live."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from millstream.protocol.events import START, Cursor, Event, read_published
from millstream.protocol.fleet import Advertisement
from millstream.protocol.jobs import Page
from millstream.store import keys
from millstream.store.store import Claimed, Store
from tests.integration.conftest import Client
from tests.integration.jobs import a_job, claim, events, running, snapshot


async def page(store: Store, job: str, after: Cursor = START, **options: Any) -> Page:
    found = await store.attach(job, after, **options)
    assert found is not None
    return found


async def written(store: Store, count: int, size: int = 10) -> Claimed:
    """A running job with `count` chunks of `size` bytes in its log."""
    job = await running(store)
    chunks = [("chunk", b'"%0*d"' % (size - 2, number)) for number in range(count)]
    for start in range(0, count, 500):
        await store.append(job, start + 1, chunks[start : start + 500])
    return job


@asynccontextmanager
async def listening(client: Client, *channels: str) -> AsyncIterator["asyncio.Queue[bytes]"]:
    """What is published on some channels meanwhile."""
    heard: asyncio.Queue[bytes] = asyncio.Queue()
    async with client.pubsub() as pubsub:
        await pubsub.subscribe(*channels)
        for _ in channels:
            assert (await pubsub.get_message(timeout=5))["type"] == "subscribe"

        async def listen() -> None:
            async for message in pubsub.listen():
                heard.put_nowait(message["data"])

        task = asyncio.create_task(listen())
        yield heard
        task.cancel()
        await asyncio.wait({task})


async def take(heard: "asyncio.Queue[bytes]", count: int) -> list[Event]:
    async with asyncio.timeout(5):
        return [read_published(await heard.get()) for _ in range(count)]


async def test_a_page_has_what_comes_after_the_cursor(store: Store) -> None:
    job = await written(store, 3)
    everything = await page(store, job.id)
    assert (everything.gap, everything.more, [event.seq for event in everything.events]) == (
        False,
        False,
        [1, 2, 3, 4, 5],
    )
    for event in everything.events:
        rest = await page(store, job.id, event.cursor)
        assert (rest.gap, rest.events) == (False, everything.events[event.seq :])


async def test_pages_are_bounded_by_their_number_of_events(store: Store) -> None:
    job = await written(store, 10)
    seqs: list[int] = []
    after, pages = START, 0
    while True:
        found = await page(store, job.id, after, limit=5)
        seqs += [event.seq for event in found.events]
        assert len(found.events) <= 5
        pages += 1
        if not found.more:
            break
        after = found.events[-1].cursor
    assert (seqs, pages) == (list(range(1, 13)), 3)


@pytest.mark.parametrize(("count", "size"), [(400, 100), (60, 5_000), (10, 60_000)])
async def test_pages_are_bounded_by_their_bytes_give_or_take_a_quarter_or_one_event(
    store: Store, count: int, size: int
) -> None:
    job = await written(store, count, size)
    budget = 20_000
    seqs: list[int] = []
    after = START
    while True:
        found = await page(store, job.id, after, limit=10_000, limit_bytes=budget)
        total = sum(len(event.data) for event in found.events)
        assert total <= max(budget * 1.25, budget + size + 100)
        seqs += [event.seq for event in found.events]
        if not found.more:
            break
        assert total >= budget * 0.5, "pages are needlessly small"
        after = found.events[-1].cursor
    assert seqs == list(range(1, count + 3))


async def test_no_events_are_read_where_none_are_wanted_but_the_gap_is_told(store: Store) -> None:
    job = await written(store, 3)
    found = await page(store, job.id, limit=0)
    assert (found.gap, found.more, found.events) == (False, True, [])
    assert (await page(store, job.id, Cursor(2, 5), limit=0)).gap


@pytest.mark.parametrize("wrong", ["another time", "beyond the end"])
async def test_a_cursor_that_this_log_does_not_hold_is_a_gap_and_the_page_begins_at_the_start(
    store: Store, wrong: str
) -> None:
    job = await written(store, 3)
    last = (await events(store, job.id))[-1].cursor
    cursor = Cursor(last.seq, last.at - 1) if wrong == "another time" else Cursor(last.seq + 1, last.at)
    found = await page(store, job.id, cursor)
    assert (found.gap, [event.seq for event in found.events]) == (True, [1, 2, 3, 4, 5])


async def test_there_is_no_page_and_no_snapshot_of_a_job_that_is_not_there_or_anothers(store: Store) -> None:
    job = a_job(owner="ann")
    await store.submit(job)
    for id, owner in (("nothing", "*"), ("nothing", "ann"), (job.id, "bob"), (job.id, "")):
        assert await store.attach(id, owner=owner, node="n") is None
        assert await store.snapshot(id, owner) is None
    assert await store.cancel(job.id, "bob", None) is None
    assert await store.cancel("nothing", "ann", None) is None
    assert (await snapshot(store, job.id)).status == "queued"
    assert await store.pipeline.call("EXISTS", f"{keys.JOB}nothing") == 0
    assert await store.snapshot(job.id, "ann") == await store.snapshot(job.id)


async def test_a_node_that_submits_or_attaches_hears_every_event_and_another_does_not(
    store: Store, client: Client
) -> None:
    async with listening(client, f"{keys.NODE}n1") as first, listening(client, f"{keys.NODE}n2") as second:
        await store.submit(a_job("odd\njob", node="n1"))
        (job,) = await claim(store)
        await store.attach(job.id, node="n2")
        await store.append(job, 1, [("chunk", b"1"), ("progress", b"{}")])
        await store.finish(job, "succeeded", b'{"result":1}')
        logged = await events(store, job.id)
        assert await take(first, 5) == logged
        assert await take(second, 3) == logged[2:]
        assert first.empty()
        assert second.empty()


async def test_a_node_that_wants_only_the_end_hears_only_that(store: Store, client: Client) -> None:
    async with listening(client, f"{keys.NODE}n1") as submitter, listening(client, f"{keys.NODE}n2") as other:
        await store.submit(a_job("j", node="n1", terminal_only=True))
        await store.attach("j", node="n2", terminal_only=True)
        (job,) = await claim(store)
        await store.append(job, 1, [("chunk", b"1")])
        await store.finish(job, "failed", b'{"error":{}}')
        logged = await events(store, "j")
        assert await take(submitter, 1) == logged[-1:]
        assert await take(other, 1) == logged[-1:]
        assert submitter.empty()
        assert other.empty()


async def test_who_attaches_twice_hears_everything_once(store: Store, client: Client) -> None:
    async with listening(client, f"{keys.NODE}n1") as heard:
        job = await running(store, node="n1")
        for _ in range(3):
            await store.attach(job.id, node="n1")
        await store.append(job, 1, [("chunk", b"1")])
        assert [event.type for event in await take(heard, 3)] == ["queued", "started", "chunk"]
        assert heard.empty()


async def test_who_wants_only_the_end_gets_it_from_the_log_as_well(store: Store) -> None:
    job = await written(store, 3)
    assert (await page(store, job.id, terminal_only=True)).events == []
    await store.finish(job, "succeeded", b'{"result":1}')
    (last,) = (await page(store, job.id, terminal_only=True)).events
    assert last.type == "succeeded"
    assert (await page(store, job.id, last.cursor, terminal_only=True)).events == []


async def watchers(store: Store, job: str) -> tuple[bytes, bytes]:
    watch, watch_end = await store.pipeline.call("HMGET", f"{keys.JOB}{job}", "watch", "watch_end")
    return watch or b"", watch_end or b""


async def test_a_node_that_nobody_listens_for_is_taken_off_and_the_others_stay(store: Store, client: Client) -> None:
    async with listening(client, f"{keys.NODE}here") as heard:
        job = await running(store, node="gone")
        await store.attach(job.id, node="here")
        await store.attach(job.id, node="gone2")
        assert (await watchers(store, job.id))[0].split() == [b"here", b"gone2"], "the event 'started' had no listener"
        await store.append(job, 1, [("chunk", b"1")])
        assert (await watchers(store, job.id))[0] == b"here"
        assert [event.type for event in await take(heard, 1)] == ["chunk"]


async def test_a_node_that_detaches_hears_nothing_more_and_the_others_do(store: Store, client: Client) -> None:
    async with listening(client, f"{keys.NODE}n1") as first, listening(client, f"{keys.NODE}n11") as second:
        job = await running(store)
        for node in ("n1", "n11"):
            await store.attach(job.id, node=node)
            await store.attach(job.id, node=node, terminal_only=True)
        await store.detach(job.id, "n1")
        assert await watchers(store, job.id) == (b"n11", b"n11")
        await store.append(job, 1, [("chunk", b"1")])
        assert [event.type for event in await take(second, 1)] == ["chunk"]
        assert first.empty()


async def test_detaching_from_a_job_that_is_gone_makes_nothing(store: Store) -> None:
    await store.detach("nothing", "n")
    assert await store.pipeline.call("KEYS", "*") == []


async def test_a_job_that_ended_is_not_watched(store: Store) -> None:
    job = await running(store)
    await store.finish(job, "succeeded", b'{"result":1}')
    await store.attach(job.id, node="n")
    assert await watchers(store, job.id) == (b"", b"")


async def test_the_snapshot_tells_the_result_or_the_error(store: Store) -> None:
    good, bad = await running(store), await running(store)
    await store.finish(good, "succeeded", b'{"result":{"a":[1]},"elapsed_s":0.5}')
    await store.finish(bad, "failed", b'{"error":{"code":"timeout","message":"slow"}}')
    found = await snapshot(store, good.id)
    assert (found.status, found.result, found.error) == ("succeeded", b'{"a":[1]}', b"null")
    found = await snapshot(store, bad.id)
    assert (found.status, found.result, found.error) == ("failed", b"null", b'{"code":"timeout","message":"slow"}')


@pytest.mark.parametrize("large", ["progress", "result"])
async def test_a_page_of_an_owners_jobs_is_bounded_by_its_bytes_give_or_take_one_job(store: Store, large: str) -> None:
    for _ in range(5):
        job = await running(store, owner="ann")
        if large == "progress":
            await store.append(job, 1, [("progress", b'{"message":"%b"}' % (b"x" * 2000))])
        else:
            await store.finish(job, "succeeded", b'{"result":"%b"}' % (b"x" * 2000))
    page, last = await store.jobs("ann", status="", analysis="", limit=50, after="", limit_bytes=4000)
    assert (len(page), last) == (2, page[-1].job)
    rest, last = await store.jobs("ann", status="", analysis="", limit=50, after=last, limit_bytes=1_000_000)
    assert (len({job.job for job in (*page, *rest)}), last) == (5, "")


@pytest.mark.parametrize(("status", "analysis"), [("succeeded", ""), ("", "rare"), ("succeeded", "rare")])
async def test_a_page_of_an_owners_jobs_looks_at_so_many_and_the_next_goes_on_after_them(
    store: Store, client: Client, status: str, analysis: str
) -> None:
    job = await running(store, owner="ann")
    await store.finish(job, "succeeded", b'{"result":1}')
    await client.hset(f"{keys.JOB}{job.id}", "analysis", "rare")
    await asyncio.gather(*(store.submit(a_job(owner="ann")) for _ in range(1200)))
    await client.delete(f"{keys.JOB}{(await client.zrevrange(f'{keys.JOBS}ann', 499, 499))[0].decode()}")
    pages: list[list[str]] = []
    after = ""
    while after or not pages:
        await client.config_resetstat()
        page, after = await store.jobs(
            "ann", status=status, analysis=analysis, limit=50, after=after, limit_bytes=1_000_000
        )
        assert (await client.info("commandstats"))["cmdstat_hmget"]["calls"] <= 501, "each holds up the store"
        pages.append([found.job for found in page])
    assert pages == [[], [], [job.id]]


async def test_a_page_of_an_owners_jobs_that_is_not_filtered_is_full(store: Store) -> None:
    await asyncio.gather(*(store.submit(a_job(owner="ann")) for _ in range(501)))
    page, after = await store.jobs("ann", status="", analysis="", limit=500, after="", limit_bytes=1_000_000)
    assert (len(page), after) == (500, page[-1].job)
    rest, after = await store.jobs("ann", status="", analysis="", limit=500, after=after, limit_bytes=1_000_000)
    assert (len(rest), after) == (1, "")


async def test_positions_tell_the_last_seq_and_the_status_of_each_job(store: Store) -> None:
    job = await written(store, 3)
    await store.submit(a_job("waits"))
    assert await store.positions([job.id, "nothing", "waits"]) == [(5, "running"), (-1, ""), (1, "queued")]


async def test_a_queued_job_is_cancelled_at_once_and_never_runs(store: Store, client: Client) -> None:
    job = a_job(owner="ann", key="k", fingerprint="f")
    await store.submit(job)
    found = await store.cancel(job.id, "ann", 'enough "now"')
    assert found is not None
    assert (found.status, found.finished_at is not None) == ("cancelled", True)
    last = (await events(store, job.id))[-1]
    assert (last.type, json.loads(last.data)) == ("cancelled", {"reason": 'enough "now"'})
    assert await claim(store) == []
    assert await client.zcard(keys.lane()) == 0
    assert await client.exists(f"{keys.BODY}{job.id}", f"{keys.INFLIGHT}ann") == 0


async def test_the_worker_of_a_running_job_is_told_that_it_was_cancelled(store: Store, client: Client) -> None:
    async with listening(client, f"{keys.STOP}w") as heard:
        job = await running(store)
        await store.cancel(job.id, "", None)
        async with asyncio.timeout(5):
            assert await heard.get() == f"{job.id}\n{job.token}".encode()
    assert await client.exists(f"{keys.LEASE}{job.id}") == 0


async def test_cancelling_what_has_ended_changes_nothing_and_is_no_error(store: Store) -> None:
    job = await running(store)
    await store.finish(job, "succeeded", b'{"result":1}')
    before = await snapshot(store, job.id)
    assert await store.cancel(job.id, "", "too late") == before
    assert [event.type for event in await events(store, job.id)] == ["queued", "started", "succeeded"]


async def advertised(store: Store) -> list[Advertisement]:
    return [Advertisement.model_validate_json(text) for text in await store.analyses()]


async def test_what_workers_advertise_is_read_back_and_told_only_when_it_changed(store: Store, client: Client) -> None:
    a, b = (
        Advertisement(name=name, description="", params_schema={}, result_schema={}, timeout_s=1, queue="default")
        for name in "ab"
    )
    slower = a.model_copy(update={"timeout_s": 2})
    async with listening(client, keys.CATALOG) as heard:
        await store.advertise([a, b])
        await store.advertise([a])
        assert await advertised(store) == [a, b]
        await store.advertise([slower])
        assert await advertised(store) == [slower, b]
        async with asyncio.timeout(5):
            assert [await heard.get(), await heard.get()] == [b"", b""]
        assert heard.empty()


def an_analysis(name: str, timeout_s: float = 1) -> Advertisement:
    return Advertisement(
        name=name, description="", params_schema={}, result_schema={}, timeout_s=timeout_s, queue="default"
    )


async def test_a_worker_that_repeats_what_it_knows_does_not_undo_what_a_newer_one_has_said(
    store: Store, client: Client
) -> None:
    await store.advertise([an_analysis("a", 2)])
    await store.advertise([an_analysis("a", 1)], again=True)
    assert await advertised(store) == [an_analysis("a", 2)]
    await client.delete(keys.ANALYSES)
    await store.advertise([an_analysis("a", 1)], again=True)
    assert await advertised(store) == [an_analysis("a", 1)]


async def test_analyses_whose_workers_are_gone_are_forgotten_after_the_time_that_a_job_may_wait(
    store: Store, client: Client
) -> None:
    await client.hset(keys.ANALYSES, "old", an_analysis("old").model_dump_json())  # by a worker of an earlier version
    await store.advertise([an_analysis("a"), an_analysis("b")])
    for key in (keys.ANALYSES, keys.KNOWN):
        assert 0 < await client.pttl(key) <= 86_400_000
    assert {name for name, _ in await client.zrange(keys.KNOWN, 0, -1, withscores=True)} == {b"a", b"b", b"old"}
    await client.zadd(keys.KNOWN, {"a": 1, "old": 1})  # their time is over
    await store.advertise([an_analysis("a")], again=True)
    async with listening(client, keys.CATALOG) as heard:
        await client.zadd(keys.KNOWN, {"b": 1})
        assert await advertised(store) == [an_analysis("a")]
        async with asyncio.timeout(5):
            assert await heard.get() == b""
    assert await client.hkeys(keys.ANALYSES) == await client.zrange(keys.KNOWN, 0, -1) == [b"a"]
