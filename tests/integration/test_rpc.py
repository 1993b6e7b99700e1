"""`millstream.v1`: every method and every error that a socket can bring about, each leaving the socket usable."""

import asyncio
import json
import signal
from typing import Any

import pytest
from structlog.testing import capture_logs

from millstream.protocol.errors import PROBLEM_TYPES
from tests.integration.conftest import Stack
from tests.integration.rpc import Frame, Refused, Rpc, rpc
from tests.integration.within import within
from tests.processes import until

NO_JOB = "0" * 32


async def refused(client: Rpc, method: str, **params: Any) -> Refused:
    """The error that a request brings about; the socket must be as good as before."""
    with pytest.raises(Refused) as caught:
        await client.call(method, **params)
    assert await client.call("ping") == {}
    error = caught.value
    slug = error.data["type"].rpartition("/")[2]
    assert error.data["type"] == f"/problems/{slug}"
    assert (PROBLEM_TYPES[slug].code, PROBLEM_TYPES[slug].status) == (error.code, error.data["status"])
    assert error.data["detail"] == error.message
    return error


async def test_ping_is_answered(client_rpc: Rpc) -> None:
    assert await client_rpc.call("ping") == {}


async def test_submit_says_where_the_job_stands_and_its_events_follow_from_seq_2(client_rpc: Rpc, stack: Stack) -> None:
    reply = await client_rpc.call("job.submit", analysis="process", params={"text": "hello"})
    job = reply["job"]
    assert reply == {"job": job, "status": "queued", "cursor": reply["cursor"], "duplicate": False}
    events = await client_rpc.end(job)
    assert reply["cursor"].startswith("1-")
    assert [event["seq"] for event in events] == [2, 3]
    assert [event["type"] for event in events] == ["started", "succeeded"]
    names = {worker.url for worker in stack.workers}
    assert events[0]["data"]["attempt"] == 1
    assert events[0]["data"]["worker"] in names
    data = events[1]["data"]
    assert data == {"result": "Processed data: hello", "elapsed_s": data["elapsed_s"]}
    assert data["elapsed_s"] >= 0
    for event in events:
        assert list(event) == ["job", "seq", "cursor", "attempt", "type", "at", "data"]
        assert event["attempt"] == 1


async def test_the_reply_to_submit_comes_before_the_first_event_however_many_there_are(client_rpc: Rpc) -> None:
    for number in range(200):
        await client_rpc.send(
            {
                "jsonrpc": "2.0",
                "method": "job.submit",
                "params": {"analysis": "report", "params": {"count": 2}},
                "id": number,
            }
        )
    jobs = [(await client_rpc.reply(number))["result"]["job"] for number in range(200)]
    for job in jobs:
        await client_rpc.end(job)
    first: dict[str, str] = {}
    for frame in client_rpc.frames:
        job = frame["result"]["job"] if "result" in frame else frame["params"]["job"]
        first.setdefault(job, "reply" if "result" in frame else "event")
    assert len(jobs) == 200
    assert [first[job] for job in jobs] == ["reply"] * 200
    assert all(client_rpc.events(job)[0]["seq"] == 2 for job in jobs)


async def test_a_burst_is_shared_out_among_the_workers(client_rpc: Rpc, stack: Stack) -> None:
    async def shared() -> bool:
        for worker in stack.workers:
            worker.signal(signal.SIGSTOP)
        try:
            jobs = await asyncio.gather(*(client_rpc.submit("process", {"text": "x"}) for _ in range(64)))
        finally:
            for worker in stack.workers:
                worker.signal(signal.SIGCONT)
        names = {(await client_rpc.end(job))[0]["data"]["worker"] for job in jobs}
        return names == {worker.url for worker in stack.workers}

    await until(shared, what="each worker to have a part of a burst that one could have taken")


