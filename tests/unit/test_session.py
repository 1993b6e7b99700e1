"""`millstream.v1`: what a session answers, in which order, and how much it holds."""

import json
from collections.abc import Callable
from itertools import count
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millstream.protocol.errors import Problem
from millstream.protocol.events import START, Cursor, Event
from millstream.protocol.jobs import Snapshot, Status
from millstream.store.store import Submitted
from millstream_api.jobs.hub import Hub, State
from millstream_api.jobs.methods import PARAMS
from millstream_api.jobs.rpc_session import RpcSession
from millstream_api.jobs.session import Bounds, Command


def an_event(job: str, seq: int, type: str = "chunk", data: bytes = b"{}") -> Event:
    return Event(job, seq, 1000 + seq, 1, type, data)


class Client:
    """A session with a hub, driven by hand: jobs are called j1, j2, … in the order of their submits."""

    def __init__(self, **bounds: int) -> None:
        ids = count(1)
        self.woken = 0
        self.hub = Hub(lambda _: None)
        self.session = RpcSession(self.hub, PARAMS, Bounds(**bounds), lambda _: f"j{next(ids)}", self._wake)

    def _wake(self) -> None:
        self.woken += 1

    def send(self, *requests: Any, batch: bool = False) -> list[Command]:
        frame = list(requests) if batch or len(requests) > 1 else requests[0]
        return self.session.receive(json.dumps(frame))

    def submit(self, id: Any = 0) -> Command:
        (command,) = self.send(submit(id))
        self.session.submitting(command)
        return command

    def accept(self, command: Command, *, known_as: str = "") -> list[str]:
        submitted = Submitted(known_as or command.job, "queued", Cursor(1, 1001), duplicate=bool(known_as))
        return list(self.session.submitted(command, submitted))

    def frame(self) -> Any:
        frame = self.session.next_frame()
        return None if frame is None else json.loads(frame)

    def frames(self) -> list[Any]:
        return list(iter(self.frame, None))


def submit(id: Any = None, **params: Any) -> dict[str, Any]:
    request = {"jsonrpc": "2.0", "method": "job.submit", "params": {"analysis": "a", **params}}
    return request if id is None else {**request, "id": id}


def ping(id: Any = None) -> dict[str, Any]:
    request = {"jsonrpc": "2.0", "method": "ping"}
    return request if id is None else {**request, "id": id}


def brief(frames: list[Any]) -> list[Any]:
    """Replies as their id, batches as a list of these, events as (job, seq), other notifications as their method."""

    def one(frame: Any) -> Any:
        if isinstance(frame, list):
            return brief(frame)
        if "method" not in frame:
            return frame["id"]
        event = frame["params"]
        return (event["job"], event["seq"]) if frame["method"] == "job.event" else frame["method"]

    return [one(frame) for frame in frames]


def test_the_reply_to_a_submit_leaves_before_events_that_came_earlier() -> None:
    client = Client()
    command = client.submit("s")
    client.hub.publish(an_event("j1", 2, "started"))
    assert client.frames() == []
    client.accept(command)
    client.hub.publish(an_event("j1", 3))
    assert brief(client.frames()) == ["s", ("j1", 2), ("j1", 3)]


def test_a_batch_is_answered_by_one_array_once_all_of_it_is_done() -> None:
    client = Client()
    one, two, notification = client.send(ping("p"), ping("q"), ping(), {"jsonrpc": "2.0"}, {**ping(), "method": "no"})
    client.session.answer(two, b"{}")
    client.session.answer(one, b"{}")
    assert client.frames() == [], "the notification is not done yet"
    client.session.answer(notification, b"{}")
    assert brief(client.frames()) == [[None, "q", "p"]]
    assert client.session.idle


def test_events_of_a_batch_follow_its_answer() -> None:
    client = Client()
    first, second = client.send(submit("s"), submit("t"))
    for command in (first, second):
        client.session.submitting(command)
    client.accept(second)
    client.hub.publish(an_event("j2", 2))
    assert client.frames() == []
    client.accept(first)
    client.hub.publish(an_event("j1", 2))
    assert brief(client.frames()) == [["t", "s"], ("j2", 2), ("j1", 2)]


