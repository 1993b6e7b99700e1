"""Any Range header against a reference written from the text of RFC 9110 §14.1.2 and §14.2."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millstream_api.files.ranges import Unsatisfiable, spans
from millstream_api.wire.answers import Span

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
            if last > 0:  # "a suffix-range is satisfiable if the suffix-length is non-zero"
                selected.append(Span(size - length, length))
        elif first < size:  # "satisfiable if ... first-pos ... less than the current length"
            end = size - 1 if last is None else min(last, size - 1)
            selected.append(Span(first, end - first + 1))
    if selected and size == 0:
        return None  # all of nothing is wanted, and no Content-Range can say that: 200, not 206
    return selected


def parsed(header: str) -> list[tuple[int | None, int | None]] | None:
    """The ranges of a header by the grammar of §14.1.1, letter by letter; None for what is not in it.

    Taken too, as recipients are free to: blanks around the "=", and empty list elements (§5.6.1.2).
    """
    unit, equals, rest = header.partition("=")
    if not equals or unit.strip(" \t").lower() != "bytes":
        return None
    found: list[tuple[int | None, int | None]] = []
    for element in rest.split(","):
        first, dash, last = element.strip(" \t").partition("-")
        if not (first or dash or last):
            continue
        if not dash or not all(c in "0123456789" for c in first + last) or not (first or last):
            return None
        found.append((int(first) if first else None, int(last) if last else None))
    return found or None


WORDS = [
    "bytes",
    "Bytes",
    "=",
    "=",
    "-",
    "-",
    ",",
    ",",
    " ",
    "\t",
    "0",
    "3",
    "10",
    "99",
    "18446744073709551616",
    "x",
    ";",
    "+",
]
written_headers = st.one_of(
    st.lists(st.sampled_from(WORDS), max_size=12).map("".join),
    st.lists(st.sampled_from(WORDS), max_size=12).map(lambda words: "bytes=" + "".join(words)),
    st.text(max_size=20).map("bytes=".__add__),
)


@settings(max_examples=1000)
@given(header=written_headers, size=st.integers(0, 100), most=st.integers(1, 4))
def test_any_header_is_read_as_the_grammar_says(header: str, size: int, most: int) -> None:
    ranges = parsed(header.strip(" \t"))
    expected = None if ranges is None or len(ranges) > most else reference(ranges, size)
    if expected and len(expected) > 1 and sum(span.length for span in expected) > size:
        expected = None
    if expected == []:
        with pytest.raises(Unsatisfiable):
            spans(header, size, most=most)
    else:
        assert spans(header, size, most=most) == expected


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
    if expected is not None and len(expected) > 1 and sum(span.length for span in expected) > size:
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
            assert 0 <= span.start < span.start + span.length <= size


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


@pytest.mark.parametrize(
    ("header", "size", "expected"),
    [
        ("bytes=5-9,0-1", 10, [Span(5, 5), Span(0, 2)]),  # the order asked for
        ("bytes=90-,0-1,-0", 10, [Span(0, 2)]),  # those that can be had
        ("bytes=-3", 10, [Span(7, 3)]),
        ("bytes=-30", 10, [Span(0, 10)]),
        ("bytes=9-30", 10, [Span(9, 1)]),
        ("bytes=0-9", 10, [Span(0, 10)]),
        ("bytes=0-5,5-9", 10, None),  # 11 bytes of 10
        ("bytes=0-4,5-9", 10, [Span(0, 5), Span(5, 5)]),
        ("bytes=0-99999999999999999999", 10, [Span(0, 10)]),
        ("bytes=-1", 0, None),  # satisfiable, but there is nothing to say it with
    ],
)
def test_examples(header: str, size: int, expected: list[Span] | None) -> None:
    assert spans(header, size, most=MOST) == expected


@pytest.mark.parametrize(("header", "size"), [("bytes=10-", 10), ("bytes=-0", 10), ("bytes=0-", 0), ("bytes=-0", 0)])
def test_what_cannot_be_had_at_all_is_told(header: str, size: int) -> None:
    with pytest.raises(Unsatisfiable):
        spans(header, size, most=MOST)
