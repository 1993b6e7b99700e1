"""The scripts of the store: found in their folder, their arguments bound by name, their replies never guessed."""

import re

import pytest

from millstream.protocol.jobs import TERMINAL
from millstream.store.scripts import Script, load_scripts
from millstream.store.store import Claimed, LeaseLost, LogFull, UnexpectedReply, _check_fence

SCRIPTS = load_scripts()
JOB = Claimed("j", "1-2", 1, 1, False, 0.0, "a", b"{}", "")


def body(script: Script) -> str:
    """What follows the prelude and the arguments, without comments."""
    own = script.text.partition(f"-- {script.name}: ")[2]
    return "\n".join(line.partition("--")[0] for line in own.splitlines())


def test_every_script_of_the_folder_is_found_and_the_prelude_is_none() -> None:
    assert {"submit", "claim", "append", "finish", "requeue", "cancel", "attach", "renew"} <= set(SCRIPTS)
    assert "prelude" not in SCRIPTS


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_uses_each_argument_that_it_declares_and_counts_no_positions(name: str) -> None:
    script = SCRIPTS[name]
    for argument in script.arguments:
        assert re.search(rf"\b{argument}\b", body(script)), argument
    assert not re.search(r"ARGV\[\d", body(script))


@pytest.mark.parametrize("name", SCRIPTS)
def test_terminal_statuses_come_from_the_table(name: str) -> None:
    line = next(line for line in SCRIPTS[name].text.splitlines() if line.startswith("local TERMINAL"))
    assert set(re.findall(r"(\w+) = true", line)) == set(TERMINAL)


def test_arguments_are_bound_by_name_and_limits_are_given_by_the_store() -> None:
    cancel = load_scripts({"keep_ms": 5, "other": 1})["cancel"]
    assert cancel.bind({"reason": "null", "id": "j", "owner": "ann"}) == ["j", "ann", "null", 5]
    assert cancel.bind({"reason": "null", "id": "j", "owner": "ann", "keep_ms": 7}) == ["j", "ann", "null", 7]
    assert SCRIPTS["positions"].bind({}, ["a", "b"]) == ["a", "b"]
    assert "local keep_ms = ARGV[4]\n" in SCRIPTS["cancel"].text
    assert "local limit = tonumber(ARGV[7])\n" in SCRIPTS["attach"].text
    assert "local events = 7\n" in SCRIPTS["append"].text


@pytest.mark.parametrize(
    ("name", "given", "rest"),
    [
        ("snapshot", {"id": "j"}, []),  # one is missing
        ("snapshot", {"id": "j", "owner": "*", "node": "n"}, []),  # one is unknown
        ("snapshot", {"id": "j", "owner": "*"}, ["more"]),  # it takes no rest
    ],
)
def test_an_argument_that_is_missing_or_unknown_is_an_error(name: str, given: dict[str, str], rest: list[str]) -> None:
    with pytest.raises(TypeError, match=r"snapshot takes .*id, owner"):
        SCRIPTS[name].bind(given, rest)


@pytest.mark.parametrize(
    ("reply", "error"), [(b"lost", LeaseLost), (b"full", LogFull), (b"moved", UnexpectedReply), (None, UnexpectedReply)]
)
def test_a_reply_that_is_not_known_is_taken_for_no_other(reply: bytes | None, error: type[Exception]) -> None:
    _check_fence(JOB, b"ok")
    with pytest.raises(error):
        _check_fence(JOB, reply)