def test_a_batch_of_one_is_answered_by_an_array() -> None:
    client = Client()
    (command,) = client.send(ping("p"), batch=True)
    client.session.answer(command, b"{}")
    assert brief(client.frames()) == [["p"]]


def test_a_batch_of_notifications_and_a_notification_alone_are_not_answered() -> None:
    client = Client()
    for command in [*client.send(ping(), ping()), *client.send(ping())]:
        client.session.answer(command, b"{}")
    client.session.refuse(client.send(submit())[0], Problem("queue_full", "full"))
    client.send({"jsonrpc": "2.0", "method": "nothing"})
    assert client.frames() == []
    assert client.session.idle


def test_a_submit_as_a_notification_is_not_answered_but_its_events_come() -> None:
    client = Client()
    (command,) = client.send(submit())
    client.session.submitting(command)
    client.hub.publish(an_event("j1", 2))
    client.accept(command)
    assert brief(client.frames()) == [("j1", 2)]


def test_what_is_wrong_is_answered_at_once_and_wakes_the_writer() -> None:
    client = Client()
    assert client.session.receive("{") == []
    assert client.woken
    assert client.frame()["error"]["code"] == -32700


def test_jobs_over_the_limit_in_flight_are_refused_and_nothing_else_is() -> None:
    client = Client(in_flight=2)
    client.submit(1)
    client.submit(2)
    assert client.send(submit(3)) == []
    (command,) = client.send(ping(4))
    client.session.answer(command, b"{}")
    refused, pong = client.frames()
    assert (refused["id"], refused["error"]["code"], pong["id"]) == (3, -32031, 4)


def test_the_limit_in_flight_holds_within_a_batch() -> None:
    client = Client(in_flight=2)
    commands = client.send(*(submit(id) for id in range(1, 5)))
    assert [command.id for command in commands] == [1, 2]
    for command in commands:
        client.session.answer(command, b"{}")
    (answers,) = client.frames()
    assert sorted(answer["id"] for answer in answers if "error" in answer) == [3, 4]


def end(client: Client, command: Command) -> None:
    client.accept(command)
    client.hub.publish(an_event(command.job, 2, "cancelled"))


def refuse(client: Client, command: Command) -> None:
    client.session.refuse(command, Problem("unknown_analysis", "no"))


def detach(client: Client, command: Command) -> None:
    client.accept(command)
    (leaving,) = client.send({"jsonrpc": "2.0", "method": "job.detach", "params": {"job": command.job}, "id": "d"})
    client.session.detach(leaving)


def lose(client: Client, command: Command) -> None:
    client.session.gap(client.session.followers[command.job], None, str(START))


@pytest.mark.parametrize("settle", [end, refuse, detach, lose])
def test_a_job_that_ended_was_refused_left_or_lost_makes_room_for_another(
    settle: Callable[[Client, Command], None],
) -> None:
    client = Client(in_flight=1)
    settle(client, client.submit(1))
    assert len(client.send(submit(2))) == 1


def test_a_duplicate_submit_counts_as_the_job_that_it_is() -> None:
    client = Client(in_flight=2)
    first = client.submit(1)
    (again,) = client.send(submit(2))
    client.session.submitting(again)
    client.accept(again, known_as=first.job)
    assert len(client.send(submit(3))) == 1
    assert client.send(submit(4)) == []


def test_reading_stops_while_too_many_commands_are_under_way() -> None:
    client = Client(commands=2)
    (first,) = client.send(ping(1))
    assert not client.session.full
    client.send(ping(2))
    assert client.session.full
    client.session.answer(first, b"{}")
    assert not client.session.full


