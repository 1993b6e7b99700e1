"""The events of an attempt on their way to the log: grouped, numbered, bounded, and stopped by what breaks them."""

import asyncio
from collections.abc import Iterable

import pytest

from millstream.protocol.errors import StoreUnavailable
from millstream.store.limits import Limits
from millstream.store.store import Claimed, LeaseLost, Store
from millstream_worker.event_writer import GROUP_BYTES, MAX_BUFFERED_EVENTS, EventWriter, first_group
from millstream_worker.outcome import OutputTooLarge
from tests.integration.jobs import events, running


class Gated:
    """Holds back what is appended until the gate is open, and remembers the calls."""

    def __init__(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        self.called, self.gate = asyncio.Event(), asyncio.Event()
        self.calls: list[tuple[int, list[str]]] = []
        append = store.append

        async def gated(job: Claimed, number: int, group: Iterable[tuple[str, bytes]]) -> None:
            group = list(group)
            self.calls.append((number, [data.decode() for _, data in group]))
            self.called.set()
            await self.gate.wait()
            await append(job, number, group)

        monkeypatch.setattr(store, "append", gated)


def writer_of(store: Store, job: Claimed, lost: list[str], *, max_event_bytes: int = 1000) -> EventWriter:
    return EventWriter(store, job, max_event_bytes=max_event_bytes, on_lost=lambda: lost.append(job.id))


async def written(store: Store, job: Claimed) -> list[tuple[str, bytes]]:
    return [(event.type, event.data) for event in await events(store, job.id)][2:]


async def test_what_follows_while_a_call_is_under_way_is_gathered_for_the_next(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await running(store)
    gated, writer = Gated(store, monkeypatch), writer_of(store, job, [])
    await writer.write("chunk", b"1")
    await gated.called.wait()
    for data in (b"2", b"3", b"4"):
        await writer.write("chunk", data)
    assert writer.written == 0
    gated.gate.set()
    await writer.flush()
    assert gated.calls == [(1, ["1"]), (2, ["2", "3", "4"])]
    assert writer.written == 4
    assert await written(store, job) == [("chunk", data) for data in (b"1", b"2", b"3", b"4")]


async def test_a_progress_takes_the_place_of_one_that_waits_right_before_it(store: Store) -> None:
    job = await running(store)
    writer = writer_of(store, job, [])
    for type, data in (("progress", b'{"done":1}'), ("progress", b'{"done":2}'), ("chunk", b"1"),
                       ("progress", b'{"done":3}')):  # fmt: skip
        await writer.write(type, data)
    await writer.flush()
    assert await written(store, job) == [("progress", b'{"done":2}'), ("chunk", b"1"), ("progress", b'{"done":3}')]
    assert writer.written == 3


async def test_a_caller_faster_than_the_store_waits_once_the_buffer_is_full(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await running(store)
    gated, writer = Gated(store, monkeypatch), writer_of(store, job, [])
    await writer.write("chunk", b"1")
    await gated.called.wait()
    for _ in range(MAX_BUFFERED_EVENTS - 1):
        await writer.write("chunk", b"2")
    one_too_many = asyncio.create_task(writer.write("chunk", b"3"))
    await asyncio.sleep(0)
    assert not one_too_many.done()
    gated.gate.set()
    await one_too_many
    await writer.flush()
    assert writer.written == MAX_BUFFERED_EVENTS + 1


async def test_an_event_over_the_limit_is_refused_and_the_next_is_not(store: Store) -> None:
    job = await running(store)
    writer = writer_of(store, job, [], max_event_bytes=3)
    with pytest.raises(OutputTooLarge, match="A chunk of 4 bytes is over the limit of 3 for one event"):
        await writer.write("chunk", b"1234")
    await writer.write("chunk", b"123")
    await writer.flush()
    assert await written(store, job) == [("chunk", b"123")]
    assert writer.broken is None


async def test_an_attempt_is_told_once_that_it_is_lost_and_can_write_nothing_more(store: Store) -> None:
    job, lost = await running(store), list[str]()
    writer = writer_of(store, job, lost)
    await writer.write("chunk", b"1")
    await writer.flush()
    await store.cancel(job.id, "", None)
    await writer.write("chunk", b"2")
    await writer.flush()
    assert lost == [job.id]
    assert isinstance(writer.broken, LeaseLost)
    with pytest.raises(LeaseLost):
        await writer.write("chunk", b"3")
    await writer.flush()
    assert (lost, writer.written) == ([job.id], 1)


async def test_an_attempt_whose_store_stays_away_is_lost_too(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    async def away(*_: object) -> None:
        raise StoreUnavailable("away")

    job, lost = await running(store), list[str]()
    writer = writer_of(store, job, lost)
    monkeypatch.setattr(store, "append", away)
    await writer.write("chunk", b"1")
    await writer.flush()
    assert (lost, writer.written) == ([job.id], 0)
    with pytest.raises(StoreUnavailable):
        await writer.write("chunk", b"2")


async def test_a_full_log_breaks_the_writer_and_the_attempt_is_not_lost(store: Store) -> None:
    small = await Store(store.pipeline.url, name="small", limits=Limits.model_construct(log_events=3)).open(10)
    job, lost = await running(store), list[str]()
    writer = writer_of(small, job, lost)
    await writer.write("chunk", b"1")
    await writer.flush()
    await writer.write("chunk", b"2")
    await writer.flush()
    with pytest.raises(OutputTooLarge, match="The job's log is full"):
        await writer.write("chunk", b"3")
    assert (lost, writer.written) == ([], 1)
    await small.close()


def test_a_group_is_of_a_bounded_size_and_of_one_event_at_least() -> None:
    small, large = ("chunk", b"1"), ("chunk", b"x" * GROUP_BYTES)
    assert first_group([small, small]) == ([small, small], 2)
    assert first_group([large, small]) == ([large], GROUP_BYTES)
    assert first_group([small, large, small]) == ([small, large], GROUP_BYTES + 1)
