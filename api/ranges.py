"""Ranges of a representation, as RFC 9110 §14 says. No I/O."""

import re
from dataclasses import dataclass

_SPEC = re.compile(r"bytes[ \t]*=(.*)", re.IGNORECASE | re.DOTALL)
_RANGE = re.compile(r"(\d{1,1000})?-(\d{1,1000})?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Span:
    """`count` bytes from `start` on."""

    start: int
    count: int

    def content_range(self, size: int) -> str:
        return f"bytes {self.start}-{self.start + self.count - 1}/{size}"


class Unsatisfiable(Exception):
    """None of the ranges asked for can be had (416)."""


def spans(header: str | None, size: int, *, most: int) -> list[Span] | None:
    """What a Range header asks for, in its order; None: all of it.

    The header is ignored, as §14.2 lets a server, when it is not well-formed, names another unit than bytes, has more
    than `most` ranges, or asks for more bytes than there are (several ranges that overlap); and where it asks for the
    last bytes of nothing, which no Content-Range could say. Of several ranges those are given that can be had; raises
    Unsatisfiable when none can.
    """
    if header is None or not (match := _SPEC.fullmatch(header.strip(" \t"))):
        return None
    asked = [item.strip(" \t") for item in match.group(1).split(",")]
    asked = [item for item in asked if item]  # §5.6.1: empty list elements do not count
    if not asked or len(asked) > most:
        return None
    found = []
    for item in asked:
        both = _RANGE.fullmatch(item)
        if not both or item == "-":
            return None
        first, last = both.groups()
        if first is not None and last is not None and int(last) < int(first):
            return None
        span = _span(first, last, size)
        if span:
            found.append(span)
    if not found:
        if size == 0 and any(item[0] == "-" and int(item[1:]) > 0 for item in asked):
            return None  # §14.1.2: a suffix that is not empty is satisfiable
        raise Unsatisfiable
    if len(found) > 1 and sum(span.count for span in found) > size:
        return None
    return found


def _span(first: str | None, last: str | None, size: int) -> Span | None:
    if first is None:  # the last so many bytes
        count = min(int(last or 0), size)
        return Span(size - count, count) if count else None
    start = int(first)
    end = size if last is None else min(int(last) + 1, size)
    return Span(start, end - start) if start < size else None
