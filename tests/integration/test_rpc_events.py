"""What a socket sees of jobs as they run, fail, are tried again and end; attaching to them and leaving them."""

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio as redis

from millstream.store import keys
from millstream.store.keys import NODE
from tests.integration.conftest import Stack
from tests.integration.rpc import Rpc, rpc
from tests.processes import until


async def test_chunks_progress_and_logs_come_as_they_were_sent(client_rpc: Rpc) -> None:
    events = await client_rpc.end(await client_rpc.submit("report", {"count": 12, "size": 3}))
    data = [(event["type"], event["data"]) for event in events]
    chunks = [item for type, item in data if type == "chunk"]
    assert chunks == [{"number": number, "filler": "xxx"} for number in range(12)]
    assert ("log", {"level": "debug", "message": "at 10"}) in data
    assert ("progress", {"done": 10, "total": 12, "message": "counting"}) in data
    assert data[-1] == ("succeeded", {"result": 12, "elapsed_s": data[-1][1]["elapsed_s"]})


@pytest.mark.parametrize(
    ("analysis", "params", "chunks", "result"),
    [("count_up", {"to": 3}, [0, 1, 2], {"counted": 3}), ("letters", {"text": "ab"}, ["a", "b"], None)],
)
async def test_what_a_generator_yields_are_chunks_and_its_result_is_what_it_sets(
    client_rpc: Rpc, analysis: str, params: Any, chunks: list[Any], result: Any
) -> None:
    events = await client_rpc.end(await client_rpc.submit(analysis, params))
    assert [event["data"] for event in events if event["type"] == "chunk"] == chunks
    assert events[-1]["data"]["result"] == result


async def test_ten_thousand_events_come_without_hole_or_double(client_rpc: Rpc) -> None:
    job = await client_rpc.submit("report", {"count": 10_000})
    events = await client_rpc.end(job)
    assert [event["data"]["number"] for event in events if event["type"] == "chunk"] == list(range(10_000))


async def test_a_slow_reader_of_much_data_gets_all_of_it_and_holds_nobody_up(stack: Stack) -> None:
    async with rpc(stack.api) as slow, rpc(stack.api) as fast:
        slow.socket.transport.pause_reading()
        request = {"analysis": "report", "params": {"count": 200, "size": 100_000}}
        await slow.send({"jsonrpc": "2.0", "method": "job.submit", "params": {**request, "key": "slow"}, "id": 1})
        job = (await fast.call("job.submit", **request, key="slow"))["job"]
        while (await fast.call("job.get", job=job))["status"] != "succeeded":
            pass
        assert (await fast.run("process", {"text": "x"}))["type"] == "succeeded"
        slow.socket.transport.resume_reading()
        events = await slow.end(job)
        chunks = [event["data"] for event in events if event["type"] == "chunk"]
        assert [chunk["number"] for chunk in chunks] == list(range(200))
        assert all(chunk["filler"] == "x" * 100_000 for chunk in chunks)


async def test_much_progress_that_is_not_waited_for_is_thinned_before_it_is_an_event(client_rpc: Rpc) -> None:
    events = await client_rpc.end(await client_rpc.submit("boast", {"count": 300, "size": 10_000}))
    assert (events[-1]["type"], events[-1]["data"].get("result")) == ("succeeded", 300), events[-1]["data"]
    progress = [event["data"]["done"] for event in events if event["type"] == "progress"]
    assert progress[-1] == 299
    assert progress == sorted(set(progress))
    assert len(progress) <= 20


async def test_attaching_from_the_start_gives_the_whole_log(stack: Stack, client_rpc: Rpc) -> None:
    job = await client_rpc.submit("report", {"count": 30})
    seen = await client_rpc.end(job)
    async with rpc(stack.api) as other:
        reply = await other.call("job.attach", job=job)
        assert (reply["status"], reply["job"], reply["replay_from"]) == ("succeeded", job, "0-0")
        events = await other.end(job)
    assert events[0]["data"] == {"analysis": "report", "queue": "default"}
    assert events[1:] == seen


async def test_attaching_from_a_cursor_gives_what_comes_after_it(stack: Stack, client_rpc: Rpc) -> None:
    job = await client_rpc.submit("report", {"count": 30})
    seen = await client_rpc.end(job)
    async with rpc(stack.api) as other:
        reply = await other.call("job.attach", job=job, after=seen[7]["cursor"])
        assert reply["replay_from"] == seen[7]["cursor"]
        assert await other.end(job) == seen[8:]


