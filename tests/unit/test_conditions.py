"""The five conditionals, in the order of RFC 9110 §13.2.2."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millstream_api.files.conditions import Validators, evaluate_preconditions, range_applies

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
        # Dates in any of the three forms of §5.6.7; what is none of them counts for nothing (§13.1.3, §13.1.4).
        ({"if-modified-since": "Tuesday, 14-Nov-23 22:13:20 GMT"}, 304, None),
        ({"if-modified-since": "Tue Nov 14 22:13:20 2023"}, 304, None),
        ({"if-unmodified-since": "Sun Nov  6 08:49:37 1994"}, 412, 412),
        ({"if-modified-since": "Tue, 14 Nov 2023 22:13:20 +0000"}, None, None),
        ({"if-modified-since": "2023-11-14T22:13:20Z"}, None, None),
        ({"if-modified-since": "Tue, 31 Feb 2023 22:13:20 GMT"}, None, None),
        ({"if-modified-since": f"{DATE}, {DATE}"}, None, None),
        ({"if-modified-since": "0"}, None, None),
        ({"if-modified-since": ""}, None, None),
        ({"if-unmodified-since": "Tue, 14 Nov 1994 22:13:20 EST"}, None, None),
        ({"if-unmodified-since": "14 Nov 94 22:13"}, None, None),
        # Lists: any one will do; a comma may stand in a tag, and what is not quoted is no tag.
        ({"if-match": ' "a,b" ,, "now"'}, None, None),
        ({"if-match": '"a","now,"'}, 412, 412),
        ({"if-match": "now"}, 412, 412),
        ({"if-match": '"NOW"'}, 412, 412),
        ({"if-match": ""}, 412, 412),
        ({"if-match": 'W/"now", "now"'}, None, None),
        ({"if-none-match": 'w/"now"'}, None, None),  # the mark is case-sensitive (§8.8.3)
        ({"if-none-match": "now"}, None, None),
        ({"if-none-match": ""}, None, None),
        # Each is left out where a stronger one is there.
        ({"if-match": '"now"', "if-unmodified-since": EARLIER}, None, None),
        ({"if-none-match": '"old"', "if-modified-since": DATE}, None, None),
        # If-Match is looked at first, If-None-Match after it.
        ({"if-match": '"old"', "if-none-match": '"now"'}, 412, 412),
        ({"if-match": '"now"', "if-none-match": '"now"'}, 304, 412),
        ({"if-unmodified-since": EARLIER, "if-none-match": '"old"'}, 412, 412),
        ({"if-unmodified-since": DATE, "if-modified-since": DATE}, 304, None),
        ({"if-none-match": "nothing", "if-modified-since": DATE}, None, None),
    ],
)
def test_what_a_condition_does_to_reading_and_to_writing(
    headers: dict[str, str], reading: int | None, writing: int | None
) -> None:
    assert evaluate_preconditions("GET", headers, NOW) == evaluate_preconditions("HEAD", headers, NOW) == reading
    assert evaluate_preconditions("PUT", headers, NOW) == evaluate_preconditions("DELETE", headers, NOW) == writing


def test_where_nothing_is_yet_only_creating_goes_on() -> None:
    assert evaluate_preconditions("PUT", {"if-none-match": "*"}, None) is None
    assert evaluate_preconditions("PUT", {"if-match": "*"}, None) == 412
    assert evaluate_preconditions("PUT", {"if-match": '"x"'}, None) == 412


@given(
    st.dictionaries(
        st.sampled_from(["if-match", "if-none-match", "if-modified-since", "if-unmodified-since"]), st.text()
    )
)
def test_no_header_breaks_it(headers: dict[str, str]) -> None:
    assert evaluate_preconditions("GET", headers, NOW) in (None, 304, 412)


def test_ranges_stand_only_on_the_same_strong_validator() -> None:
    later = NOW.modified + 100
    assert range_applies(None, NOW, later)
    assert range_applies('"now"', NOW, later)
    assert not range_applies('"old"', NOW, later)
    assert not range_applies('W/"now"', NOW, later)
    assert range_applies(DATE, NOW, later)
    assert not range_applies(LATER, NOW, later)
    assert not range_applies(DATE, NOW, NOW.modified)  # within its second a date is weak
    assert not range_applies("*", NOW, later)
    assert not range_applies("now", NOW, later)
    assert not range_applies('"old", "now"', NOW, later)  # one validator, no list
    assert not range_applies(EARLIER, NOW, later)
    assert not range_applies("", NOW, later)


def test_without_a_file_the_dates_say_nothing() -> None:
    for name in ("if-modified-since", "if-unmodified-since"):
        assert evaluate_preconditions("PUT", {name: EARLIER}, None) is None
    assert evaluate_preconditions("PUT", {"if-none-match": '"x"'}, None) is None


@pytest.mark.parametrize("element", [" ", '"', "W/", '" ', "a", ","])
def test_a_long_header_is_read_in_time_proportional_to_its_length(element: str) -> None:
    """A square of it would be hours, and so no end within the time limit of a test."""
    for header in (element * 400_000, f"x{element * 400_000}x", f'"old"{element * 400_000}'):
        assert evaluate_preconditions("GET", {"if-none-match": header}, NOW) is None
