"""Events and cursors on their way through the store."""

import json
from datetime import UTC, datetime

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from millstream.protocol.event_types import EVENT_TYPES, TERMINAL_TYPES
from millstream.protocol.events import START, Cursor, Event, read_logged, read_published, rfc3339
from millstream.protocol.messages import encode_event

# What names a job: any text that has an encoding. Stock arq clients choose the names of their jobs themselves.
names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=5)
numbers = st.integers(0, 10**15 - 1)
moments = st.integers(0, 253_402_300_799_999)  # up to the year 9999


@given(names, st.integers(1, 10**9), moments, st.integers(0, 100), st.sampled_from(sorted(EVENT_TYPES)), values)
@example("two\nlines and a space", 2, 3, 1, "chunk", "line\nbreak")
@example("\n", 2, 3, 1, "chunk", {})
def test_an_event_comes_out_of_the_store_as_it_went_in(
    job: str, seq: int, at: int, attempt: int, type: str, value: object
) -> None:
    data = json.dumps(value).encode()
    head = f"{seq} {at} {attempt} {type}\n".encode()
    event = Event(job, seq, at, attempt, type, data)
    assert read_published(head + job.encode() + b"\n" + data) == event  # as lua/prelude.lua writes it
    assert read_logged(job, head + data) == event
    assert event.cursor == (seq, at)
    assert event.terminal == (type in TERMINAL_TYPES)

    sent = json.loads(event.as_json())
    assert list(sent) == ["job", "seq", "cursor", "attempt", "type", "at", "data"]
    assert (sent["job"], sent["seq"], sent["attempt"], sent["type"]) == (job, seq, attempt, type)
    assert (sent["cursor"], sent["at"]) == (f"{seq}-{at}", rfc3339(at))
    assert sent["data"] == json.loads(data)
    assert json.loads(encode_event(event)) == {"jsonrpc": "2.0", "method": "job.event", "params": sent}


@pytest.mark.parametrize(
    "payload", [b"", b"\n\n", b"1 2 3 chunk x\nj\n{}", b"1 2 chunk\nj\n{}", b"x 2 1 chunk\nj\n{}", b"{}"]
)
def test_what_is_not_an_event_is_an_error_of_value(payload: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (any of them)
        read_published(payload)


@given(moments)
@example(0)
@example(1_764_000_000_007)
def test_times_are_rfc_3339_in_utc_with_milliseconds(ms: int) -> None:
    text = rfc3339(ms)
    assert text.endswith("Z")
    assert text[19] == "."
    assert len(text) == len("2026-11-24T08:00:00.000Z")
    moment = datetime.fromisoformat(text)
    assert round((moment - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds() * 1000) == ms


@given(numbers, numbers)
def test_a_cursor_reads_what_it_writes(seq: int, at: int) -> None:
    cursor = Cursor(seq, at)
    assert Cursor.parse(str(cursor)) == cursor


@given(st.text("0123456789-+ _.\n٣²") | st.from_regex(r"[0-9]{0,20}-[0-9]{0,20}"))
@example("1-2\n")
@example("01-2")
@example("1-02")
@example("-1-2")
@example("1_0-2")
@example("1-2-3")
@example("²-1")
@example("٣-1")
@example("")
@example("9999999999999999-1")
def test_a_cursor_reads_nothing_that_it_cannot_have_written(text: str) -> None:
    try:
        cursor = Cursor.parse(text)
    except ValueError:
        return
    assert str(cursor) == text


def test_the_start_is_before_every_event() -> None:
    assert str(START) == "0-0"
    assert Cursor.parse("0-0") == START
