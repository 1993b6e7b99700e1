"""The tour that `millstream demo` gives: the main job on real text over real sockets, with what it measured."""

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pydoc_data.topics import topics

from websockets.asyncio.client import connect

from millstream.client.client import Client, Event, Job, JobFailed
from millstream.command.supervisor import Supervisor

TEXTS = [text for text in topics.values() if isinstance(text, str) and len(text) > 2000]


class Wrong(Exception):
    """A check of the tour failed."""


async def tour(supervisor: Supervisor) -> bool:
    """Run each step and print what was seen. Returns whether all checks passed."""
    url = supervisor.url.replace("http", "ws", 1) + "/ws"
    steps: list[tuple[str, Callable[[], Awaitable[str]]]] = [
        ("A plain client sends 'hello'", lambda: _plain(url)),
        (f"{4 * len(TEXTS)} text jobs at once on one socket", lambda: _many(url)),
        ("One long text, its partial figures streamed", lambda: _streamed(url)),
        ("A job that would take a minute is cancelled", lambda: _cancelled(url)),
        ("The connection drops in mid-stream; the client resumes from its cursor", lambda: _resumed(url)),
        ("A worker is killed with jobs in flight", lambda: _worker_killed(url, supervisor)),
    ]
    say, good = supervisor.say, True
    for number, (title, step) in enumerate(steps, 1):
        say(f"\n{number}. {title}")
        try:
            async with asyncio.timeout(60):
                say("   " + (await step()).replace("\n", "\n   "))
        except (Wrong, JobFailed, TimeoutError) as error:
            say(f"   FAILED: {error or 'no answer within 60 s'}")
            good = False
    say("\nAll checks passed." if good else "\nA check failed; see above.")
    return good


async def _plain(url: str) -> str:
    async with connect(url, proxy=None) as socket:
        answer = ""
        times = []
        for _ in range(101):
            began = time.perf_counter()
            await socket.send("hello")
            answer = str(await socket.recv())
            times.append((time.perf_counter() - began) * 1000)
    _must(answer == "Processed data: hello", f"the answer was {answer!r}")
    return f"{answer!r}, through queue, worker and back; round trip {sorted(times)[50]:.1f} ms (median of 101)"


async def _many(url: str) -> str:
    async with Client(url) as client:
        began = time.perf_counter()
        texts = [text for text in TEXTS for _ in range(4)]
        jobs = await asyncio.gather(*(client.submit("text.stats", {"text": text}) for text in texts))
        seen = await asyncio.gather(*(_watch(job) for job in jobs))
        elapsed = time.perf_counter() - began
    workers = Counter(event["data"]["worker"] for events in seen for event in events if event["type"] == "started")
    characters = sum(events[-1]["data"]["result"]["characters"] for events in seen)
    _must(characters == sum(map(len, texts)), "the characters counted are not those sent")
    shares = ", ".join(f"{name}: {count}" for name, count in sorted(workers.items()))
    return (
        f"{len(jobs)} results, {sum(map(len, seen))} events, each log without gaps or duplicates, in {elapsed:.2f} s "
        f"({len(jobs) / elapsed:.0f} jobs/s, {characters / elapsed / 1e6:.1f} MB/s of text)\nby {shares}"
    )


async def _streamed(url: str) -> str:
    text = "\n".join(TEXTS)[:500_000]
    async with Client(url) as client:
        job = await client.submit("text.stats", {"text": text, "top": 3, "block_chars": 100_000})
        events = await _watch(job)
    lines = []
    for event in events:
        if event["type"] == "chunk":
            chunk = event["data"]
            lines.append(f"chunk {chunk['block']} of {chunk['of']}: {chunk['words']} words so far")
    result = events[-1]["data"]["result"]
    _must(lines != [] and result["characters"] == len(text), "the figures are not those of the text")
    top = ", ".join(f"{entry['word']} {entry['count']}" for entry in result["top_words"])
    lines.append(f"result: {result['characters']} characters, {result['words']} words; most frequent: {top}")
    return "\n".join(lines)


async def _cancelled(url: str) -> str:
    async with Client(url) as client:
        job = await client.submit("process", {"text": "never", "delay_s": 60})
        events = []
        async for event in job:
            events.append(event)
            if event["type"] == "started":
                began = time.perf_counter()
                await job.cancel("the demo asked for it")
    elapsed = (time.perf_counter() - began) * 1000
    _must(events[-1]["type"] == "cancelled", f"it ended as {events[-1]['type']}")
    return f"its socket had the 'cancelled' event {elapsed:.1f} ms after the request"


async def _resumed(url: str) -> str:
    text = "\n".join(TEXTS)[:400_000]
    async with Client(url) as client:
        job = await client.submit("text.stats", {"text": text, "block_chars": 500})
        events: list[Event] = []
        async for event in job:
            events.append(event)
            if len(events) == 20:
                await client.drop_connection()
        _must(client.gaps == 0, "the server reported a gap")
    _whole(events)
    return f"dropped after event 21 of {events[-1]['seq']}; every event came, none twice"


async def _worker_killed(url: str, supervisor: Supervisor) -> str:
    async with Client(url) as client:
        jobs = [await client.submit("process", {"text": str(n), "delay_s": 1.5}) for n in range(40)]
        first = jobs[0]
        watching = [asyncio.create_task(_watch(job)) for job in jobs[1:]]
        events: list[Event] = []
        killed = 0.0
        async for event in first:
            events.append(event)
            if event["type"] == "started" and not killed:
                pid = int(event["data"]["worker"].split("-")[-2])
                _must(pid in [child.pid for child in supervisor.worker_children], f"{pid} is not one of our workers")
                killed = time.time()
                os.kill(pid, signal.SIGKILL)
        seen = [events, *(await asyncio.gather(*watching))]
    for number, job in enumerate(seen):
        _must(job[-1]["type"] == "succeeded", f"job {number} ended as {job[-1]['type']}")
    again = [event for job in seen for event in job if event["type"] == "started" and event["attempt"] == 2]
    _must(bool(again), "nothing had to run again")
    return f"{len(seen)} jobs succeeded, once each; {len(again)} of them were lost with worker {pid} and ran again"


async def _watch(job: Job) -> list[Event]:
    events = [event async for event in job]
    _whole(events)
    return events


def _whole(events: list[Event]) -> None:
    """A log as it was watched: from event 2 on, without gaps or duplicates, one terminal event."""
    _must([event["seq"] for event in events] == list(range(2, len(events) + 2)), "the log has a gap or a duplicate")


def _must(condition: bool, otherwise: str) -> None:
    if not condition:
        raise Wrong(otherwise)
