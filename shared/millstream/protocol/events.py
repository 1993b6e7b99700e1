"""Events, the immutable entries of a job's log, and cursors, which name places in it. No I/O.

On its way through the store an event is one byte string: a line `seq at attempt type`, a line with the job's id, and
the data as JSON. In the log the second line is left out. Nothing on the way parses the data: it is copied as it is
into what the client gets.
"""

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import NamedTuple

from pydantic_core import from_json, to_json

from millstream.protocol.event_types import TERMINAL_TYPES


@lru_cache(maxsize=64)
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def rfc3339(ms: int) -> str:
    """Unix milliseconds as RFC 3339 in UTC, with milliseconds: 2026-11-24T08:00:00.000Z."""
    seconds, rest = divmod(ms, 1000)
    return f"{_second(seconds)}.{rest:03d}Z"


class Cursor(NamedTuple):
    """A place in one job's log: after the event `seq`, which was written at `at` (Unix ms, the store's clock).

    `at` is what tells a log from another one that took its place after the store lost data: the same seq, written at
    another time, is another event.
    """

    seq: int
    at: int

    def __str__(self) -> str:
        return f"{self.seq}-{self.at}"

    @classmethod
    def parse(cls, text: str) -> "Cursor":
        """Read a cursor. Raises ValueError for anything that `str(cursor)` cannot have produced."""
        if not _CURSOR.fullmatch(text):
            raise ValueError(f"{text[:40]!r} is not a cursor; take one from an event, a snapshot or a reply")
        seq, at = text.split("-")
        return cls(int(seq), int(at))


_CURSOR = re.compile(r"(0|[1-9][0-9]{0,14})-(0|[1-9][0-9]{0,14})", re.ASCII)
START = Cursor(0, 0)


@dataclass(frozen=True, slots=True)
class Event:
    """One entry of a job's log. `data` is JSON, as the store holds it."""

    job: str
    seq: int
    at: int
    attempt: int
    type: str
    data: bytes

    @property
    def cursor(self) -> Cursor:
        return Cursor(self.seq, self.at)

    @property
    def terminal(self) -> bool:
        return self.type in TERMINAL_TYPES

    def as_json(self) -> str:
        """The JSON object that every transport sends."""
        return (
            f'{{"job":{quote(self.job)},"seq":{self.seq},"cursor":"{self.seq}-{self.at}","attempt":{self.attempt},'
            f'"type":"{self.type}","at":"{rfc3339(self.at)}","data":{self.data.decode()}}}'
        )


@lru_cache(maxsize=4096)
def quote(job: str) -> str:
    """A job id as a JSON string. Ours are plain; what other arq producers name their jobs may be anything."""
    return json.dumps(job)


def succeeded(result: bytes, elapsed_s: float) -> bytes:
    """The data of a `succeeded` event; `result` is JSON."""
    return b'{"result":%b,"elapsed_s":%.6f}' % (result, elapsed_s)


_SUCCEEDED = re.compile(rb'\{"result":(.*),"elapsed_s":[-+.0-9eE]+\}', re.DOTALL)


def result_in(data: bytes) -> bytes:
    """The result in the data of a `succeeded` event, byte for byte: reading and writing a large one takes long."""
    if found := _SUCCEEDED.fullmatch(data):
        return found.group(1)
    return to_json(from_json(data).get("result"))  # not written by `succeeded`


def read_published(payload: bytes) -> Event:
    """Read an event as it is published. Raises ValueError when it is not one."""
    head, _, rest = payload.partition(b"\n")
    job, _, data = rest.rpartition(b"\n")
    seq, at, attempt, kind = head.split(b" ")
    return Event(job.decode(), int(seq), int(at), int(attempt), kind.decode(), data)


def read_logged(job: str, entry: bytes) -> Event:
    """Read an event as it stands in the log of `job`. Raises ValueError when it is not one."""
    head, _, data = entry.partition(b"\n")
    seq, at, attempt, kind = head.split(b" ")
    return Event(job, int(seq), int(at), int(attempt), kind.decode(), data)