async def test_attaching_to_a_running_job_gives_old_events_and_then_live_ones(stack: Stack, client_rpc: Rpc) -> None:
    job = await client_rpc.submit("report", {"count": 60, "pause_s": 0.005})
    async with rpc(stack.api) as other:
        for number in range(1, 6):
            await client_rpc.seen(job, number * 5)
            await other.call("job.attach", job=job, after=client_rpc.events(job)[0]["cursor"])
            await other.wait(lambda: bool(other.events(job)), what="old events")
            await other.call("job.detach", job=job)
            other.frames.clear()
        await other.call("job.attach", job=job)
        assert (await other.end(job))[1:] == await client_rpc.end(job)


async def test_attaching_after_the_end_says_so_and_brings_no_event(stack: Stack, client_rpc: Rpc) -> None:
    job = await client_rpc.submit("process", {"text": "x"})
    last = (await client_rpc.end(job))[-1]
    async with rpc(stack.api) as other:
        reply = await other.call("job.attach", job=job, after=last["cursor"])
        assert (reply["status"], reply["cursor"], reply["replay_from"]) == ("succeeded", last["cursor"], last["cursor"])
        assert (await other.run("process", {"text": "y"}))["type"] == "succeeded"
        assert other.events(job) == []


async def test_a_cursor_of_a_log_that_is_not_there_any_more_is_a_gap_and_the_log_follows(
    stack: Stack, client_rpc: Rpc
) -> None:
    job = await client_rpc.submit("process", {"text": "x"})
    seen = await client_rpc.end(job)
    async with rpc(stack.api) as other:
        reply = await other.call("job.attach", job=job, after="7-12345")
        assert reply["replay_from"] == "0-0"
        events = await other.end(job)
        (gap,) = (frame["params"] for frame in other.frames if frame.get("method") == "job.gap")
    assert events[1:] == seen
    assert (gap["job"], gap["after"], gap["replay_from"]) == (job, "7-12345", "0-0")
    assert gap["snapshot"]["status"] == "succeeded"


@pytest.mark.parametrize("events", ["all", "terminal"])
async def test_a_job_that_the_store_lost_while_it_was_followed_is_a_gap_without_a_snapshot(
    stack: Stack, client_rpc: Rpc, events: str
) -> None:
    job = await client_rpc.submit("process", {"text": "x"}, delay_s=60, events=events)
    async with redis.Redis.from_url(stack.store.url) as client:
        await client.delete(f"{keys.JOB}{job}", f"{keys.LOG}{job}", f"{keys.BODY}{job}")
        await client.zrem(keys.lane(), job)
    await client_rpc.wait(lambda: any(f.get("method") == "job.gap" for f in client_rpc.frames), what="the gap")
    gap = client_rpc.frames[-1]["params"]
    assert (gap["job"], gap["snapshot"]) == (job, None)


async def test_who_wants_only_the_end_sees_only_the_end(stack: Stack, client_rpc: Rpc) -> None:
    job = await client_rpc.submit("report", {"count": 20, "pause_s": 0.01}, events="terminal")
    async with rpc(stack.api) as other:
        await other.call("job.attach", job=job, events="terminal")
        for client in (client_rpc, other):
            await client.until(job, "succeeded")
            assert client.types(job) == ["succeeded"]