async def test_get_shows_the_job_as_it_stands(client_rpc: Rpc) -> None:
    job = await client_rpc.submit("measure", {"text": "abc"}, max_attempts=2)
    await client_rpc.end(job)
    found = await client_rpc.call("job.get", job=job)
    assert list(found) == [
        "job", "analysis", "status", "attempt", "max_attempts", "owner", "queue", "created_at", "started_at",
        "finished_at", "cursor", "progress", "result", "error",
    ]  # fmt: skip
    for name in ("created_at", "started_at", "finished_at"):
        assert found.pop(name).endswith("Z")
    assert found == {
        "job": job, "analysis": "measure", "status": "succeeded", "attempt": 1, "max_attempts": 2, "owner": None,
        "queue": "default", "cursor": client_rpc.events(job)[-1]["cursor"], "progress": None,
        "result": {"text": "abc", "length": 3, "none": None}, "error": None,
    }  # fmt: skip


async def test_analysis_list_describes_every_analysis(client_rpc: Rpc) -> None:
    listed = {entry["name"]: entry for entry in await client_rpc.call("analysis.list")}
    assert {"process", "text.stats", "typed", "nap"} <= set(listed)
    typed = listed["typed"]
    assert list(typed) == ["name", "description", "params_schema", "result_schema", "timeout_s", "queue"]
    assert (typed["description"], typed["timeout_s"], typed["queue"]) == ("Say the text n times.", 7.5, "default")
    assert typed["params_schema"]["required"] == ["text"]
    assert typed["params_schema"]["properties"]["n"] == {
        "default": 3, "maximum": 9, "minimum": 1, "title": "N", "type": "integer"
    }  # fmt: skip
    assert typed["result_schema"] == {"items": {"type": "string"}, "type": "array"}
    assert listed["process"]["timeout_s"] == 300


async def test_a_batch_is_answered_by_one_array_and_its_jobs_run(client_rpc: Rpc) -> None:
    submit = {"jsonrpc": "2.0", "method": "job.submit", "params": {"analysis": "process", "params": {"text": "x"}}}
    await client_rpc.send(
        [
            {**submit, "id": "s"},
            {"jsonrpc": "2.0", "method": "ping", "id": 2},
            {"jsonrpc": "2.0", "method": "ping"},
            {"foo": "bar"},
            {"jsonrpc": "2.0", "method": "no.such", "id": 3},
            1,
            {**submit, "params": {"analysis": "nothing"}, "id": None},
        ]
    )
    await client_rpc.wait(lambda: any(isinstance(f, list) for f in client_rpc.frames), what="the array")
    assert isinstance(client_rpc.frames[0], list), "an event came before the reply to its submit"
    answers = client_rpc.frames[0]
    codes = sorted((str(a["id"]), a.get("error", {}).get("code")) for a in answers)
    assert codes == sorted(
        [("s", None), ("2", None), ("None", -32600), ("3", -32601), ("None", -32600), ("None", -32004)]
    )
    (job,) = (answer["result"]["job"] for answer in answers if answer["id"] == "s")
    assert (await client_rpc.end(job))[-1]["type"] == "succeeded"


async def test_a_notification_is_carried_out_and_not_answered(client_rpc: Rpc) -> None:
    request = {"jsonrpc": "2.0", "method": "job.submit", "params": {"analysis": "process", "params": {"text": "quiet"}}}
    await client_rpc.send(request)
    await client_rpc.send([request, {"jsonrpc": "2.0", "method": "ping"}])

    def two_ends() -> bool:
        return [frame["params"]["type"] for frame in client_rpc.frames].count("succeeded") == 2

    await client_rpc.wait(two_ends, what="the ends of two jobs")
    assert all(frame["method"] == "job.event" for frame in client_rpc.frames)


async def test_cancel_ends_a_running_job_at_once(client_rpc: Rpc) -> None:
    job = await client_rpc.submit("hold")
    await client_rpc.until(job, "log")
    found = await client_rpc.call("job.cancel", job=job, reason="enough")
    assert (found["status"], found["job"]) == ("cancelled", job)
    assert found["finished_at"] is not None
    assert (await client_rpc.end(job))[-1]["data"] == {"reason": "enough"}


