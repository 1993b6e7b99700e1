"""What must be the same when an idempotency key is used again."""

import threading
from typing import Any

import pytest

from millstream.protocol.messages import Submit
from millstream_api.jobs import commands
from millstream_api.jobs.commands import LARGE, fingerprint


async def of(params: dict[str, Any], **options: Any) -> str:
    return await fingerprint(Submit(analysis="a", params=params, key="k", **options), 0)


async def test_the_order_of_members_does_not_matter() -> None:
    nested = {"a": 1, "b": [{"c": 2, "d": 3}]}
    assert await of(nested) == await of({"b": [{"d": 3, "c": 2}], "a": 1})


@pytest.mark.parametrize(
    "other", [{"a": [2, 1]}, {"a": [1, 2.5]}, {"a": [1, "2"]}, {"a": {"1": 2}}, {"a": [True, 2]}, {}]
)
async def test_everything_else_does(other: dict[str, Any]) -> None:
    assert await of({"a": [1, 2]}) != await of(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [(50, 50.0), (0, -0.0), (-3, -3.0), (10**22, 1e22), ([{"n": 1}], [{"n": 1.0}])],
)
async def test_a_number_is_the_same_with_a_fraction_of_zero(one: Any, other: Any) -> None:
    assert await of({"a": one}) == await of({"a": other})


@pytest.mark.parametrize(
    ("one", "other"), [(1, True), (0, False), (2**60, 2**60 + 1), (1, "1.0"), (0.1, 0.10000000000000002)]
)
async def test_what_only_resembles_a_number_is_another_request(one: Any, other: Any) -> None:
    assert await of({"a": one}) != await of({"a": other})


async def test_options_count() -> None:
    assert await of({}) == await of({}, delay_s=0.0)
    assert await of({}) != await of({}, delay_s=1.0)
    assert await of({}) == await of({}, events="terminal")


@pytest.mark.parametrize("size", [LARGE, LARGE + 1])
async def test_large_parameters_are_looked_at_in_a_thread(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "_digest", lambda _: str(threading.get_ident()))
    here = str(threading.get_ident())
    assert (await fingerprint(Submit(analysis="a", key="k"), size) == here) is (size <= LARGE)