async def test_who_detached_sees_nothing_more_and_the_job_runs_on(client_rpc: Rpc, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    job = await client_rpc.submit("hold", {"gate": str(gate), "text": "t"})
    await client_rpc.until(job, "log")
    assert await client_rpc.call("job.detach", job=job) == {}
    gate.touch()
    while (await client_rpc.call("job.get", job=job))["status"] != "succeeded":
        pass
    assert client_rpc.types(job) == ["started", "log"]


async def test_two_sockets_may_follow_one_job_and_one_may_leave(stack: Stack, client_rpc: Rpc, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    job = await client_rpc.submit("hold", {"gate": str(gate)})
    async with rpc(stack.api) as other:
        await other.call("job.attach", job=job)
        await other.until(job, "log")
    gate.touch()
    assert (await client_rpc.end(job))[-1]["type"] == "succeeded"


async def test_nobody_is_told_of_jobs_that_nobody_follows_any_more(stack: Stack, client_rpc: Rpc) -> None:
    async with redis.Redis.from_url(stack.store.url) as client:
        async with rpc(stack.api) as other:
            job = await other.submit("hold")
            await other.until(job, "log")
            assert await client.hget(f"{keys.JOB}{job}", "watch")

        async def unwatched() -> bool:
            return bool(await client.hget(f"{keys.JOB}{job}", "watch") == b"")

        await until(unwatched, what="the API to leave the job")
        assert await client.pubsub_channels(f"{NODE}*"), "the API itself is still there"
    await client_rpc.call("job.cancel", job=job)


async def test_an_analysis_that_names_max_attempts_is_tried_again(client_rpc: Rpc) -> None:
    events = await client_rpc.end(await client_rpc.submit("flaky", {"good_from": 3}))
    assert [event["type"] for event in events] == ["started", "retrying", "started", "retrying", "started", "succeeded"]
    assert [event["attempt"] for event in events if event["type"] == "started"] == [1, 2, 3]
    data = events[1]["data"]
    assert data["error"] == {"code": "analysis_error", "message": "attempt 1", "type": "RuntimeError"}
    assert data["attempt"] == 1
    assert 0 <= data["delay_s"] <= 0.05
    assert events[-1]["data"]["result"] == 3


async def test_attempts_that_are_used_up_end_with_the_last_error(client_rpc: Rpc) -> None:
    events = await client_rpc.end(await client_rpc.submit("flaky", {"good_from": 99}))
    assert [event["type"] for event in events] == ["started", "retrying"] * 2 + ["started", "failed"]
    assert events[-1]["data"]["error"] == {"code": "analysis_error", "message": "attempt 3", "type": "RuntimeError"}


async def test_the_attempts_of_a_submit_count_before_those_of_the_analysis(client_rpc: Rpc) -> None:
    once = await client_rpc.end(await client_rpc.submit("flaky", {"good_from": 2}, max_attempts=1))
    assert [event["type"] for event in once] == ["started", "failed"]
    more = await client_rpc.end(await client_rpc.submit("stumble", {"text": "no"}, max_attempts=2))
    assert [event["type"] for event in more] == ["started", "retrying", "started", "failed"]


async def test_a_failure_where_nobody_names_attempts_is_final(client_rpc: Rpc) -> None:
    events = await client_rpc.end(await client_rpc.submit("stumble", {"text": "no"}))
    assert [event["type"] for event in events] == ["started", "failed"]
    assert events[-1]["data"]["error"] == {"code": "analysis_error", "message": "no", "type": "ValueError"}


async def test_a_failure_that_is_final_is_not_tried_again(client_rpc: Rpc) -> None:
    events = await client_rpc.end(await client_rpc.submit("hopeless"))
    assert [event["type"] for event in events] == ["started", "failed"]
    assert events[-1]["data"]["error"]["message"] == "never"


async def test_an_analysis_may_ask_to_be_run_again_after_a_delay_of_its_own(client_rpc: Rpc) -> None:
    events = await client_rpc.end(await client_rpc.submit("ask_again", {"times": 2, "delay_s": 0.05}))
    assert [event["type"] for event in events] == ["started", "retrying"] * 2 + ["started", "succeeded"]
    assert events[1]["data"]["delay_s"] == 0.05
    assert events[1]["data"]["error"]["code"] == "analysis_error", "there are attempts left"
    assert events[-1]["data"]["result"] == 3


async def test_an_analysis_that_asks_once_too_often_ends_as_attempts_exhausted(client_rpc: Rpc) -> None:
    last = await client_rpc.run("ask_again", {"times": 9}, max_attempts=2)
    assert (last["type"], last["data"]["error"]["code"]) == ("failed", "attempts_exhausted")


@pytest.mark.parametrize(("analysis", "params"), [("hold", {}), ("process", {"text": "x", "delay_s": 60})])
async def test_an_attempt_that_takes_too_long_fails_as_timeout(client_rpc: Rpc, analysis: str, params: Any) -> None:
    last = await client_rpc.run(analysis, params, timeout_s=0.2)
    assert (last["type"], last["data"]["error"]["code"]) == ("failed", "timeout")
    assert last["data"]["elapsed_s"] >= 0.19
    assert "0.2 s" in last["data"]["error"]["message"]


@pytest.mark.parametrize("timeout_s", [0.05, 0.4])
async def test_the_timeout_of_a_submit_counts_before_that_of_the_analysis(client_rpc: Rpc, timeout_s: float) -> None:
    last = await client_rpc.run("hasty", timeout_s=timeout_s)
    assert last["data"]["error"] == {
        "code": "timeout",
        "message": f"The attempt took longer than {timeout_s} s.",
    }, "and not than the 0.2 s of its author"


async def test_a_timeout_too_short_to_measure_is_still_one(client_rpc: Rpc) -> None:
    last = await client_rpc.run("process", {"text": "x", "delay_s": 5}, timeout_s=0.0001)
    assert (last["type"], last["data"].get("error", {}).get("code")) == ("failed", "timeout")


async def test_a_timeout_or_a_cancel_is_told_even_if_the_analysis_does_not_let_go(
    client_rpc: Rpc, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    late = await client_rpc.submit("stubborn", {"gate": str(gate)}, timeout_s=0.2)
    unwanted = await client_rpc.submit("stubborn", {"gate": str(gate)})
    await client_rpc.until(unwanted, "started")
    await client_rpc.call("job.cancel", job=unwanted)
    assert (await client_rpc.end(late))[-1]["data"]["error"]["code"] == "timeout"
    assert (await client_rpc.end(unwanted))[-1]["type"] == "cancelled"
    gate.touch()
    assert (await client_rpc.run("process", {"text": "x"}))["type"] == "succeeded"
    assert client_rpc.types(late)[-1] == "failed"


async def test_an_analysis_in_which_a_task_was_cancelled_fails_and_is_not_run_for_ever(client_rpc: Rpc) -> None:
    job = await client_rpc.submit("give_up_inside")
    await client_rpc.wait(lambda: len(client_rpc.events(job)) >= 2, what="its end")
    events = client_rpc.events(job)
    assert [event["type"] for event in events[:2]] == ["started", "failed"]
    assert events[1]["data"]["error"]["code"] == "analysis_error"


@pytest.mark.parametrize(
    ("value", "result"),
    [(None, None), ([1, "é", None, 1.5], [1, "é", None, 1.5]), ("nan", None), ({"a": {}}, {"a": {}})],
)
async def test_any_json_value_is_a_result(client_rpc: Rpc, value: Any, result: Any) -> None:
    assert (await client_rpc.run("anything", {"value": value}))["data"]["result"] == result


async def test_a_result_that_json_cannot_write_is_a_failure_in_words(client_rpc: Rpc) -> None:
    last = await client_rpc.run("anything", {"value": "object"})
    assert (last["type"], last["data"]["error"]["code"]) == ("failed", "analysis_error")


@pytest.mark.parametrize(
    ("what", "type", "message"),
    [
        ("surrogate", "ValueError", r"broken \udcff text"),
        ("mute", "Mute", "Mute"),
        ("exit", "SystemExit", "3"),
        ("interrupt", "KeyboardInterrupt", "KeyboardInterrupt"),
        ("progress", "ValueError", "progress: done must be a finite number, not inf."),
        ("never", "ValueError", "delay_s must be a number of seconds from 0 to 316224000, not nan."),
        ("before", "ValueError", "delay_s must be a number of seconds from 0 to 316224000, not -1."),
    ],
)
async def test_whatever_an_analysis_raises_is_told_once_and_its_worker_lives(
    stack: Stack, client_rpc: Rpc, what: str, type: str, message: str
) -> None:
    job = await client_rpc.submit("raises", {"what": what})
    events = await client_rpc.end(job)
    assert [event["type"] for event in events] == ["started", "failed"]
    error = {"code": "analysis_error", "message": message, "type": type}
    assert events[-1]["data"]["error"] == error
    await client_rpc.end(await client_rpc.submit("process", {"text": "x"}))
    assert [worker.running.returncode for worker in stack.workers if worker.running] == [None] * len(stack.workers)


async def test_a_duplicate_submit_does_not_decide_what_its_leaving_does(stack: Stack, client_rpc: Rpc) -> None:
    job = await client_rpc.submit("hold", key="mine, not theirs")
    await client_rpc.until(job, "log")
    async with rpc(stack.api) as other:
        assert await other.submit("hold", key="mine, not theirs", on_disconnect="cancel") == job
        theirs = await other.submit("hold", on_disconnect="cancel")
        await client_rpc.call("job.attach", job=theirs)
    assert (await client_rpc.end(theirs))[-1]["type"] == "cancelled", "their leaving has been seen to"
    assert (await client_rpc.call("job.get", job=job))["status"] == "running"
    await client_rpc.call("job.cancel", job=job)


async def test_a_job_starts_no_earlier_than_its_delay_says(client_rpc: Rpc) -> None:
    job = await client_rpc.submit("process", {"text": "x"}, delay_s=0.3)
    await client_rpc.end(job)
    snapshot = await client_rpc.call("job.get", job=job)
    created, started = (datetime.fromisoformat(snapshot[name]) for name in ("created_at", "started_at"))
    assert started - created >= timedelta(seconds=0.3), "by the clock of the store"


async def test_a_job_is_cancelled_when_its_client_leaves_if_it_was_submitted_so(stack: Stack, client_rpc: Rpc) -> None:
    async with rpc(stack.api) as other:
        attached = await other.submit("hold", on_disconnect="cancel")
        lone = await other.submit("hold")
        queued = await other.submit("process", {"text": "x"}, delay_s=60, on_disconnect="cancel")
        await other.until(lone, "log")
        await client_rpc.call("job.attach", job=attached)
    assert (await client_rpc.end(attached))[-1]["data"] == {"reason": "the client disconnected"}
    await client_rpc.call("job.attach", job=queued)
    assert (await client_rpc.end(queued))[-1]["type"] == "cancelled"
    assert (await client_rpc.call("job.get", job=lone))["status"] == "running"
    await client_rpc.call("job.cancel", job=lone)
