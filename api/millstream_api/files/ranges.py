"""Ranges of a representation, as RFC 9110 §14 says. No I/O."""

import re

from millstream_api.wire.answers import Span

_RANGE = re.compile(r"(\d{1,1000})-(\d{1,1000})?|-(\d{1,1000})", re.ASCII)


class Unsatisfiable(Exception):
    """None of the ranges asked for can be had (416)."""


def spans(header: str | None, size: int, *, most: int) -> list[Span] | None:
    """What a Range header asks for, in its order; None: all of it.

    The header is ignored, as §14.2 lets a server, when it is not well-formed, names another unit than bytes, has more
    than `most` ranges, or asks for more bytes than there are (several ranges that overlap); and where it asks for the
    last bytes of nothing, which no Content-Range could say. Of several ranges those are given that can be had; raises
    Unsatisfiable when none can.
    """
    unit, _, ranges = (header or "").partition("=")
    if unit.strip(" \t").lower() != "bytes":
        return None
    found: list[Span] = []
    asked = 0
    for item in ranges.split(","):
        item = item.strip(" \t")
        if not item:
            continue  # §5.6.1: empty list elements do not count
        asked += 1
        both = _RANGE.fullmatch(item)
        if both is None or asked > most:
            return None
        first, last, suffix = both.groups()
        if suffix is not None:  # the last so many bytes
            start, end = max(0, size - int(suffix)), size
            if size == 0 and int(suffix):
                return None  # §14.1.2: this is satisfiable, though there is nothing
        else:
            start, end = int(first), size if last is None else int(last) + 1
            if last is not None and end <= start:
                return None
        if start < min(end, size):
            found.append(Span(start, min(end, size) - start))
    if not asked:
        return None
    if not found:
        raise Unsatisfiable
    if len(found) > 1 and sum(span.length for span in found) > size:
        return None
    return found