@pytest.mark.parametrize("binary", [True, False])
def test_reading_stops_while_many_answers_wait_for_a_client_that_does_not_read(binary: bool) -> None:
    client = Client(events=2, commands=2)
    sent = 0
    while not client.session.full:
        sent += 1
        assert sent < 10
        if binary:
            client.session.receive_binary()
        else:
            client.session.receive("{")
    client.frame()
    assert not client.session.full


def test_reading_stops_while_large_answers_wait_for_a_client_that_does_not_read() -> None:
    client = Client(bytes=1000)
    for id in (1, 2):
        assert not client.session.full
        (command,) = client.send(ping(id))
        client.session.answer(command, b'"%b"' % (b"x" * 600))
    assert client.session.full
    client.frame()
    assert not client.session.full


def get(id: Any, job: str = "j") -> dict[str, Any]:
    return {"jsonrpc": "2.0", "method": "job.get", "params": {"job": job}, "id": id}


def test_a_batch_over_the_limit_is_one_error_and_nothing_of_it_is_carried_out() -> None:
    client = Client(batch=2)
    assert len(client.send(ping(1), ping(2))) == 2
    for members in ([submit(1), submit(2), ping(3)], [1, 1, 1], [1] * 1000):
        assert client.send(*members) == []
        refusal = client.frame()
        assert (refusal["id"], refusal["error"]["code"]) == (None, -32600)
        assert "at most 2 requests" in refusal["error"]["message"]
    assert client.session.followers == {}


def test_a_frame_with_too_many_values_is_one_error() -> None:
    client = Client(json_values=20)
    assert client.send(submit(1, params={"n": [1] * 30})) == []
    assert client.frame()["error"]["data"]["type"] == "/problems/payload_too_large"


def test_answers_that_may_be_large_are_made_one_at_a_time() -> None:
    client = Client()
    (first,) = client.send(get(1, "a"))
    assert client.send(get(2, "b")) == []
    assert client.send({"jsonrpc": "2.0", "method": "analysis.list", "id": 3}) == []
    assert len(client.send(ping(4))) == 1, "those that are small wait for none"
    following = [first]
    while command := client.session.next_in_turn(following[-1]):
        following.append(command)
    assert [command.id for command in following] == [1, 2, 3]


LARGE = b'"%b"' % (b"x" * 600)


def test_no_answer_is_made_while_those_that_are_held_leave_no_room() -> None:
    client = Client(bytes=1000)
    (command,) = client.send(get(1))
    assert [client.send(get(id)) for id in (2, 3, 4)] == [[], [], []]
    for _ in (1, 2):
        client.session.answer(command, LARGE)
        following = client.session.next_in_turn(command)
        command = following or command
    assert following is None, "two are held"
    assert client.session.next_with_room() is None
    assert len(client.send(ping(5))) == 1
    client.frame()
    third = client.session.next_with_room()
    assert third is not None
    assert third.id == 3
    assert client.session.next_with_room() is None, "it is given out once"
    client.session.answer(third, LARGE)
    assert client.session.next_in_turn(third) is None
    client.frames()
    fourth = client.session.next_with_room()
    assert fourth is not None
    assert (fourth.id, client.session.next_in_turn(fourth)) == (4, None)


def test_a_request_that_finds_no_room_waits_though_none_is_before_it() -> None:
    client = Client(bytes=1000)
    for id in (1, 2):
        (command,) = client.send(ping(id))
        client.session.answer(command, LARGE)
    assert client.send(get(3)) == []
    client.frames()
    command = client.session.next_with_room()  # type: ignore[assignment]
    assert command.id == 3


def test_what_does_not_fit_into_the_answers_to_a_batch_is_refused() -> None:
    client = Client(bytes=1000)
    (command,) = client.send(*(get(id) for id in range(1, 51)), ping(51))[:1]
    pong = Command("ping", None, "", 51, True, command.exchange)
    client.session.answer(command, LARGE)
    second = client.session.next_in_turn(command)
    assert second is not None
    client.session.answer(second, LARGE)
    assert client.session.next_in_turn(second) is None
    assert client.frames() == [], "one is not answered yet"
    client.session.answer(pong, b"{}")
    assert client.session.full is (client.session.next_frame() is not None) is True
    client.session.answer(client.send(ping(52))[0], b"{}")
    assert brief(client.frames()) == [52]


