"""The file of keys: what counts as a key, what a change of the file keeps, and what is known when it cannot be read."""

import json
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs

from millstream import apikeys
from millstream.apikeys import BadKeyFile, Keys, Scope, change_keys, new_key, read_keys, write_keys
from millstream.protocol.errors import Problem

READ: list[Scope] = ["read"]
WRONG: dict[str, Any] = {
    "every owner": {"owner": "*"},
    "an owner with a colon": {"owner": "ann:x"},
    "an owner with a line break": {"owner": "ann\n"},
    "no owner": {"owner": ""},
    "an expiry that is no time": {"expires": "tomorrow"},
    "an expiry that is a number": {"expires": 5},
    "a hash that is none": {"hash": "ü"},
    "a scope that is none": {"scopes": ["root"]},
    "an id that no key has": {"id": "a_b"},
}


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock to set; the file is looked at each time."""
    clock = SimpleNamespace(s=1000.0)
    monkeypatch.setattr(apikeys, "time", SimpleNamespace(monotonic=lambda: clock.s))
    monkeypatch.setattr(apikeys, "RELOAD_INTERVAL_S", 0)
    return clock


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_an_entry_that_is_wrong_is_no_key_and_holds_up_no_change_of_the_others(
    tmp_path: Path, now: SimpleNamespace, wrong: dict[str, Any]
) -> None:
    file = tmp_path / "keys.json"
    (ann, of_ann), (bob, of_bob), (zoe, of_zoe) = (new_key(owner, READ, None) for owner in ("ann", "bob", "zoe"))
    write_keys(file, [of_ann, of_bob])
    keys = Keys(file)
    who = keys.authenticate(f"Bearer {bob}")
    file.write_text(json.dumps({"keys": [asdict(of_zoe) | wrong, asdict(of_ann)]}))
    with capture_logs() as logs:
        assert not keys.is_still_valid(who), "it was revoked"
    assert keys.authenticate(f"Bearer {ann}").owner == "ann"
    with pytest.raises(Problem):
        keys.authenticate(f"Bearer {zoe}")
    assert [(line["log_level"], next(iter(wrong)) in line["fault"]) for line in logs] == [("error", True)]
    with pytest.raises(BadKeyFile, match=f"entry 1: {next(iter(wrong))}"):
        read_keys(file)


@pytest.mark.parametrize(
    ("expires", "good"),
    [("2001-01-01T00:00:00", False), ("2001-01-01", False), ("9999-12-31T23:59:59", True), ("9999-12-31", True)],
)
def test_a_time_without_a_zone_is_utc(tmp_path: Path, expires: str, good: bool) -> None:
    text, key = new_key("ann", READ, None)
    file = tmp_path / "keys.json"
    file.write_text(json.dumps({"keys": [asdict(key) | {"expires": expires}]}))
    keys = Keys(file)
    if good:
        assert keys.is_still_valid(keys.authenticate(f"Bearer {text}"))
    else:
        with pytest.raises(Problem, match="expired"):
            keys.authenticate(f"Bearer {text}")


def unreadable(file: Path) -> None:
    file.unlink()
    file.mkdir()


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-20])


@pytest.mark.parametrize("spoil", [unreadable, cut_short])
def test_a_file_that_cannot_be_read_counts_as_it_was_for_the_time_that_was_set(
    tmp_path: Path, now: SimpleNamespace, spoil: Any
) -> None:
    file = tmp_path / "keys.json"
    ann, key = new_key("ann", READ, None)
    write_keys(file, [key])
    keys = Keys(file, unreadable_s=60)
    who = keys.authenticate(f"Bearer {ann}")
    spoil(file)
    with capture_logs() as logs:
        for now.s in (1001, 1030, 1060):
            assert keys.is_still_valid(who)
        assert [line["log_level"] for line in logs] == ["error"], "said once, and loudly"
        now.s = 1061
        assert not keys.is_still_valid(who)
    assert "no key counts" in logs[-1]["event"]
    if file.is_dir():
        file.rmdir()
    write_keys(file, [key])
    assert keys.is_still_valid(who)


def test_a_changed_file_keeps_its_owner_and_mode(tmp_path: Path) -> None:
    file, link = tmp_path / "keys.json", tmp_path / "link.json"
    write_keys(file, [])
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.chmod(0o640)
    root = os.geteuid() == 0
    if root:
        os.chown(file, 1234, 1235)
    before = file.stat()
    link.symlink_to(file)
    change_keys(link, lambda known: [*known, new_key("ann", READ, None)[1]])
    after = file.stat()
    assert link.is_symlink()
    assert len(read_keys(file)) == 1
    assert (after.st_uid, after.st_gid, after.st_mode) == (before.st_uid, before.st_gid, before.st_mode)
    assert not root or after.st_uid == 1234


def test_a_file_that_cannot_keep_its_owner_is_not_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    file = tmp_path / "keys.json"
    write_keys(file, [])
    found = file.stat()
    before = os.stat_result((found.st_mode, 0, 0, 1, found.st_uid + 1, found.st_gid, 0, 0, 0, 0))
    monkeypatch.setattr(Path, "stat", lambda *_, **__: before)
    monkeypatch.setattr(os, "fchown", refused)
    with pytest.raises(BadKeyFile, match="as that user, or as root"):
        change_keys(file, lambda known: [new_key("ann", READ, None)[1]])
    monkeypatch.undo()
    assert read_keys(file) == []
    assert [entry.name for entry in tmp_path.iterdir()] == ["keys.json"]


def test_keys_that_are_made_at_the_same_time_are_all_kept(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"

    def make(number: int) -> None:
        change_keys(file, lambda known: [*known, new_key(f"user{number}", READ, None)[1]])

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(make, range(40)))
    assert sorted(key.owner for key in read_keys(file)) == sorted(f"user{number}" for number in range(40))
