"""Connections break, to the store and to clients: nothing is lost, and nothing comes twice."""

import asyncio
import signal

from millstream.client.client import Client
from millstream.store import keys
from tests.processes import Processes, until
from tests.system.stack import Stack, start
from tests.system.witness import JOB_FAILURES, Json, check_whole, witness


async def watched_by(stack: Stack, job: str) -> bytes:
    """The nodes that are told of each event of a job."""
    async with stack.client() as store:
        return bytes(await store.hget(keys.JOB + job, "watch") or b"")  # type: ignore[misc]


async def forget_watchers(stack: Stack, job: str) -> None:
    """As when an event was published without a listener: those nodes are off the list."""
    async with stack.client() as store:
        await store.hset(keys.JOB + job, mapping={"watch": "", "watch_end": ""})  # type: ignore[misc]


async def test_the_connection_that_events_come_by_may_break_again_and_again(processes: Processes) -> None:
    stack = await start(processes)
    killed = 0
    async with witness(stack.api) as client:
        jobs = [await client.submit("counts", {"to": 1000, "pause_s": 0.003}) for _ in range(5)]
        for chunks in range(20, 1000, 20):
            await client.until(jobs[:1], "chunk", times=chunks)
            killed += await stack.cut_off("pubsub")
        ends = await client.ends(*jobs)
        assert not client.notices
    assert killed >= 20
    for job in jobs:
        assert ends[job]["data"]["result"] == 1000
        assert [event["data"][0] for event in client.of(job, "chunk")] == list(range(1, 1001))


async def test_every_connection_to_the_store_may_break_again_and_again(processes: Processes) -> None:
    stack = await start(processes, workers=2)
    killed = 0
    async with witness(stack.api) as client:
        jobs = [await client.submit("counts", {"to": 500, "pause_s": 0.005}) for _ in range(20)]
        for chunks in range(25, 500, 25):
            await client.until(jobs[:1], "chunk", times=chunks)
            killed += await stack.cut_off("normal", "pubsub")
            jobs.append(await client.submit("process", {"text": ""}))
        ends = await client.ends(*jobs)
        assert not client.notices
    assert killed >= 100
    assert {end["type"] for end in ends.values()} == {"succeeded"}
    for job in jobs[:20]:
        last = [event for event in client.of(job) if event["attempt"] == ends[job]["attempt"]]
        assert [event["data"][0] for event in last if event["type"] == "chunk"] == list(range(1, 501))


async def test_a_node_that_was_taken_off_the_list_of_watchers_is_put_back(processes: Processes) -> None:
    stack = await start(processes, api={"MILLSTREAM_CHECK_S": "0.2"})
    async with witness(stack.api) as client:
        job = await client.submit("counts", {"to": 10_000, "pause_s": 0.01})
        for chunks in (20, 120):
            await client.until([job], "chunk", times=chunks)
            node = await watched_by(stack, job)
            assert node
            await forget_watchers(stack, job)

            async def back(node: bytes = node) -> bool:
                return await watched_by(stack, job) == node

            await until(back, what="the node to be put back")
        await client.call("job.cancel", job=job)
        await client.ends(job)


async def test_an_end_whose_notice_was_lost_is_noticed_all_the_same(processes: Processes) -> None:
    """The last event leaves no gap that a later one could show."""
    stack = await start(processes, api={"MILLSTREAM_CHECK_S": "0.2"})
    async with witness(stack.api) as client:
        jobs = [await client.submit("process", {"text": "", "delay_s": 3}) for _ in range(5)]
        jobs += [await client.submit("process", {"text": "", "delay_s": 3}, events="terminal") for _ in range(5)]
        await client.until(jobs[:5], "started")
        for job in jobs:
            await forget_watchers(stack, job)
        await client.ends(*jobs[:5])
        await client.until(jobs[5:], "succeeded")


async def test_an_event_published_while_nobody_listens_takes_the_node_off_and_the_log_makes_it_good(
    processes: Processes,
) -> None:
    """The API is held up, so that it cannot listen again before something was published."""
    stack = await start(processes)
    async with witness(stack.api) as client:
        job = await client.submit("counts", {"to": 600, "pause_s": 0.005})
        for chunks in (20, 200, 400):
            await client.until([job], "chunk", times=chunks)
            stack.api.signal(signal.SIGSTOP)
            assert await stack.cut_off("pubsub")

            async def taken_off() -> bool:
                return await watched_by(stack, job) == b""

            await until(taken_off, what="the node to be taken off the list")
            stack.api.signal(signal.SIGCONT)
        end = (await client.ends(job))[job]
        assert not client.notices
    assert end["data"]["result"] == 600


async def test_a_client_whose_connection_breaks_again_and_again_hears_everything_once(processes: Processes) -> None:
    stack = await start(processes)
    async with Client(stack.api.ws) as client:
        jobs = [await client.submit("counts", {"to": 500, "pause_s": 0.004}) for _ in range(10)]
        heard: list[list[Json]] = [[] for _ in jobs]

        async def listen(n: int) -> None:
            async for event in jobs[n]:
                heard[n].append(event)

        listening = asyncio.gather(*(listen(n) for n in range(len(jobs))))
        for chunks in range(25, 500, 25):

            async def so_far(chunks: int = chunks) -> bool:
                return len(heard[0]) >= chunks

            await until(so_far, what=f"{chunks} events")
            await client.drop_connection()
        await listening
        assert client.gaps == 0
    for events in heard:
        assert check_whole(events, after=1)["data"]["result"] == 500


async def test_a_job_that_was_left_while_its_log_was_being_read_says_nothing_more(processes: Processes) -> None:
    """The page that was on its way must not come after the reply to `job.detach`, nor into a later `job.attach`."""
    stack = await start(processes)
    async with witness(stack.api) as client, witness(stack.api) as other:
        job = await client.submit("counts", {"to": 8_000, "padding": 100})
        await client.ends(job)
        for _ in range(20):
            await other.attach(job)
            await other.until([job], "queued")
            await other.call("job.detach", job=job)
            for _ in range(5):
                await other.call("ping")
            assert not other.of(job)
        # The same when it is attached to again, which takes the place of what was there.
        for _ in range(20):
            reply = await other.attach(job)
            assert reply["replay_from"] == "0-0"
            await other.until([job], "queued")
        await other.until([job], *JOB_FAILURES)
        check_whole(other.of(job))
