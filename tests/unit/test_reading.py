"""JSON of strangers is read within limits: values are counted before anything is made of them. And what is written for
strangers can be read by them.
"""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict
from pydantic_core import from_json

from millstream.protocol import reading
from millstream.protocol.errors import Problem
from millstream.protocol.reading import (
    DIGITS,
    MANY,
    WRITTEN_DIGITS,
    WRITTEN_LEVELS,
    has_more_values,
    read_json,
    read_params,
    readable,
)

scalars = st.none() | st.booleans() | st.integers() | st.text() | st.sampled_from(['"', "\\", "\\\\", ',[{"', "[]{}"])
documents = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=30)


def count(document: Any) -> int:
    members = document.values() if isinstance(document, dict) else document if isinstance(document, list) else ()
    names = len(document) if isinstance(document, dict) else 0
    return 1 + names + sum(map(count, members))


@given(documents, st.booleans())
def test_values_are_counted_exactly(document: Any, ascii: bool) -> None:
    text, values = json.dumps(document, ensure_ascii=ascii), count(document)
    assert not has_more_values(text, values)
    assert values == 1 or has_more_values(text, values - 1)


@given(st.text(alphabet=',[]{}":\\ 1x'), st.integers(1, 30))
def test_counting_stands_any_text(text: str, limit: int) -> None:
    has_more_values(text, limit)


TOO_MANY = {
    "numbers": "[" + "1," * 10 + "1]",
    "empty arrays": "[" + "[]," * 10 + "[]]",
    "empty strings": "[" + '"",' * 10 + '""]',
    "members": "{" + ",".join(f'"{n}":1' for n in range(5)) + "}",
    "nested": "[" * 11 + "]" * 11,
    "cut off": "[" + "1," * 10,
}


@pytest.mark.parametrize("as_bytes", [False, True])
@pytest.mark.parametrize("text", TOO_MANY.values(), ids=TOO_MANY)
def test_more_values_than_the_limit_are_refused_before_they_are_read(
    text: str, as_bytes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "from_json", lambda *_, **__: pytest.fail("it was read"))
    with pytest.raises(Problem) as caught:
        read_json(text.encode() if as_bytes else text, 10, what="body")
    assert caught.value.slug == "payload_too_large"
    assert "10 JSON values and names" in caught.value.detail


def test_prose_with_many_commas_is_one_value() -> None:
    text = json.dumps({"text": 'a, "b", [c], {d}, \\' * 100})
    assert read_json(text, 3, what="body") == json.loads(text)


@pytest.mark.parametrize("number", ["9" * DIGITS, "-" + "1234567890" * 50, "1." + "0" * DIGITS, f"[1,{'7' * 4000}]"])
def test_a_number_that_takes_long_to_read_is_not_read(number: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "from_json", lambda *_, **__: pytest.fail("it was read"))
    with pytest.raises(Problem) as caught:
        read_json(number, 10, what="body")
    assert caught.value.slug == "parse_error"
    assert "400 digits" in caught.value.detail


@pytest.mark.parametrize(
    "document", [10 ** (DIGITS - 1) - 1, "9" * 5000, ["\\", '"' + "1" * 5000], {"1" * 5000: '\\"'}]
)
def test_digits_in_a_string_are_no_number(document: Any) -> None:
    assert read_json(json.dumps(document), 10, what="body") == document


@pytest.mark.parametrize("raw", [b"\xff", b"{", b'"\xc3"', b"[NaN]", b""])
def test_what_is_not_json_is_a_parse_error(raw: bytes) -> None:
    with pytest.raises(Problem) as caught:
        read_json(raw, 10, what="body")
    assert (caught.value.slug, caught.value.detail[:21]) == ("parse_error", "The body is not JSON:")


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid")
    n: int
    m: int = 0


def test_each_of_a_few_wrong_parameters_is_named() -> None:
    with pytest.raises(Problem) as caught:
        read_params(Model, {"m": "x", **{f"x{n}": 1 for n in range(20)}}, "it")
    assert len(caught.value.errors) == 22


def test_of_many_parameters_none_is_looked_at() -> None:
    with pytest.raises(Problem) as caught:
        read_params(Model, {f"x{n}": 1 for n in range(MANY + 1)}, "it")
    assert (caught.value.slug, caught.value.errors) == ("invalid_params", [])
    assert caught.value.detail == "it: 26 parameters were sent; those there are: n, m."


def nested(levels: int, opening: str = "[", closing: str = "]", inner: str = "1") -> bytes:
    return (opening * levels + inner + closing * levels).encode()


@given(documents)
def test_what_can_be_read_is_written_as_it_is(document: Any) -> None:
    written = json.dumps(document).encode()
    assert readable(written) == written


@pytest.mark.parametrize(
    "written",
    [
        nested(WRITTEN_LEVELS),
        nested(WRITTEN_LEVELS, '{"a":', "}"),
        nested(WRITTEN_LEVELS, inner='"[[[[{{{{\\\\"'),
        b"[" + b",".join([nested(WRITTEN_LEVELS - 1)] * 3) + b"]",
        json.dumps(["[" * 1000, {'"[' * 1000: '\\"{' * 1000}]).encode(),
        json.dumps([[{}, []]] * 1000).encode(),
        json.dumps(10**WRITTEN_DIGITS - 1).encode(),
        json.dumps(["9" * 10_000, {"9" * 10_000: 1}]).encode(),
        json.dumps(["NaN", "Infinity", 1.5]).encode(),
    ],
    ids=range(9),
)
def test_a_reader_can_read_up_to_the_limits(written: bytes) -> None:
    envelope = b'[{"result":{"params":{"data":{"result":%b}}}}]' % readable(written)
    assert from_json(envelope)[0]["result"]["params"]["data"]["result"] == json.loads(written)


@pytest.mark.parametrize(
    ("written", "why"),
    [
        (nested(WRITTEN_LEVELS + 1), "190 levels"),
        (nested(254), "190 levels"),
        (nested(WRITTEN_LEVELS + 1, '{"a":', "}"), "190 levels"),
        (nested(WRITTEN_LEVELS // 2, '[{"\\"]":', "}]"), None),
        (nested(WRITTEN_LEVELS // 2 + 1, '[{"\\"]":', "}]"), "190 levels"),
        (b"[1," + nested(WRITTEN_LEVELS) + b"]", "190 levels"),
        (b"1" * (WRITTEN_DIGITS + 1), "4300 digits"),
        (b'{"a":[-' + b"1" * 10_000 + b"]}", "4300 digits"),
    ],
    ids=range(8),
)
def test_what_a_reader_could_not_read_is_refused(written: bytes, why: str | None) -> None:
    if why is None:
        assert readable(written) == written
    else:
        with pytest.raises(ValueError, match=why):
            readable(written)


def test_what_json_has_no_numbers_for_is_null() -> None:
    assert readable(b'[NaN,-Infinity,{"a":Infinity},"NaN",1.5]') == b'[null,null,{"a":null},"NaN",1.5]'
