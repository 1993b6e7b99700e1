"""Ten thousand jobs beside an analysis that does at random what an analysis must not: each innocent one ends right."""

import asyncio
import json
import random
from collections import Counter
from typing import Any

import pytest

from millstream.client.client import Client
from millstream.store import keys
from tests.integration.misbehaving_analyses import DEEDS
from tests.processes import Processes
from tests.system.stack import start
from tests.system.witness import Json, check_whole

JOBS = 10_000
AT_A_TIME = 500
GUILTY_EVERY = 10
SEED = 20261127
ANALYSES = "tests.integration.misbehaving_analyses,tests.integration.analyses_for_tests"
ODD = {"name": "odd", "description": "", "result_schema": {}, "timeout_s": 1, "queue": "default"}


def innocent(number: int) -> tuple[str, Json, object]:
    """An analysis, its parameters, and the result that is right."""
    text = f"text {number}"
    kinds: list[tuple[str, Json, object]] = [
        ("process", {"text": text}, f"Processed data: {text}"),
        ("process", {"text": text, "delay_s": number % 10 / 100}, f"Processed data: {text}"),
        ("report", {"count": 1 + number % 20}, 1 + number % 20),
        ("count_up", {"to": number % 30}, {"counted": number % 30}),
        ("anything", {"value": {"number": number, "nested": [[[text]]]}}, {"number": number, "nested": [[[text]]]}),
        ("flaky", {"good_from": 2}, 2),
    ]
    return kinds[number % len(kinds)]


@pytest.mark.timeout(300)
async def test_ten_thousand_jobs_end_right_beside_those_that_do_what_they_must_not(processes: Processes) -> None:
    stack = await start(processes, workers=2, lease_s=60, MILLSTREAM_ANALYSES=ANALYSES, MILLSTREAM_RETRY_BASE_S="0.05")
    advertise: Any = stack.client()
    async with advertise:
        await advertise.hset(keys.ANALYSES, "odd", json.dumps({**ODD, "params_schema": {"minLength": -1}}))
    chance, numbers, wrong = random.Random(SEED), iter(range(JOBS)), list[object]()
    ends: Counter[str] = Counter()

    async with Client(stack.api.ws) as client:

        async def one_by_one() -> None:
            for number in numbers:
                if number % GUILTY_EVERY == 0:
                    deed = chance.choice(list(DEEDS))
                    status, expected = DEEDS[deed]
                    job = await client.submit("misbehaves", {"how": deed.__name__})
                else:
                    analysis, params, expected = innocent(number)
                    status = "succeeded"
                    job = await client.submit(analysis, params)
                end = check_whole([event async for event in job], after=1)
                found = end["data"].get("result") if status == "succeeded" else end["data"]["error"].get("type")
                if (end["type"], found) != (status, expected):
                    wrong.append((number, status, expected, end))
                ends[end["type"]] += 1

        await asyncio.gather(*(one_by_one() for _ in range(AT_A_TIME)))
        assert client.gaps == 0
    assert not wrong, wrong[:3]
    assert ends.total() == JOBS
    print(dict(ends))
    for worker in stack.workers:
        assert worker.running is not None
        assert worker.running.returncode is None, "it was not started again"
        assert "draining" not in worker.log.read_text()
    async with stack.client() as store:
        assert await store.zcard(keys.lane()) == 0
