"""JSON-RPC 2.0 frames, as a stranger may send them: what is wrong with each is told with the right code and id."""

import json
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millstream.protocol import messages
from millstream.protocol.errors import Problem
from millstream.protocol.messages import (
    Attach,
    Call,
    Fault,
    Incoming,
    Submit,
    encode_error,
    encode_notification,
    encode_result,
    read_cursor,
)
from millstream_api.jobs.methods import PARAMS

parse = partial(messages.parse, max_batch=5, max_values=400_000)

PARSE, REQUEST, METHOD_NOT_FOUND, INVALID_PARAMS = -32700, -32600, -32601, -32602


def only(incoming: Incoming) -> Call | Fault:
    assert not incoming.batch
    (member,) = incoming.calls
    return member


def fault(raw: str) -> Fault:
    member = only(parse(raw, PARAMS))
    assert isinstance(member, Fault), f"{raw[:80]!r} was taken for a request"
    return member


def submit(**params: Any) -> Call | Fault:
    request = {"jsonrpc": "2.0", "method": "job.submit", "params": {"analysis": "a", **params}, "id": 1}
    return only(parse(json.dumps(request), PARAMS))


NOT_JSON = {
    "nothing": "",
    "a blank": " ",
    "the specification's own example": '{"jsonrpc": "2.0", "method": "foobar, "params": "bar", "baz]',
    "a batch cut off": '[{"jsonrpc":"2.0","method":"ping","id":1},{"jsonrpc":"2.0","method"',
    "NaN": '{"jsonrpc":"2.0","method":"ping","id":NaN}',
    "Infinity": '{"jsonrpc":"2.0","method":"ping","id":Infinity}',
    "-Infinity deep inside": '{"jsonrpc":"2.0","method":"ping","params":{"a":[-Infinity]},"id":1}',
    "100,000 open brackets": "[" * 100_000,
    "100,000 nested arrays": "[" * 100_000 + "]" * 100_000,
    "100,000 nested objects": '{"a":' * 100_000 + "1" + "}" * 100_000,
    "single quotes": "{'jsonrpc':'2.0'}",
    "a trailing comma": '{"jsonrpc":"2.0","method":"ping","id":1,}',
    "two documents": '{"jsonrpc":"2.0","method":"ping","id":1}{}',
    "a byte order mark": '\ufeff{"jsonrpc":"2.0","method":"ping","id":1}',
    "half a surrogate pair": '{"jsonrpc":"2.0","method":"ping","id":"\\ud800"}',
    "a raw control character": '{"jsonrpc":"2.0","method":"ping","id":"\n"}',
    "a leading zero": '{"jsonrpc":"2.0","method":"ping","id":01}',
    "an integer of 5,000 digits": f'{{"jsonrpc":"2.0","method":"ping","id":{"9" * 5000}}}',
}


@pytest.mark.parametrize("raw", NOT_JSON.values(), ids=NOT_JSON.keys())
def test_what_is_not_json_is_a_parse_error_without_id(raw: str) -> None:
    found = fault(raw)
    assert (found.problem.type.code, found.id, found.expects_reply) == (PARSE, None, True)


NOT_REQUESTS = {
    "a number": ("1", None),
    "a string": ('"ping"', None),
    "null": ("null", None),
    "an empty object": ("{}", None),
    "an empty batch": ("[]", None),
    "no jsonrpc": ('{"method":"ping","id":1}', 1),
    "jsonrpc 1.0": ('{"jsonrpc":"1.0","method":"ping","id":1}', 1),
    "jsonrpc as a number": ('{"jsonrpc":2.0,"method":"ping","id":1}', 1),
    "no method": ('{"jsonrpc":"2.0","id":"x"}', "x"),
    "method a number": ('{"jsonrpc":"2.0","method":1,"id":7}', 7),
    "method null": ('{"jsonrpc":"2.0","method":null,"id":7}', 7),
    "method null in a notification": ('{"jsonrpc":"2.0","method":null}', None),
    "params a string": ('{"jsonrpc":"2.0","method":"ping","params":"bar","id":7}', 7),
    "params null": ('{"jsonrpc":"2.0","method":"ping","params":null,"id":7}', 7),
    "params a number": ('{"jsonrpc":"2.0","method":"ping","params":0,"id":7}', 7),
    "id true": ('{"jsonrpc":"2.0","method":"ping","id":true}', None),
    "id false": ('{"jsonrpc":"2.0","method":"ping","id":false}', None),
    "id an array": ('{"jsonrpc":"2.0","method":"ping","id":[1]}', None),
    "id an object": ('{"jsonrpc":"2.0","method":"ping","id":{}}', None),
    "id over every float": ('{"jsonrpc":"2.0","method":"ping","id":1e999}', None),
    "id under every float": ('{"jsonrpc":"2.0","method":"ping","id":-1e999}', None),
    "a response": ('{"jsonrpc":"2.0","result":1,"id":3}', 3),
    "the last of two methods counts": ('{"jsonrpc":"2.0","method":"ping","method":1,"id":7}', 7),
}


