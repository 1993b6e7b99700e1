"""A snapshot passes on what the store holds of progress, result and error, byte for byte and unread."""

import json
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millstream.protocol.events import result_in, succeeded
from millstream.protocol.jobs import Snapshot, read_snapshot
from millstream.protocol.messages import gap_as_json
from millstream_api.jobs import schemas

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
names = st.text() | st.sampled_from(["result", "elapsed_s"])
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(names, inner), max_leaves=8)


@given(values, st.floats(0, 1e6))
def test_a_result_comes_out_as_it_went_in(value: object, elapsed_s: float) -> None:
    result = json.dumps(value).encode()
    assert result_in(succeeded(result, elapsed_s)) == result


@pytest.mark.parametrize(
    ("data", "result"),
    [
        (b'{"result":1}', b"1"),
        (b'{"elapsed_s":1.5,"result":[1, 2]}', b"[1,2]"),
        (b'{"result":{"a":1,"elapsed_s":2}}', b'{"a":1,"elapsed_s":2}'),
        (b'{"result": "x", "elapsed_s": 2}', b'"x"'),
        (b'{"elapsed_s":2}', b"null"),
    ],
)
def test_a_result_that_another_version_wrote_is_found_too(data: bytes, result: bytes) -> None:
    assert result_in(data) == result


PAGE: list[bytes | None] = [b"a", b"running", b"1", b"3", b"", b"default", b"0", b"0", None, b"2", b"9", None, None]
AS_WRITTEN = b'{"b": [1.50, "\\u00e9"],  "a":1e2}'  # none of it as our encoder would write it


def read(status: bytes, progress: bytes | None = None, ending: bytes | None = None) -> dict[str, object]:
    written = read_snapshot("j", [b"a", status, *PAGE[2:11], progress, ending]).as_json()
    for part in (progress, ending and AS_WRITTEN):
        assert part is None or part in written
    found: dict[str, object] = json.loads(written)
    return {name: found[name] for name in ("progress", "result", "error")}


def test_what_a_job_has_said_is_passed_on_unread() -> None:
    said = json.loads(AS_WRITTEN)
    assert read(b"queued") == {"progress": None, "result": None, "error": None}
    assert read(b"running", AS_WRITTEN) == {"progress": said, "result": None, "error": None}
    ending = succeeded(AS_WRITTEN, 1)
    assert read(b"succeeded", AS_WRITTEN, ending) == {"progress": said, "result": said, "error": None}


def test_an_error_is_that_of_the_last_event() -> None:
    failed = read_snapshot("j", [b"a", b"failed", *PAGE[2:12], b'{"error":{"code":"timeout","message":"x"}}'])
    assert json.loads(failed.as_json())["error"] == {"code": "timeout", "message": "x"}
    cancelled = read_snapshot("j", [b"a", b"cancelled", *PAGE[2:12], b'{"reason":null}'])
    assert json.loads(cancelled.as_json())["error"] is None


def test_a_snapshot_has_the_members_that_are_published() -> None:
    snapshot = read_snapshot("j", PAGE)
    assert [field.name for field in fields(Snapshot)] == list(schemas.Snapshot.model_fields)
    assert list(json.loads(snapshot.as_json())) == list(schemas.Snapshot.model_fields)
    schemas.Snapshot.model_validate_json(snapshot.as_json())


def test_a_gap_has_the_members_that_are_published() -> None:
    for snapshot in (None, read_snapshot("j", PAGE)):
        schemas.JobGap.model_validate_json(gap_as_json("j", "1-1", snapshot, "0-0"))
