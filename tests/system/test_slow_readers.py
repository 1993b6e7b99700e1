"""A thousand slow readers of one large file: each gets a little at a time, and the API does not grow by it."""

import pytest

from tests.benchmarks.files import slow

READERS, MOST_KIB = 1000, 30


async def test_a_slow_reader_costs_next_to_no_memory(capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        grown = await slow(READERS, 6)
    assert grown < MOST_KIB
