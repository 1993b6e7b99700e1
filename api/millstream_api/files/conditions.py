"""Conditional requests: validators, and preconditions in the order of RFC 9110 §13.2.2. No I/O."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import NamedTuple

from millstream_api.wire.answers import http_date

# One element of a list of entity tags, up to its comma, or something malformed. No two parts match the same blanks, so
# parsing takes time linear in the header's length.
_TAG = re.compile(r'[ \t]*(?:(W/)?"([\x21\x23-\x7e\x80-\xff]*)"[ \t]*(?:,|$)|[^,]*(?:,|$))')
_DATE = re.compile(  # §5.6.7: IMF-fixdate, and the two older forms
    r"[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT"
    r"|[A-Z][a-z]{5,8}, \d\d-[A-Z][a-z]{2}-\d\d \d\d:\d\d:\d\d GMT"
    r"|[A-Z][a-z]{2} [A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d \d{4}",
    re.ASCII,
)


class State(NamedTuple):
    """Identifies the content of a file: where any of these differs, the content counts as different. `size` in bytes.
    Users can set `modified_ns` (mtime) as they like; `changed_ns` (ctime) is set by the system at every change.
    """

    inode: int
    size: int
    modified_ns: int
    changed_ns: int

    @classmethod
    def of(cls, found: os.stat_result) -> "State":
        return cls(found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


@dataclass(frozen=True, slots=True)
class Validators:
    """The validators of a representation: its strong ETag, quoted, and its time of modification in Unix seconds.
    `others`: the ETags of its compressed siblings, which a client that now writes may have got instead.
    """

    etag: str
    modified: int
    others: tuple[str, ...] = ()

    @classmethod
    def of(cls, state: State, others: tuple[str, ...] = ()) -> "Validators":
        return cls('"' + "-".join(f"{part:x}" for part in state) + '"', state.modified_ns // 1_000_000_000, others)

    @property
    def last_modified(self) -> str:
        return http_date(self.modified)


def evaluate_preconditions(method: str, headers: Mapping[str, str], current: Validators | None) -> int | None:
    """The status that ends the request (304 or 412), or None to go on. `current` is None when there is no file."""
    reading = method in ("GET", "HEAD")
    if (match := headers.get("if-match")) is not None:
        if not _matches(match, current, weak=False):
            return 412
    elif (since := _date(headers.get("if-unmodified-since"))) is not None and current and current.modified > since:
        return 412
    if (none := headers.get("if-none-match")) is not None:
        if _matches(none, current, weak=True):
            return 304 if reading else 412
    elif reading and current and (since := _date(headers.get("if-modified-since"))) is not None:
        return 304 if current.modified <= since else None
    return None


def range_applies(if_range: str | None, current: Validators, now: float) -> bool:
    """Whether If-Range (§13.1.5) lets the Range header apply. A date must be a strong validator (§8.8.2.2)."""
    if if_range is None:
        return True
    if if_range.startswith('"'):
        return if_range.strip() == current.etag
    return if_range.strip() == current.last_modified and current.modified <= now - 1


def _matches(header: str, current: Validators | None, *, weak: bool) -> bool:
    if current is None:
        return False
    if header.strip() == "*":
        return True
    known = (current.etag, *current.others)
    return any(f'"{tag}"' in known and (weak or not mark) for mark, tag in _TAG.findall(header))


def _date(header: str | None) -> int | None:
    """Unix seconds, or None for an invalid date, whose header is ignored (§13.1.3)."""
    if header is None or not _DATE.fullmatch(header.strip(" \t")):
        return None
    try:
        return int(parsedate_to_datetime(header).replace(tzinfo=UTC).timestamp())
    except (TypeError, ValueError, OverflowError):
        return None