@pytest.mark.parametrize(("raw", "id"), NOT_REQUESTS.values(), ids=NOT_REQUESTS.keys())
def test_what_is_not_a_request_is_answered_with_its_id_where_that_can_be_made_out(raw: str, id: Any) -> None:
    found = fault(raw)
    assert (found.problem.type.code, found.id, found.expects_reply) == (REQUEST, id, True)


WRONG_CALLS = {
    "unknown method": ('{"jsonrpc":"2.0","method":"job.delete","id":"1"}', METHOD_NOT_FOUND, "1"),
    "a method's name in other letters": ('{"jsonrpc":"2.0","method":"PING","id":1}', METHOD_NOT_FOUND, 1),
    "reserved method": ('{"jsonrpc":"2.0","method":"rpc.discover","id":1}', METHOD_NOT_FOUND, 1),
    "unknown method, odd params": ('{"jsonrpc":"2.0","method":"x","params":[1],"id":1}', METHOD_NOT_FOUND, 1),
    "params by position": ('{"jsonrpc":"2.0","method":"job.get","params":["j"],"id":1}', INVALID_PARAMS, 1),
    "params missing": ('{"jsonrpc":"2.0","method":"job.get","id":1}', INVALID_PARAMS, 1),
    "an unknown member": ('{"jsonrpc":"2.0","method":"job.get","params":{"job":"j","x":1},"id":1}', INVALID_PARAMS, 1),
    "ping with a member": ('{"jsonrpc":"2.0","method":"ping","params":{"x":1},"id":1}', INVALID_PARAMS, 1),
    "an empty job id": ('{"jsonrpc":"2.0","method":"job.get","params":{"job":""},"id":1}', INVALID_PARAMS, 1),
    "a job id as a number": ('{"jsonrpc":"2.0","method":"job.get","params":{"job":1},"id":1}', INVALID_PARAMS, 1),
}


@pytest.mark.parametrize(("raw", "code", "id"), WRONG_CALLS.values(), ids=WRONG_CALLS.keys())
def test_a_request_that_cannot_be_carried_out_is_told_why(raw: str, code: int, id: Any) -> None:
    found = fault(raw)
    assert (found.problem.type.code, found.id, found.expects_reply) == (code, id, True)


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        ('{"jsonrpc":"2.0","method":"nothing.such"}', METHOD_NOT_FOUND),
        ('{"jsonrpc":"2.0","method":"job.get","params":{}}', INVALID_PARAMS),
        ('{"jsonrpc":"2.0","method":"job.get","params":["j"]}', INVALID_PARAMS),
    ],
)
def test_a_notification_is_not_answered_even_when_it_is_wrong(raw: str, code: int) -> None:
    found = fault(raw)
    assert (found.problem.type.code, found.expects_reply) == (code, False)


def test_a_notification_is_carried_out_without_a_reply() -> None:
    call = only(parse('{"jsonrpc":"2.0","method":"job.cancel","params":{"job":"j"}}', PARAMS))
    assert isinstance(call, Call)
    assert not call.expects_reply


def test_an_explicit_null_id_is_answered() -> None:
    call = only(parse('{"jsonrpc":"2.0","method":"ping","id":null}', PARAMS))
    assert isinstance(call, Call)
    assert (call.id, call.expects_reply) == (None, True)


@pytest.mark.parametrize("id", ["", "ü\u2028\n", 0, -1, 1.5, 2**63, int("9" * 399)])
def test_an_id_comes_back_as_it_was_sent(id: Any) -> None:
    call = only(parse(json.dumps({"jsonrpc": "2.0", "method": "ping", "id": id}), PARAMS))
    assert isinstance(call, Call)
    reply = json.loads(encode_result(call.id, b"{}"))
    assert reply == {"jsonrpc": "2.0", "result": {}, "id": id}
    assert type(reply["id"]) is type(id)


def test_each_invalid_member_of_a_batch_gets_its_own_error() -> None:
    incoming = parse("[1,2,3]", PARAMS)
    assert incoming.batch
    faults = [member for member in incoming.calls if isinstance(member, Fault)]
    assert [(member.problem.type.code, member.id) for member in faults] == [(REQUEST, None)] * 3


def test_a_batch_keeps_good_and_bad_members_in_their_order() -> None:
    incoming = parse('[{"jsonrpc":"2.0","method":"ping","id":1},{},{"jsonrpc":"2.0","method":"x","id":2},[]]', PARAMS)
    assert incoming.batch
    codes = [member.problem.type.code if isinstance(member, Fault) else None for member in incoming.calls]
    assert codes == [None, REQUEST, METHOD_NOT_FOUND, REQUEST]


def test_a_batch_of_one_is_still_a_batch() -> None:
    assert parse('[{"jsonrpc":"2.0","method":"ping","id":1}]', PARAMS).batch


@pytest.mark.parametrize("method", PARAMS)
def test_every_method_refuses_a_member_that_it_does_not_know(method: str) -> None:
    found = fault(json.dumps({"jsonrpc": "2.0", "method": method, "params": {"job": "j", "ö": 1}, "id": 1}))
    assert found.problem.type.code == INVALID_PARAMS
    assert "/ö" in [error["pointer"] for error in found.problem.errors]