def test_of_a_batch_whose_answers_are_too_large_each_member_is_answered() -> None:
    client = Client(bytes=1000)
    (command, *_) = client.send(*(get(id) for id in range(1, 6)))
    client.session.answer(command, LARGE)
    command = client.session.next_in_turn(command)  # type: ignore[assignment]
    client.session.answer(command, LARGE)
    assert client.session.next_in_turn(command) is None
    (answers,) = client.frames()
    assert [answer["id"] for answer in answers] == [1, 2, 3, 4, 5]
    slugs = [answer["error"]["data"]["type"] for answer in answers if "error" in answer]
    assert slugs == ["/problems/payload_too_large"] * 3
    assert client.session.idle
    assert len(client.send(get(6))) == 1


def test_a_member_of_a_batch_that_waits_for_room_is_refused_when_its_batch_has_none() -> None:
    client = Client(bytes=1000)
    client.session.answer(client.send(ping(1))[0], LARGE)
    first, wrong = client.send(get(2), submit(3), get(4))
    client.session.answer(first, LARGE)
    assert client.session.next_in_turn(first) is None, "it waits for the client to read"
    client.session.refuse(wrong, Problem("invalid_params", "x" * 600))
    client.frame()
    assert client.session.next_with_room() is None
    (answers,) = client.frames()
    assert [answer["id"] for answer in answers] == [2, 3, 4]


def test_reading_stops_while_a_batch_is_carried_out() -> None:
    client = Client()
    one, two = client.send(ping(1), ping(2))
    client.session.answer(one, b"{}")
    assert client.session.full
    woken = client.woken
    client.session.answer(two, b"{}")
    assert client.woken > woken
    assert not client.session.full


def test_reading_stops_while_large_requests_are_carried_out() -> None:
    client = Client(bytes=1000)
    command = client.submit(1)
    assert not client.session.full
    (large,) = client.send(submit(2, params={"text": "x" * 1000}))
    assert client.session.full
    client.session.refuse(large, Problem("queue_full", "full"))
    assert not client.session.full
    client.accept(command)


def test_what_waits_behind_a_call_that_found_no_store_is_refused_with_it() -> None:
    client = Client()
    (first,) = client.send(get(1))
    detach = {"jsonrpc": "2.0", "method": "job.detach", "params": {"job": "j"}, "id": 3}
    for request in (get(2), detach, get(4)):
        client.send(request)
    client.session.refuse(first, Problem("store_unavailable", "away"))
    assert brief(client.frames()) == [1, 2, 4]
    following = client.session.next_in_turn(first)
    assert following is not None
    assert following.id == 3, "which needs no store"
    assert client.session.next_in_turn(following) is None
    assert len(client.send(get(5))) == 1


def test_a_reader_that_takes_nothing_is_given_a_bounded_number_of_events() -> None:
    client = Client(events=3)
    command = client.submit("s")
    client.accept(command)
    for seq in range(2, 10):
        client.hub.publish(an_event("j1", seq))
    follower = client.session.next_behind()
    assert follower is not None
    assert follower.state is State.BEHIND
    assert brief(client.frames()) == ["s", ("j1", 2), ("j1", 3)]


def test_a_reader_that_takes_nothing_is_given_a_bounded_number_of_bytes() -> None:
    client = Client(bytes=1000)
    client.accept(client.submit("s"))
    client.frames()
    for seq in (2, 3, 4):
        client.hub.publish(an_event("j1", seq, data=b'"%b"' % (b"x" * 400)))
    assert brief(client.frames()) == [("j1", 2), ("j1", 3)]
    client.hub.publish(an_event("j1", 5))
    assert client.frames() == [], "it reads the log now"


