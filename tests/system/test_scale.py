"""Many jobs over several workers: each runs once."""

import asyncio
from pathlib import Path

from tests.processes import Processes
from tests.system.stack import runs, start
from tests.system.witness import witness


async def test_a_thousand_jobs_over_three_workers_run_once_each(processes: Processes, tmp_path: Path) -> None:
    stack = await start(processes, workers=3, MILLSTREAM_MAX_JOBS="10")
    directory = runs(tmp_path)
    async with witness(stack.api) as client:
        submit = (client.submit("recorded", {"directory": directory, "wait_s": 0.01}) for _ in range(1000))
        jobs = await asyncio.gather(*submit)
        ends = await client.ends(*jobs, within_s=60)
    assert len(set(jobs)) == 1000
    assert {(end["type"], end["attempt"], end["data"]["result"]) for end in ends.values()} == {("succeeded", 1, 1)}
    marks = {mark.name: mark.read_text() for mark in Path(directory).iterdir()}
    assert marks == dict.fromkeys(jobs, "started\n")
    assert all([event["type"] for event in client.of(job)] == ["started", "succeeded"] for job in jobs)
    shares = [client.of(job, "started")[0]["data"]["worker"] for job in jobs]
    assert {worker.url for worker in stack.workers} == set(shares)
