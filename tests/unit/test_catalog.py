"""What is wrong with parameters is told in detail where they are small, and in time where they are not."""

from typing import Any

import pytest

from millstream.protocol.catalog import EXPLAINED, Entry, weight
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


TOO_LARGE = "It is not what the schema of a expects, and too large to say more"
NOT_TEXT = '1 is not of type "string"'
LARGE: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "many wrong values": ({"text": "", "numbers": ["x"] * 10_000}, {"/params/numbers": TOO_LARGE}),
    "a long string": ({"text": 1, "numbers": "x" * 100_000}, {"/params/text": NOT_TEXT, "/params/numbers": TOO_LARGE}),
    "long numbers": ({"text": 1, "numbers": [10**4000] * 10}, {"/params/text": NOT_TEXT}),
    "an unknown member": (
        {"text": "x" * 100_000, "more": 1},
        {"/params": "Additional properties are not allowed ('more' was unexpected)"},
    ),
    "an unknown member with a long name": ({"text": "", "x" * 100_000: 1}, {"/params/" + "x" * 200: TOO_LARGE}),
    "a member that is missing": ({"numbers": [1] * 10_000}, {"/params": '"text" is a required property'}),
}


@pytest.mark.parametrize(("params", "expected"), LARGE.values(), ids=LARGE)
def test_of_large_parameters_the_members_that_are_wrong_are_named(
    params: dict[str, Any], expected: dict[str, str]
) -> None:
    found = errors(params)
    assert found == expected


def test_what_is_wrong_only_with_all_together_is_told_of_all() -> None:
    with pytest.raises(Problem) as caught:
        entry({"maxProperties": 1}).check({"a": "x" * 10_000, "b": 1})
    assert caught.value.errors == [{"pointer": "/params", "detail": "They do not match the schema of a"}]


def test_only_so_many_values_are_explained() -> None:
    params = {"text": "", **{f"x{n}": n for n in range(10_000)}}
    with pytest.raises(Problem) as caught:
        entry(SCHEMA).check(params)
    assert len(caught.value.errors) == 50


@pytest.mark.parametrize(
    "value",
    [[1] * EXPLAINED, "x" * 32 * EXPLAINED, {"x" * 32 * EXPLAINED: 1}, 1 << 128 * EXPLAINED, [[[]] * EXPLAINED]],
    ids=["values", "characters", "characters of names", "digits", "arrays"],
)
def test_what_is_large_is_told_by_its_values_characters_and_digits(value: Any) -> None:
    assert weight({"p": value}) > EXPLAINED


def test_what_is_small() -> None:
    assert weight({"p": [{"a": [True, None, 1.5, "x" * 200]}] * 5}) <= EXPLAINED