async def test_cancel_ends_a_queued_job_that_then_never_runs(client_rpc: Rpc) -> None:
    job = await client_rpc.submit("process", {"text": "x"}, delay_s=60)
    assert (await client_rpc.call("job.cancel", job=job))["status"] == "cancelled"
    events = await client_rpc.end(job)
    assert [(event["type"], event["data"]) for event in events] == [("cancelled", {"reason": None})]


async def test_cancelling_what_has_ended_is_no_error(client_rpc: Rpc) -> None:
    job = await client_rpc.submit("process", {"text": "x"})
    await client_rpc.end(job)
    assert await client_rpc.call("job.cancel", job=job) == await client_rpc.call("job.get", job=job)
    assert client_rpc.types(job) == ["started", "succeeded"]


RAW_ERRORS: dict[str, tuple[str | bytes, int, Any]] = {
    "no JSON": ("{", -32700, None),
    "binary": (b'{"jsonrpc":"2.0","method":"ping","id":1}', -32700, None),
    "nested 40,000 deep": ("[" * 40_000, -32700, None),
    "nested 100,000 deep": ("[" * 100_000, -32013, None),
    "empty batch": ("[]", -32600, None),
    "not a request": ('{"jsonrpc":"2.0","id":7}', -32600, 7),
    "an id that JSON cannot give back": ('{"jsonrpc":"2.0","method":"ping","id":1e999}', -32600, None),
    "unknown method": ('{"jsonrpc":"2.0","method":"no.such","id":7}', -32601, 7),
    "unknown member": ('{"jsonrpc":"2.0","method":"ping","params":{"x":1},"id":7}', -32602, 7),
}


@pytest.mark.parametrize(("raw", "code", "id"), RAW_ERRORS.values(), ids=RAW_ERRORS.keys())
async def test_a_frame_that_is_wrong_is_answered_and_the_socket_goes_on(
    client_rpc: Rpc, raw: str | bytes, code: int, id: Any
) -> None:
    await client_rpc.socket.send(raw)
    reply = await client_rpc.reply(id)
    assert (reply["error"]["code"], reply["error"]["data"]["type"][:10]) == (code, "/problems/")
    assert await client_rpc.call("ping") == {}


WRONG_PARAMS: dict[str, tuple[str, Any, str]] = {
    "missing": ("process", {}, "/params"),
    "of another type": ("process", {"text": 1}, "/params/text"),
    "out of range": ("process", {"text": "x", "delay_s": -1}, "/params/delay_s"),
    "unknown": ("process", {"text": "x", "more": 1}, "/params"),
    "over every float": ("process", {"text": "x", "delay_s": 10**398}, "/params/delay_s"),
    "too short": ("typed", {"text": "x"}, "/params/text"),
}


@pytest.mark.parametrize(("analysis", "params", "pointer"), WRONG_PARAMS.values(), ids=WRONG_PARAMS.keys())
async def test_params_that_the_analysis_does_not_take_are_refused_before_there_is_a_job(
    client_rpc: Rpc, analysis: str, params: Frame, pointer: str
) -> None:
    error = await refused(client_rpc, "job.submit", analysis=analysis, params=params)
    assert error.code == -32602
    assert pointer in [item["pointer"] for item in error.data["errors"]]


async def test_a_number_that_json_cannot_give_back_is_refused_as_a_param(client_rpc: Rpc) -> None:
    for id, value in enumerate(("[1e999]", '"Infinity"')):
        await client_rpc.send(
            f'{{"jsonrpc":"2.0","method":"job.submit","id":{id},'
            f'"params":{{"analysis":"anything","params":{{"value":{value}}}}}}}'
        )
    assert (await client_rpc.reply(0))["error"]["code"] == -32602
    assert "result" in await client_rpc.reply(1), "the word is only a word"
    assert await client_rpc.call("ping") == {}


async def test_an_unknown_analysis_is_refused_with_the_names_there_are(client_rpc: Rpc) -> None:
    error = await refused(client_rpc, "job.submit", analysis="nothing")
    assert (error.code, error.data["status"]) == (-32004, 404)
    assert "process" in error.message


