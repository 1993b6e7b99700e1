"""What is wrong with parameters is told in detail where they are small, and in time where they are not."""

from typing import Any

import pytest

from millstream.protocol.catalog import EXPLAINED, Entry, is_small
from millstream.protocol.errors import Problem

NUMBERS = {"type": "array", "items": {"type": "integer"}}
SCHEMA = {
    "type": "object",
    "properties": {"text": {"type": "string"}, "numbers": NUMBERS},
    "required": ["text"],
    "additionalProperties": False,
}


def entry(schema: dict[str, Any]) -> Entry:
    return Entry(name="a", description="", params_schema=schema, result_schema={}, timeout_s=1, queue="default")


def errors(params: dict[str, Any]) -> dict[str, str]:
    with pytest.raises(Problem) as caught:
        entry(SCHEMA).check(params)
    assert caught.value.slug == "invalid_params"
    return {error["pointer"]: error["detail"] for error in caught.value.errors}


def test_each_error_in_small_parameters_is_explained() -> None:
    found = errors({"text": 1, "numbers": [1, "x", 3.5]})
    assert found == {
        "/params/text": '1 is not of type "string"',
        "/params/numbers/1": '"x" is not of type "integer"',
        "/params/numbers/2": '3.5 is not of type "integer"',
    }


LARGE: dict[str, tuple[dict[str, Any], list[str]]] = {
    "many wrong values": ({"text": "", "numbers": ["x"] * 10_000}, ["/params/numbers"]),
    "a long string": ({"text": 1, "numbers": "x" * 100_000}, ["/params/text", "/params/numbers"]),
    "long numbers": ({"text": 1, "numbers": [10**4000] * 10}, ["/params/text"]),
    "an unknown member": ({"text": "x" * 100_000, "more": 1}, ["/params/more"]),
    "an unknown member with a long name": ({"text": "", "x" * 100_000: 1}, ["/params/" + "x" * 200]),
    "a member that is missing": ({"numbers": [1] * 10_000}, ["/params"]),
}


@pytest.mark.parametrize(("params", "pointers"), LARGE.values(), ids=LARGE)
def test_of_large_parameters_the_members_that_are_wrong_are_named(
    params: dict[str, Any], pointers: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Entry, "_explain", lambda *_: pytest.fail("each value would be quoted"))
    found = errors(params)
    assert list(found) == pointers
    assert all("too large" in detail for detail in found.values())


def test_of_many_members_only_some_are_looked_at() -> None:
    assert len(errors({f"x{n}": n for n in range(10_000)})) == 50


TOO_LARGE = {
    "values": [1] * EXPLAINED,
    "characters": "x" * 32 * EXPLAINED,
    "characters of names": {"x" * 32 * EXPLAINED: 1},
    "digits": 1 << 128 * EXPLAINED,
}


@pytest.mark.parametrize("value", TOO_LARGE.values(), ids=TOO_LARGE)
def test_what_is_large_is_told_by_its_values_characters_and_digits(value: Any) -> None:
    assert not is_small({"p": value})


def test_what_is_small() -> None:
    assert is_small({"p": [{"a": [True, None, 1.5, "x" * 200]}] * 20})
