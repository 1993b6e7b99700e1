"""The names of keys: apart from each other, where arq looks for its own, and the same in Python and Lua."""

from itertools import permutations, product

import pytest
from arq import constants

from millstream.protocol.jobs import PRIORITIES
from millstream.store import keys
from millstream.store.scripts import load_scripts

#: The prefixes of keys that end in a name which others choose; none may reach into another's.
PREFIXES = [
    value for name, value in vars(keys).items() if name.isupper() and isinstance(value, str) and value[-1] == ":"
]


def test_no_prefix_begins_with_another() -> None:
    assert len(PREFIXES) >= 10
    for one, other in permutations(PREFIXES, 2):
        assert not one.startswith(other)


def test_the_keys_that_are_arqs_are_where_arq_looks_for_them() -> None:
    assert constants.job_key_prefix == keys.BODY
    assert constants.in_progress_key_prefix == keys.LEASE
    assert constants.retry_key_prefix == keys.RETRY
    assert constants.result_key_prefix == keys.RESULT
    assert constants.default_queue_name == keys.QUEUE
    assert keys.arq_queue("default") == constants.default_queue_name
    assert constants.abort_jobs_ss == keys.ABORT


def test_each_queue_and_priority_has_a_lane_of_its_own() -> None:
    queues = ["default", "gpu", "a", "a:high", "high", "low"]
    lanes = [keys.lane(queue, priority) for queue, priority in product(queues, PRIORITIES)]
    assert len(set(lanes)) == len(queues) * len(PRIORITIES)
    assert not any(lane.startswith("arq:") for lane in lanes), "stock workers delete what they do not know"


def test_the_most_urgent_priority_comes_first() -> None:
    assert PRIORITIES == ("high", "default", "low")


@pytest.mark.parametrize("name", load_scripts())
def test_a_script_names_keys_only_by_what_keys_py_calls_them(name: str) -> None:
    text = load_scripts()[name].text
    body = text.partition("-- What the scripts share")[2]
    code = "\n".join(line.partition("--")[0] for line in body.splitlines())
    assert "'ms:" not in code
    assert "'arq:" not in code
    for constant, value in keys.IN_LUA.items():
        assert f"local {constant} = '{value}'\n" in text


def test_every_key_is_described() -> None:
    assert keys.__doc__ is not None
    for prefix in PREFIXES:
        assert f"`{prefix}" in keys.__doc__, prefix