WRONG_MEMBERS: dict[str, list[Any]] = {
    "analysis": [None, 1, "", "a" * 201, ["a"]],
    "params": [None, [], "{}", 1],
    "key": ["", 1, "k" * 201],
    "timeout_s": ["5", 0, -1, True, 86_401],
    "max_attempts": [0, 101, 1.0, "1", True],
    "priority": ["urgent", None, "HIGH", 0],
    "delay_s": [-1, "1", True, None, 86_401],
    "on_disconnect": ["stop", None, True],
    "events": ["none", None, True, ["all"]],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in WRONG_MEMBERS for value in WRONG_MEMBERS[name]])
def test_job_submit_takes_no_member_of_another_type_or_range(name: str, value: Any) -> None:
    found = submit(**{name: value})
    assert isinstance(found, Fault)
    assert found.problem.type.code == INVALID_PARAMS
    assert [error["pointer"] for error in found.problem.errors] == [f"/{name}"]


@pytest.mark.parametrize("number", ["1e999", "-1e999"])
@pytest.mark.parametrize("name", ["timeout_s", "delay_s"])
def test_a_number_over_every_float_is_refused_where_a_number_is_expected(name: str, number: str) -> None:
    raw = f'{{"jsonrpc":"2.0","method":"job.submit","params":{{"analysis":"a","{name}":{number}}},"id":1}}'
    assert fault(raw).problem.type.code == INVALID_PARAMS


def test_every_member_of_job_submit_that_is_given_is_kept_and_the_others_have_their_defaults() -> None:
    given = {
        "params": {"x": [1, None]}, "key": "k", "timeout_s": 5, "max_attempts": 2, "priority": "high", "delay_s": 0.5,
        "on_disconnect": "cancel", "events": "terminal",
    }  # fmt: skip
    full, bare = submit(**given), submit()
    assert isinstance(full, Call)
    assert isinstance(bare, Call)
    assert full.params.model_dump() == {"analysis": "a", **given}
    assert bare.params == Submit(analysis="a")
    assert bare.params.model_dump() == {
        "analysis": "a", "params": {}, "key": None, "timeout_s": None, "max_attempts": None, "priority": "default",
        "delay_s": 0, "on_disconnect": "continue", "events": "all",
    }  # fmt: skip


def test_an_empty_array_of_params_is_no_params() -> None:
    assert isinstance(only(parse('{"jsonrpc":"2.0","method":"ping","params":[],"id":1}', PARAMS)), Call)


@given(st.text())
def test_no_text_makes_parse_raise(text: str) -> None:
    assert parse(text, PARAMS).calls


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)
envelopes = st.fixed_dictionaries(
    {},
    optional={
        "jsonrpc": st.sampled_from(["2.0", "2.0", "2.0", 2, None]),
        "method": st.sampled_from([*PARAMS, "other"]) | values,
        "params": st.dictionaries(st.sampled_from([*Submit.model_fields, *Attach.model_fields]), values) | values,
        "id": values,
    },
)


@given(st.lists(envelopes | values, min_size=1, max_size=4))
def test_every_member_of_any_batch_is_a_call_or_a_fault_whose_answer_is_json(batch: list[Any]) -> None:
    incoming = parse(json.dumps(batch), PARAMS)
    assert len(incoming.calls) == len(batch)
    for member, sent in zip(incoming.calls, batch, strict=True):
        if isinstance(member, Fault):
            reply = json.loads(encode_error(member.id, member.problem), parse_constant=pytest.fail)
            assert reply["error"]["code"] == member.problem.type.code
            assert reply["error"]["data"]["type"] == f"/problems/{member.problem.slug}"
        else:
            assert sent["jsonrpc"] == "2.0"
            assert member.method == sent["method"]
        assert member.id is None or member.id == sent["id"]


def test_an_error_carries_the_problem_that_http_would_send() -> None:
    problem = Problem("queue_full", "Try again.", retry_after_s=1)
    reply = json.loads(encode_error("i", problem))
    error = {"code": -32030, "message": "Try again.", "data": problem.document("/ws")}
    assert reply == {"jsonrpc": "2.0", "error": error, "id": "i"}


def test_a_notification_has_no_id() -> None:
    assert json.loads(encode_notification("server.drain", b'{"reconnect_after_ms":5}')) == {
        "jsonrpc": "2.0", "method": "server.drain", "params": {"reconnect_after_ms": 5}
    }  # fmt: skip


@pytest.mark.parametrize("after", ["", "1", "x-y", "1-2-3", "-1-5", "٣-1"])
def test_a_cursor_that_is_none_is_wrong_params_that_name_after(after: str) -> None:
    with pytest.raises(Problem) as caught:
        read_cursor(after)
    assert caught.value.slug == "invalid_params"
    assert caught.value.errors[0]["pointer"] == "/after"


def test_no_cursor_is_the_start() -> None:
    assert read_cursor(None) == (0, 0)
    assert read_cursor("12-345") == (12, 345)
