"""The weighted lists of Accept and Accept-Encoding, and what is chosen by them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millstream_api.files.representations import accepted_codings
from millstream_api.negotiation import MAX_ITEMS, most_wanted, weights


@pytest.mark.parametrize(
    ("header", "found"),
    [
        (None, {}),
        ("", {}),
        ("gzip", {"gzip": 1}),
        ("gzip;q=0.5, BR ; Q=1", {"gzip": 0.5, "br": 1}),
        ("text/html;level=1;q=0.3,*/*;q=0", {"text/html": 0.3, "*/*": 0}),
        ("gzip;q=much", {"gzip": 0}),
        *((f"gzip;q={weight}", {"gzip": 0}) for weight in ("nan", "inf", "-inf", "-1", "1.1", "1e400", "")),
    ],
)
def test_each_item_has_its_weight(header: str | None, found: dict[str, float]) -> None:
    assert weights(header) == found


def test_of_a_long_header_the_first_items_count() -> None:
    names = [f"x{number}" for number in range(MAX_ITEMS)]
    assert list(weights(",".join([*names, "gzip", *["y"] * 1000]))) == names


@given(st.text())
def test_no_header_breaks_it(header: str) -> None:
    weights(header)


@pytest.mark.parametrize(
    ("header", "chosen"),
    [
        (None, []),
        ("identity", []),
        ("gzip, br, zstd", ["zstd", "br", "gzip"]),
        ("gzip, br;q=0.5", ["gzip", "br"]),
        ("*", ["zstd", "br", "gzip"]),
        ("*;q=0.1, gzip", ["gzip", "zstd", "br"]),
        ("br;q=0, *", ["zstd", "gzip"]),
    ],
)
def test_codings_in_the_order_in_which_they_are_wanted(header: str | None, chosen: list[str]) -> None:
    assert accepted_codings(header) == chosen


JSON, SSE, LINES = "application/json", "text/event-stream", "application/jsonl"


@pytest.mark.parametrize(
    ("header", "chosen"),
    [
        (None, ""),
        ("text/html", ""),
        ("*/*", JSON),
        ("application/*", JSON),
        ("text/*", SSE),
        (f"{SSE}, */*", SSE),
        (f"*/*, {LINES}", LINES),
        (f"{SSE};q=0.1, */*", JSON),
        (f"{JSON};q=0, application/*", LINES),
        (f"{LINES};q=0.9, {JSON}", JSON),
        (f"{LINES}, {JSON}", LINES),
        ("*/*;q=0", ""),
    ],
)
def test_each_media_type_has_the_weight_of_the_most_specific_range(header: str | None, chosen: str) -> None:
    assert most_wanted(header, (JSON, SSE, LINES)) == chosen