@pytest.mark.parametrize("method", ["job.get", "job.attach", "job.cancel"])
async def test_an_unknown_job_is_not_found(client_rpc: Rpc, method: str) -> None:
    error = await refused(client_rpc, method, job=NO_JOB)
    assert (error.code, error.data["status"]) == (-32005, 404)


async def test_detaching_from_what_is_not_followed_is_no_error(client_rpc: Rpc) -> None:
    assert await client_rpc.call("job.detach", job=NO_JOB) == {}


async def test_a_cursor_that_is_none_is_refused(client_rpc: Rpc) -> None:
    job = await client_rpc.submit("process", {"text": "x"})
    error = await refused(client_rpc, "job.attach", job=job, after="yesterday")
    assert (error.code, error.data["errors"][0]["pointer"]) == (-32602, "/after")


async def test_an_error_of_the_server_is_answered_as_one_and_logged_and_the_socket_goes_on(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: Any) -> None:
        raise ZeroDivisionError("a secret")

    async with within(stack.store) as here, rpc(here.api) as client:
        monkeypatch.setattr(here.commands.stores.only, "snapshot", broken)
        with capture_logs() as logs:
            error = await refused(client, "job.get", job=NO_JOB)
        assert (error.code, error.data["status"]) == (-32603, 500)
        assert "secret" not in json.dumps(error.data)
        assert [(entry["log_level"], entry["method"], entry["exc_info"]) for entry in logs] == [
            ("error", "job.get", True)
        ]
        assert (await client.run("process", {"text": "x"}))["type"] == "succeeded"


async def test_a_key_makes_a_submit_repeatable(client_rpc: Rpc) -> None:
    request = {"analysis": "process", "params": {"text": "once", "delay_s": 0}, "key": "k1"}
    first = await client_rpc.call("job.submit", **request)
    await client_rpc.end(first["job"])
    again = await client_rpc.call("job.submit", **{**request, "params": {"delay_s": 0, "text": "once"}})
    assert again == {**first, "duplicate": True, "status": "succeeded"}
    await client_rpc.wait(lambda: len(client_rpc.events(first["job"])) == 4, what="the events once more")
    assert [event["seq"] for event in client_rpc.events(first["job"])] == [2, 3, 2, 3]


async def test_a_key_used_for_another_request_is_a_conflict(client_rpc: Rpc) -> None:
    await client_rpc.submit("process", {"text": "one"}, key="k2")
    for other in ({"params": {"text": "two"}}, {"params": {"text": "one"}, "priority": "high"}):
        error = await refused(client_rpc, "job.submit", analysis="process", key="k2", **other)
        assert (error.code, error.data["status"]) == (-32009, 409)


async def test_a_socket_that_attached_after_the_end_may_ask_for_the_events_by_the_key_again(client_rpc: Rpc) -> None:
    request = {"analysis": "process", "params": {"text": "again"}, "key": "k4"}
    job = (await client_rpc.call("job.submit", **request))["job"]
    last = (await client_rpc.end(job))[-1]
    await client_rpc.call("job.attach", job=job, after=last["cursor"])

    async def come_again() -> bool:
        await client_rpc.call("job.submit", **request)
        return len(client_rpc.events(job)) > 2

    await until(come_again, what="the events once more")


async def test_submitting_again_while_the_job_runs_disturbs_nothing(client_rpc: Rpc) -> None:
    first = await client_rpc.call("job.submit", analysis="hold", key="k3")
    await client_rpc.until(first["job"], "log")
    again = await client_rpc.call("job.submit", analysis="hold", key="k3")
    assert again == {**first, "duplicate": True, "status": "running"}
    await client_rpc.call("job.cancel", job=first["job"])
    assert [event["type"] for event in await client_rpc.end(first["job"])] == ["started", "log", "cancelled"]


async def test_ids_of_every_kind_come_back_as_they_were(client_rpc: Rpc) -> None:
    for id in ("", "ü", 0, -5, 1.5, 2**80):
        await client_rpc.send(json.dumps({"jsonrpc": "2.0", "method": "ping", "id": id}))
        assert (await client_rpc.reply(id))["result"] == {}
