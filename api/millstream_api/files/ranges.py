"""Range requests (RFC 9110 §14). No I/O."""

import re

from millstream_api.wire.answers import Span

_RANGE = re.compile(r"(\d{1,1000})-(\d{1,1000})?|-(\d{1,1000})", re.ASCII)


class Unsatisfiable(Exception):
    """None of the requested ranges is satisfiable (416)."""


def spans(header: str | None, size: int, *, most: int) -> list[Span] | None:
    """The ranges that a Range header asks for, in its order. None: ignore the header and send the whole file.

    A server may ignore a Range header (§14.2). This one does so when it is malformed, has another unit than bytes, has
    more than `most` ranges, or several ranges that add up to more than the file (they overlap); and when it asks for
    the last bytes of an empty file, for which there is no Content-Range. Of several ranges the satisfiable ones are
    returned. Raises Unsatisfiable when there are none.
    """
    unit, _, ranges = (header or "").partition("=")
    if unit.strip(" \t").lower() != "bytes":
        return None
    found: list[Span] = []
    requested = 0
    for item in ranges.split(","):
        item = item.strip(" \t")
        if not item:
            continue  # §5.6.1: empty list elements do not count
        requested += 1
        both = _RANGE.fullmatch(item)
        if both is None or requested > most:
            return None
        first, last, suffix = both.groups()
        if suffix is not None:  # the last N bytes
            start, end = max(0, size - int(suffix)), size
            if size == 0 and int(suffix):
                return None  # satisfiable (§14.1.2), although the file is empty
        else:
            start, end = int(first), size if last is None else int(last) + 1
            if last is not None and end <= start:
                return None
        if start < min(end, size):
            found.append(Span(start, min(end, size) - start))
    if not requested:
        return None
    if not found:
        raise Unsatisfiable
    if len(found) > 1 and sum(span.length for span in found) > size:
        return None
    return found
