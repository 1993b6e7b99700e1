"""The five conditionals, in the order of RFC 9110 §13.2.2."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.conditions import Validators, range_applies, refused

NOW = Validators('"now"', 1_700_000_000)
DATE = NOW.last_modified
EARLIER = Validators('"x"', NOW.modified - 10).last_modified
LATER = Validators('"x"', NOW.modified + 10).last_modified


@pytest.mark.parametrize(
    ("headers", "reading", "writing"),
    [
        ({}, None, None),
        ({"if-match": '"now"'}, None, None),
        ({"if-match": '"old", "now"'}, None, None),
        ({"if-match": "*"}, None, None),
        ({"if-match": '"old"'}, 412, 412),
        ({"if-match": 'W/"now"'}, 412, 412),  # strong comparison
        ({"if-none-match": '"now"'}, 304, 412),
        ({"if-none-match": 'W/"now"'}, 304, 412),  # weak comparison
        ({"if-none-match": '"a","b" , "now"'}, 304, 412),
        ({"if-none-match": "*"}, 304, 412),
        ({"if-none-match": '"old"'}, None, None),
        ({"if-modified-since": DATE}, 304, None),
        ({"if-modified-since": LATER}, 304, None),
        ({"if-modified-since": EARLIER}, None, None),
        ({"if-modified-since": "yesterday"}, None, None),
        ({"if-unmodified-since": DATE}, None, None),
        ({"if-unmodified-since": EARLIER}, 412, 412),
        ({"if-unmodified-since": "whenever"}, None, None),
        # Each is left out where a stronger one is there.
        ({"if-match": '"now"', "if-unmodified-since": EARLIER}, None, None),
        ({"if-none-match": '"old"', "if-modified-since": DATE}, None, None),
        # If-Match is looked at first, If-None-Match after it.
        ({"if-match": '"old"', "if-none-match": '"now"'}, 412, 412),
        ({"if-match": '"now"', "if-none-match": '"now"'}, 304, 412),
    ],
)
def test_what_a_condition_does_to_reading_and_to_writing(
    headers: dict[str, str], reading: int | None, writing: int | None
) -> None:
    assert refused("GET", headers, NOW) == refused("HEAD", headers, NOW) == reading
    assert refused("PUT", headers, NOW) == refused("DELETE", headers, NOW) == writing


def test_where_nothing_is_yet_only_creating_goes_on() -> None:
    assert refused("PUT", {"if-none-match": "*"}, None) is None
    assert refused("PUT", {"if-match": "*"}, None) == 412
    assert refused("PUT", {"if-match": '"x"'}, None) == 412


@given(
    st.dictionaries(
        st.sampled_from(["if-match", "if-none-match", "if-modified-since", "if-unmodified-since"]), st.text()
    )
)
def test_no_header_breaks_it(headers: dict[str, str]) -> None:
    assert refused("GET", headers, NOW) in (None, 304, 412)


def test_ranges_stand_only_on_the_same_strong_validator() -> None:
    later = NOW.modified + 100
    assert range_applies(None, NOW, later)
    assert range_applies('"now"', NOW, later)
    assert not range_applies('"old"', NOW, later)
    assert not range_applies('W/"now"', NOW, later)
    assert range_applies(DATE, NOW, later)
    assert not range_applies(LATER, NOW, later)
    assert not range_applies(DATE, NOW, NOW.modified)  # within its second a date is weak