def test_an_event_over_the_bound_of_bytes_is_taken_by_a_reader_that_has_nothing_to_read() -> None:
    client = Client(bytes=10)
    client.accept(client.submit("s"))
    client.hub.publish(an_event("j1", 2, data=b'"much more than ten"'))
    assert brief(client.frames()) == ["s"]
    follower = client.session.next_behind()
    assert follower is not None
    assert client.session.offer(follower, an_event("j1", 2, data=b'"much more than ten"'))
    assert brief(client.frames()) == [("j1", 2)]


def test_a_follower_that_is_behind_is_given_out_once_until_it_falls_behind_again() -> None:
    client = Client()
    client.accept(client.submit("s"))
    follower = client.session.followers["j1"]
    follower.fall_behind()
    assert client.session.next_behind() is follower
    assert client.session.next_behind() is None
    client.session.log_read(follower)
    assert client.session.next_behind() is follower


def test_a_follower_that_is_no_longer_wanted_is_not_given_out() -> None:
    client = Client()
    client.accept(client.submit("s"))
    follower = client.session.followers["j1"]
    follower.fall_behind()
    client.session.leave()
    assert client.session.next_behind() is None


def test_a_job_that_ended_is_not_cancelled_when_its_client_leaves() -> None:
    client = Client()
    (command,) = client.send(submit("s", on_disconnect="cancel"))
    client.session.submitting(command)
    end(client, command)
    assert client.session.followers == {}
    assert client.session.leave() == []


def test_a_gap_says_what_is_lost_and_from_where_events_go_on() -> None:
    client = Client()
    client.accept(client.submit("s"))
    client.frames()
    follower = client.session.followers["j1"]
    follower.cursor = Cursor(7, 1007)
    snapshot = Snapshot("j1", "a", Status.RUNNING, 1, 3, None, "default", "", None, None, "3-9")
    client.session.gap(follower, snapshot, "3-9")
    assert client.frame() == {
        "jsonrpc": "2.0", "method": "job.gap",
        "params": {"job": "j1", "after": "7-1007", "snapshot": json.loads(snapshot.as_json()), "replay_from": "3-9"},
    }  # fmt: skip


def test_a_binary_frame_is_an_error_that_does_not_close() -> None:
    client = Client()
    assert client.session.receive_binary() is None
    frame = client.frame()
    assert (frame["id"], frame["error"]["code"]) == (None, -32700)


def test_a_draining_server_says_when_to_reconnect() -> None:
    client = Client()
    client.session.drain(1234)
    assert not client.session.idle
    assert client.frame() == {"jsonrpc": "2.0", "method": "server.drain", "params": {"reconnect_after_ms": 1234}}
    assert client.session.idle


@given(st.data())
def test_whatever_the_order_of_things_replies_come_first_and_each_jobs_events_in_order(data: st.DataObject) -> None:
    client = Client()
    waiting = [client.submit(id) for id in range(1, 5)]
    next_seq = {command.job: 2 for command in waiting}
    sent: list[Any] = []
    for _ in range(data.draw(st.integers(0, 40))):
        match data.draw(st.sampled_from(["accept", "publish", "read"])):
            case "accept" if waiting:
                client.accept(waiting.pop(data.draw(st.integers(0, len(waiting) - 1))))
            case "publish":
                job = data.draw(st.sampled_from(sorted(next_seq)))
                client.hub.publish(an_event(job, next_seq[job]))
                next_seq[job] += 1
            case "read" if frame := client.frame():
                sent.append(frame)
    for command in waiting:
        client.accept(command)
    sent += client.frames()
    for number, job in enumerate(next_seq, start=1):
        mine = [item for item in brief(sent) if item == number or (isinstance(item, tuple) and item[0] == job)]
        if client.session.followers[job].state is State.LIVE:
            assert mine == [number, *((job, seq) for seq in range(2, next_seq[job]))]
        else:
            assert mine == [number, *((job, seq) for seq in range(2, len(mine) + 1))]
