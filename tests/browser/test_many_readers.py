"""200 readers of one job by server-sent events: each gets all of it, and the API does not grow."""

import asyncio

import httpx

from tests.browser.conftest import Live

READERS, CHUNKS, MIB = 200, 10_000, 2**20


async def test_each_of_many_readers_gets_every_event_in_order(live: Live) -> None:
    before = live.api.rss_bytes()
    limits = httpx.Limits(max_connections=READERS + 10)
    async with httpx.AsyncClient(base_url=live.api.url, trust_env=False, limits=limits, timeout=120) as http:
        job = (await http.post("/jobs", json={"analysis": "count", "params": {"to": CHUNKS}})).json()["job"]
        peak = before

        async def read() -> list[int]:
            async with http.stream("GET", f"/jobs/{job}/events") as answer:
                lines = answer.aiter_lines()
                return [int(line[4:].split("-")[0]) async for line in lines if line.startswith("id: ")]

        async def look() -> None:
            nonlocal peak
            while True:
                peak = max(peak, live.api.rss_bytes())
                assert (await http.get("/healthz")).status_code == 200
                await asyncio.sleep(0.05)

        looking = asyncio.create_task(look())
        readers = await asyncio.gather(*(read() for _ in range(READERS)))
        looking.cancel()
    assert all(seen == list(range(1, CHUNKS + 4)) for seen in readers)
    print(f"{READERS} readers, {CHUNKS} events each: the API grew by {(peak - before) / MIB:.0f} MiB")
    assert peak - before < 150 * MIB
