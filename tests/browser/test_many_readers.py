"""200 readers of one job by server-sent events: each gets all of it, the API does not grow, others are answered."""

import asyncio
import json
import sys
import time
from statistics import median

import httpx
import pytest

from tests.browser.conftest import Live

READERS, CHUNKS, MIB = 200, 10_000, 2**20
#: Requests of another client, from a process that is not busy reading; until its input ends.
LOOK = """
import json, os, select, sys, time
import httpx
url, pid = sys.argv[1:]
peak, waits = 0, []
with httpx.Client(trust_env=False, timeout=60) as http:
    while not select.select([sys.stdin], [], [], 0.05)[0]:
        began = time.monotonic()
        http.get(url).raise_for_status()
        waits.append(time.monotonic() - began)
        with open(f"/proc/{pid}/statm") as statm:
            peak = max(peak, int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
print(json.dumps([peak, waits]))
"""


@pytest.mark.timeout(180)
async def test_each_of_many_readers_gets_every_event_in_order(live: Live, capsys: pytest.CaptureFixture[str]) -> None:
    before = live.api.rss_bytes()
    limits = httpx.Limits(max_connections=READERS + 10)
    async with httpx.AsyncClient(base_url=live.api.url, trust_env=False, limits=limits, timeout=120) as http:
        job = (await http.post("/jobs", json={"analysis": "count", "params": {"to": CHUNKS}})).json()["job"]

        async def read() -> list[int]:
            async with http.stream("GET", f"/jobs/{job}/events") as answer:
                lines = answer.aiter_lines()
                return [int(line[4:].split("-")[0]) async for line in lines if line.startswith("id: ")]

        began = time.monotonic()
        looking = await asyncio.create_subprocess_exec(
            sys.executable, "-c", LOOK, f"{live.api.url}/jobs/{job}", str(live.api.pid),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        readers = await asyncio.gather(*(read() for _ in range(READERS)))
        took = time.monotonic() - began
        printed, _ = await looking.communicate(b"")
    assert looking.returncode == 0
    peak, waits = json.loads(printed)
    assert all(seen == list(range(1, CHUNKS + 4)) for seen in readers)
    with capsys.disabled():
        print(
            f"\n{READERS} readers, {CHUNKS} chunks each, {took:.1f} s: the API grew by {(peak - before) / MIB:.0f} MiB "
            f"to {peak / MIB:.0f}; {len(waits)} other requests: {median(waits):.3f} s, at most {max(waits):.2f}"
        )
    assert peak - before < 150 * MIB
    assert len(waits) > 10
    assert max(waits) < 5
