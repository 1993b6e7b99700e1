"""Plain mode: one frame back for each frame, in their order, with a bound on what is held for that."""

from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millstream.protocol.errors import Problem
from millstream.protocol.events import Cursor, Event
from millstream.protocol.jobs import Page, Snapshot, Status
from millstream.store.store import Submitted
from millstream_api.jobs.hub import Follower, Hub, State
from millstream_api.jobs.plain_session import PlainSession, plain_answer
from millstream_api.jobs.session import Bounds, Command


class Client:
    """A plain session with a hub and a log of ended jobs, driven by hand. Jobs are called j1, j2, …"""

    def __init__(self, analysis: str = "process", **bounds: int) -> None:
        ids = count(1)
        self.hub = Hub(lambda _: None)
        self.session = PlainSession(self.hub, analysis, Bounds(**bounds), lambda _: f"j{next(ids)}", lambda: None)
        self.ends: dict[str, Event] = {}

    def send(self, text: str) -> Command:
        (command,) = self.session.receive(text)
        self.session.submitting(command)
        return command

    def accept(self, command: Command) -> Follower:
        follower = self.session.followers[command.job]
        self.session.submitted(command, Submitted(command.job, "queued", Cursor(1, 1), duplicate=False))
        return follower

    def end(self, job: str, result: bytes = b'"done"') -> None:
        self.ends[job] = Event(job, 3, 3, 1, "succeeded", b'{"result":%b,"elapsed_s":1.0}' % result)
        self.hub.publish(self.ends[job])

    def read_log(self) -> Follower | None:
        """As the writer does when there is nothing to send."""
        if follower := self.session.next_behind():
            follower.ask()
            ended = self.ends.get(follower.job)
            status = Status.SUCCEEDED if ended else Status.RUNNING
            snapshot = Snapshot("", "a", status, 1, 3, None, "default", "", None, None, "0-0")
            follower.read(Page(False, False, snapshot, [ended] if ended else []))
            self.session.log_read(follower)
        return follower

    def frames(self) -> list[str]:
        return list(iter(self.session.next_frame, None))


@pytest.mark.parametrize("text", ["", "hello", '{"a":1}', "zeile\nzeile", "\u0000é\U0001f600"])
def test_a_frame_is_a_job_with_its_text_as_it_is(text: str) -> None:
    (command,) = PlainSession(Hub(lambda _: None), "words", Bounds(), lambda _: "id", lambda: None).receive(text)
    assert (command.method, command.job) == ("job.submit", "id")
    assert (command.params.analysis, command.params.params) == ("words", {"text": text})
    assert command.params.events == "terminal"


def test_answers_wait_for_those_of_earlier_frames() -> None:
    client = Client()
    for text in ("a", "b", "c"):
        client.accept(client.send(text))
    client.end("j3", b'"third"')
    client.end("j2", b'"second"')
    assert client.frames() == []
    client.end("j1", b'"first"')
    assert client.frames() == ["first", "second", "third"]
    assert client.session.idle


def test_a_frame_that_is_refused_is_answered_in_its_turn() -> None:
    client = Client()
    first, second = client.send("a"), client.send("b")
    client.session.refuse(second, Problem("unknown_analysis", "There is no analysis 'x'."))
    assert client.frames() == []
    client.accept(first)
    client.end("j1")
    assert client.frames() == ["done", "Error: There is no analysis 'x'."]


def test_a_job_that_the_store_lost_is_answered_in_its_turn() -> None:
    client = Client()
    follower = client.accept(client.send("a"))
    follower.fall_behind()
    follower.read(None)
    (answer,) = client.frames()
    assert answer.startswith("Error: ")


def test_reading_stops_at_the_limit_in_flight_and_goes_on_when_an_answer_has_left() -> None:
    client = Client(in_flight=2)
    client.accept(client.send("a"))
    assert not client.session.full
    client.accept(client.send("b"))
    assert client.session.full
    client.end("j2")
    assert client.session.full, "its answer is still held"
    client.end("j1")
    client.session.next_frame()
    assert not client.session.full


def test_answers_that_find_no_room_are_read_from_the_log_when_it_is_their_turn() -> None:
    client = Client(bytes=100)
    for text in ("a", "b", "c"):
        client.accept(client.send(text))
    client.end("j3", b'"%b"' % (b"3" * 60))
    client.end("j2", b'"%b"' % (b"2" * 60))
    assert client.session.followers["j2"].state is State.BEHIND
    client.end("j1")
    assert client.frames() == ["done"]
    assert client.read_log() is not None
    assert client.frames() == ["2" * 60, "3" * 60]


