"""Any Range header against a reference written from the text of RFC 9110 §14.1.2 and §14.2."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.ranges import Span, Unsatisfiable, spans

MOST = 32


def reference(ranges: list[tuple[int | None, int | None]], size: int) -> list[Span] | None:
    """What well-formed ranges select: the satisfiable ones, in order. None: the header is to be ignored."""
    selected = []
    for first, last in ranges:
        if first is not None and last is not None and last < first:
            return None  # "An int-range is invalid if the last-pos value is present and less than the first-pos value."
        if first is None:
            assert last is not None
            length = min(last, size)  # "If the representation is shorter, the entire representation is used."
            if length > 0:
                selected.append(Span(size - length, length))
        elif first < size:  # "satisfiable if ... first-pos ... less than the current length"
            end = size - 1 if last is None else min(last, size - 1)
            selected.append(Span(first, end - first + 1))
    return selected


positions = st.integers(0, 120)
one_range = st.one_of(
    st.tuples(positions, st.one_of(st.none(), positions)),
    st.tuples(st.none(), positions),
)


@given(
    ranges=st.lists(one_range, min_size=1, max_size=6),
    size=st.integers(0, 100),
    spaces=st.sampled_from(["", " ", "\t "]),
)
def test_a_well_formed_header_selects_what_the_rfc_says(
    ranges: list[tuple[int | None, int | None]], size: int, spaces: str
) -> None:
    written = ("," + spaces).join(
        f"{'' if first is None else first}-{'' if last is None else last}" for first, last in ranges
    )
    expected = reference(ranges, size)
    if expected is not None and len(expected) > 1 and sum(span.count for span in expected) > size:
        expected = None  # several that overlap may be ignored, and are
    if expected == []:
        with pytest.raises(Unsatisfiable):
            spans(f"bytes={written}", size, most=MOST)
    else:
        assert spans(f"bytes={written}", size, most=MOST) == expected


@given(header=st.text(max_size=40), size=st.integers(0, 1000))
def test_no_header_breaks_it_and_every_span_lies_within_the_file(header: str, size: int) -> None:
    for text in (header, f"bytes={header}"):
        try:
            found = spans(text, size, most=MOST)
        except Unsatisfiable:
            continue
        for span in found or []:
            assert 0 <= span.start < span.start + span.count <= size


@pytest.mark.parametrize(
    "header",
    [None, "", "bytes", "bytes=", "bytes=-", "bytes=a-b", "bytes=1-2-3", "bytes=5-2", "bytes=1", "bytes=0x1-2",
     "bytes=1-2;3-4", "items=0-1", "seconds=1-2", "bytes=--1", "bytes=١-٢"],
)  # fmt: skip
def test_what_is_not_a_range_in_bytes_is_ignored(header: str | None) -> None:
    assert spans(header, 100, most=MOST) is None


def test_the_unit_is_case_insensitive_and_empty_elements_do_not_count() -> None:
    assert spans("BYTES = 0-0,, 2-2", 10, most=MOST) == [Span(0, 1), Span(2, 1)]


def test_more_ranges_than_the_limit_are_ignored() -> None:
    header = "bytes=" + ",".join(f"{n}-{n}" for n in range(5))
    assert spans(header, 100, most=5) is not None
    assert spans(header, 100, most=4) is None