def test_room_that_an_answer_leaves_is_used_for_one_that_found_none() -> None:
    client = Client(bytes=100)
    for text in ("a", "b", "c", "d"):
        client.accept(client.send(text))
    client.end("j2", b'"%b"' % (b"2" * 60))
    client.end("j4", b'"%b"' % (b"4" * 60))
    client.end("j1")
    assert client.frames() == ["done", "2" * 60]
    assert client.read_log() is not None
    client.end("j3")
    assert client.frames() == ["done", "4" * 60]


def test_an_answer_that_found_no_room_is_not_asked_for_again_before_there_is_some() -> None:
    client = Client(bytes=100)
    for text in ("a", "b", "c"):
        client.accept(client.send(text))
    client.end("j3", b'"%b"' % (b"3" * 60))
    client.end("j2", b'"%b"' % (b"2" * 60))
    asked = [client.read_log() for _ in range(3)]
    assert asked[-1] is None, "the log is read in a loop that does nothing"


def test_the_first_in_line_is_taken_whatever_its_size() -> None:
    client = Client(bytes=10)
    client.accept(client.send("a"))
    client.end("j1", b'"%b"' % (b"x" * 1000))
    assert client.frames() == ["x" * 1000]


def test_binary_closes_with_1003_and_a_drain_says_nothing() -> None:
    client = Client()
    assert client.session.receive_binary() == 1003
    client.session.drain(100)
    assert client.frames() == []


@pytest.mark.parametrize("slug", ["queue_full", "too_many_in_flight", "rate_limited"])
def test_a_submit_that_finds_no_room_is_tried_again_while_its_client_is_there(slug: str) -> None:
    client = Client()
    assert client.session.tries_again(Problem(slug, "full"))
    assert not client.session.tries_again(Problem("unknown_analysis", "no"))
    client.session.leave()
    assert not client.session.tries_again(Problem(slug, "full"))


@pytest.mark.parametrize(
    ("type", "data", "answer"),
    [
        ("succeeded", b'{"result":"as it is \\u00e9\\n","elapsed_s":1}', "as it is é\n"),
        ("succeeded", b'{"result":{"a":[1,null]},"elapsed_s":1}', '{"a":[1,null]}'),
        ("succeeded", b'{"result":null,"elapsed_s":1}', "null"),
        ("succeeded", b'{"result":"","elapsed_s":1}', ""),
        ("failed", b'{"error":{"code":"analysis_error","message":"no"},"elapsed_s":1}', "Error: no"),
        ("cancelled", b'{"reason":"enough"}', "Error: cancelled: enough"),
        ("cancelled", b'{"reason":null}', "Error: cancelled"),
    ],
)
def test_the_answer_is_the_result_or_says_what_went_wrong(type: str, data: bytes, answer: str) -> None:
    assert plain_answer(Event("j", 3, 3, 1, type, data)) == answer


@given(
    st.permutations(range(1, 7)),
    st.integers(1, 200),
    st.lists(st.sampled_from(["end", "read", "send", "resync"]), max_size=40),
)
def test_however_jobs_end_every_frame_is_answered_in_order_within_the_bound(
    order: list[int], bound: int, between: list[str]
) -> None:
    client = Client(bytes=bound)
    for number in order:
        client.accept(client.send(f"text {number}"))
    answers: list[str] = []
    to_end = list(order)
    texts = {f"j{number}": str(number) * (number * 20) for number in order}

    def hold() -> None:
        held = [answer for answer in client.session._answers.values() if answer is not None]
        assert sum(map(len, held[1:])) <= bound

    for step in [*between, *["end"] * 6]:
        match step:
            case "end" if to_end:
                job = f"j{to_end.pop(0)}"
                client.end(job, b'"%b"' % texts[job].encode())
            case "read":
                client.read_log()
            case "send" if frame := client.session.next_frame():
                answers.append(frame)
            case "resync":
                client.hub.resync(lambda _: True)
        hold()
    for _ in range(50):
        answers += client.frames()
        client.read_log()
    assert answers == [texts[f"j{number}"] for number in range(1, 7)]


def test_an_end_that_the_store_has_lost_is_an_error_in_its_place() -> None:
    client = Client()
    first, second = client.send("1"), client.send("2")
    follower = client.accept(first)
    client.accept(second)
    client.end(second.job)
    follower.fall_behind()
    snapshot = Snapshot("", "a", Status.SUCCEEDED, 1, 3, None, "default", "", None, None, "3-3")
    follower.read(Page(False, False, snapshot, []))
    assert client.frames() == ["Error: The store has lost the job, or its end.", "done"]
