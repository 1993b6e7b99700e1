"""What a session follows in the hub, as commands succeed, are refused, or come too late: never more than it should."""

import json
from itertools import count
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millstream.protocol.errors import Problem
from millstream.protocol.events import START, Cursor, Event
from millstream.protocol.messages import Attach, Submit
from millstream.store.store import Submitted
from millstream_api.jobs.hub import Follower, Hub, State
from millstream_api.jobs.methods import PARAMS
from millstream_api.jobs.rpc_session import RpcSession
from millstream_api.jobs.session import Bounds, Command, Session
from millstream_api.jobs.stream_session import Gap, StreamSession
from tests.unit.readers import a_page

NO = Problem("job_not_found", "no")
FIRST = Cursor(1, 1001)


class Client:
    """A `millstream.v1` session whose jobs are called j1, j2, …"""

    def __init__(self) -> None:
        ids = count(1)
        self.forgotten: list[str] = []
        self.hub = Hub(self.forgotten.append)
        self.session = RpcSession(self.hub, PARAMS, Bounds(), lambda _: f"j{next(ids)}", lambda: None)

    def send(self, method: str, **params: Any) -> Command:
        frame = {"jsonrpc": "2.0", "method": method, "params": params, "id": method}
        (command,) = self.session.receive(json.dumps(frame))
        return command

    def submitting(self, **params: Any) -> Command:
        command = self.send("job.submit", analysis="a", **params)
        self.session.submitting(command)
        return command

    def submitted(self, command: Command, known_as: str = "") -> list[str]:
        submitted = Submitted(known_as or command.job, "queued", FIRST, duplicate=bool(known_as))
        return list(self.session.submitted(command, submitted))

    def submit(self, **params: Any) -> Command:
        command = self.submitting(**params)
        assert self.submitted(command) == []
        return command

    def attaching(self, job: str, **params: Any) -> Command:
        command = self.send("job.attach", job=job, **params)
        self.session.attaching(command)
        return command

    def attach(self, job: str, **params: Any) -> Command:
        command = self.attaching(job, **params)
        self.session.attached(command, a_page([], last=1))
        return command

    @property
    def followers(self) -> dict[str, list[Follower]]:
        return self.hub.followers

    @property
    def answered(self) -> list[Any]:
        return [json.loads(frame) for frame in iter(self.session.next_frame, None)]


@pytest.fixture
def client() -> Client:
    return Client()


def test_a_submit_that_is_refused_leaves_nothing_in_the_hub(client: Client) -> None:
    command = client.submitting()
    assert list(client.followers) == ["j1"], "its events may come before its answer"
    client.session.refuse(command, NO)
    assert (client.followers, client.session.followers, client.forgotten) == ({}, {}, [])


def test_an_attach_that_is_refused_leaves_nothing_in_the_hub(client: Client) -> None:
    client.session.refuse(client.attaching("j"), NO)
    assert (client.followers, client.session.followers, client.forgotten) == ({}, {}, [])


def test_an_attach_that_is_refused_leaves_what_was_followed_before_as_it_was(client: Client) -> None:
    client.submit()
    (follower,) = client.followers["j1"]
    client.session.refuse(client.attaching("j1"), NO)
    assert (client.followers, client.session.followers) == ({"j1": [follower]}, {"j1": follower})
    assert follower.state is State.LIVE


def test_an_attach_takes_the_place_of_what_was_followed_before(client: Client) -> None:
    client.submit()
    (earlier,) = client.followers["j1"]
    command = client.attaching("j1")
    assert earlier.state is State.LIVE, "until the store has answered"
    client.session.attached(command, a_page([], last=1))
    (follower,) = client.followers["j1"]
    assert follower is not earlier
    assert (earlier.state, follower.state, client.forgotten) == (State.DONE, State.BEHIND, [])


@pytest.mark.parametrize(
    ("after", "gap", "begin"), [(None, False, "0-0"), ("1-1001", False, "1-1001"), ("7-7", True, "0-0")]
)
def test_the_answer_to_an_attach_says_from_where_events_follow(
    client: Client, after: str | None, gap: bool, begin: str
) -> None:
    client.session.attached(client.attaching("j", after=after), a_page([], gap=gap, last=1))
    (answer,) = client.answered
    assert answer["result"] == {**json.loads(a_page([], last=1).snapshot.as_json()), "replay_from": begin}


def test_a_duplicate_submit_follows_the_job_that_it_is_from_its_log(client: Client) -> None:
    client.submitted(client.submitting(key="k"), known_as="known")
    ((job, (follower,)),) = client.followers.items()
    assert (job, follower.state, follower.cursor) == ("known", State.BEHIND, FIRST)
    assert client.forgotten == []


def test_a_duplicate_submit_of_what_is_followed_already_changes_nothing(client: Client) -> None:
    client.session.next_in_turn(client.submit(key="k"))
    (follower,) = client.followers["j1"]
    client.submitted(client.submitting(key="k"), known_as="j1")
    assert (client.followers, follower.state) == ({"j1": [follower]}, State.LIVE)


def test_a_client_that_detaches_follows_nothing_and_is_answered(client: Client) -> None:
    client.submit(on_disconnect="cancel")
    client.session.detach(client.send("job.detach", job="j1"))
    assert (client.followers, client.session.followers, client.forgotten) == ({}, {}, ["j1"])
    assert client.answered[-1]["result"] == {}
    assert client.session.leave() == []


def test_a_client_that_leaves_follows_nothing_and_cancels_what_it_wanted_cancelled(client: Client) -> None:
    client.submit()
    client.submit(on_disconnect="cancel")
    client.attach("other")
    assert client.session.leave() == ["j2"]
    assert (client.followers, client.forgotten) == ({}, ["j1", "j2", "other"])
    assert client.session.leave() == [], "once"


def test_a_duplicate_does_not_decide_what_its_leaving_does(client: Client) -> None:
    client.submitted(client.submitting(key="k", on_disconnect="cancel"), known_as="known")
    assert client.session.leave() == []


@pytest.mark.parametrize("on_disconnect", ["continue", "cancel"])
def test_a_job_that_is_accepted_after_its_client_left_is_not_followed(client: Client, on_disconnect: str) -> None:
    command = client.submitting(on_disconnect=on_disconnect)
    assert client.session.leave() == []
    assert client.submitted(command) == (["j1"] if on_disconnect == "cancel" else [])
    assert (client.followers, client.session.followers, client.answered) == ({}, {}, [])


def test_a_duplicate_that_is_accepted_after_its_client_left_is_not_followed(client: Client) -> None:
    command = client.submitting(key="k", on_disconnect="cancel")
    client.session.leave()
    assert client.submitted(command, known_as="known") == []
    assert client.followers == {}


def test_an_attach_that_succeeds_after_its_client_left_is_not_followed(client: Client) -> None:
    command = client.attaching("j")
    client.session.leave()
    client.session.attached(command, a_page([]))
    assert (client.followers, client.session.followers, client.answered) == ({}, {}, [])


@given(st.data())
def test_whatever_is_asked_and_comes_of_it_a_session_follows_each_job_once_and_in_the_end_none(
    data: st.DataObject,
) -> None:
    client = Client()
    under_way: list[Command] = []
    known = ["x", "y"]  # the jobs there are: two of others, and those that were accepted

    def a_job() -> st.SearchStrategy[str]:
        return st.sampled_from(known)

    def ask(method: str, **params: Any) -> None:
        begin(client.session.receive(json.dumps({"jsonrpc": "2.0", "method": method, "params": params, "id": 1})))

    def begin(commands: list[Command]) -> None:
        for command in commands:
            if command.method == "job.detach":
                client.session.detach(command)
                end(command)
            else:
                {"job.submit": client.session.submitting, "job.attach": client.session.attaching}[command.method](
                    command
                )
                under_way.append(command)

    def end(command: Command) -> None:
        if following := client.session.next_in_turn(command):
            begin([following])

    def settle(refuse: bool) -> None:
        command = under_way.pop(data.draw(st.integers(0, len(under_way) - 1)))
        if refuse:
            client.session.refuse(command, NO)
        elif command.method == "job.attach":
            client.session.attached(command, a_page([], last=1))
        else:
            duplicate = data.draw(a_job()) if command.params.key else ""
            client.submitted(command, known_as=duplicate)
            known.append(command.job)
        end(command)

    for _ in range(data.draw(st.integers(0, 25))):
        match data.draw(st.sampled_from(["submit", "attach", "detach", "succeed", "refuse", "end", "leave"])):
            case "submit":
                on_disconnect = data.draw(st.sampled_from(["continue", "cancel"]))
                ask(
                    "job.submit", analysis="a", on_disconnect=on_disconnect, key=data.draw(st.sampled_from([None, "k"]))
                )
            case "attach":
                ask("job.attach", job=data.draw(a_job()))
            case "detach":
                ask("job.detach", job=data.draw(a_job()))
            case ("succeed" | "refuse") as outcome if under_way:
                settle(outcome == "refuse")
            case "end":
                client.hub.publish(Event(data.draw(a_job()), 2, 1002, 1, "succeeded", b"{}"))
            case "leave":
                client.session.leave()
        wanted = [*client.session.followers.values(), *(command.follower for command in under_way)]
        found = [follower for followers in client.followers.values() for follower in followers]
        assert set(map(id, found)) <= set(map(id, wanted)), "a follower without a session"
        assert len(found) == len(set(map(id, found)))
    while under_way:
        settle(refuse=True)
    client.session.leave()
    assert (client.followers, client.session.followers) == ({}, {})


# HTTP streams.


class Stream:
    def __init__(self, **bounds: int) -> None:
        self.forgotten: list[str] = []
        self.hub = Hub(self.forgotten.append)
        self.session = StreamSession(self.hub, Bounds(**bounds), lambda: None)

    def submitting(self, **params: Any) -> Command:
        command = Command("job.submit", Submit(analysis="a", **params), "j")
        self.session.submitting(command)
        return command

    def submit(self, **params: Any) -> Follower:
        self.session.submitted(self.submitting(**params), Submitted("j", "queued", FIRST, duplicate=False))
        assert self.session.follower is not None
        return self.session.follower


def an_event(seq: int, type: str = "chunk", data: bytes = b"{}") -> Event:
    return Event("j", seq, 1000 + seq, 1, type, data)


def test_a_stream_of_a_submit_reads_the_log_from_its_first_event() -> None:
    stream = Stream()
    follower = stream.submit()
    assert (follower.state, follower.ask()) == (State.BEHIND, START)
    follower.read(a_page([an_event(1)], last=1))
    assert stream.session.take() == [an_event(1)]
    assert stream.session.take() == []


def test_a_stream_of_an_attach_reads_the_log_from_its_cursor() -> None:
    stream = Stream()
    command = Command("job.attach", Attach(job="j", after="3-1003"), "")
    stream.session.attaching(command)
    stream.session.attached(command, a_page([], last=3))
    assert stream.session.follower is not None
    assert (stream.session.follower.state, stream.session.follower.ask()) == (State.BEHIND, Cursor(3, 1003))


def test_a_stream_whose_submit_came_to_nothing_leaves_nothing_in_the_hub() -> None:
    stream = Stream()
    stream.session.abandon(stream.submitting())
    assert (stream.hub.followers, stream.session.followers, stream.forgotten) == ({}, {}, [])


@pytest.mark.parametrize("bounds", [{"events": 2}, {"bytes": 4}])
def test_a_stream_that_is_not_read_holds_a_bounded_part_of_its_job(bounds: dict[str, int]) -> None:
    stream = Stream(**bounds)
    follower = stream.submit()
    follower.read(a_page([an_event(seq) for seq in (1, 2, 3, 4)], last=4))
    assert stream.session.take() == [an_event(1), an_event(2)]
    assert follower.state is State.BEHIND
    stream.session.offer(follower, an_event(3, data=b'"more than the bound"'))
    assert len(stream.session.take()) == 1, "the first is held whatever its size"


def test_a_gap_is_held_in_its_place() -> None:
    stream = Stream()
    follower = stream.submit()
    follower.read(a_page([an_event(1), an_event(3)], last=3))
    one, gap, three = stream.session.take()
    assert (one, three) == (an_event(1), an_event(3))
    assert isinstance(gap, Gap)
    assert (gap.after, gap.replay_from) == (str(an_event(1).cursor), str(an_event(1).cursor))


@pytest.mark.parametrize("how", ["event", "page", "gone"])
def test_a_job_that_ended_is_not_cancelled_when_the_reader_of_its_stream_leaves(how: str) -> None:
    stream = Stream()
    follower = stream.submit(on_disconnect="cancel")
    match how:
        case "event":
            follower.read(a_page([an_event(1), an_event(2, "failed")], ended=True, last=2))
        case "page":
            follower.read(a_page([], ended=True, last=2))
        case "gone":
            follower.read(None)
    stream.session.log_read(follower)
    stream.hub.drop_if_done(follower)
    assert (stream.session.leave(), stream.hub.followers) == ([], {})


def test_a_job_that_runs_is_cancelled_when_the_reader_of_its_stream_leaves_if_it_was_submitted_so() -> None:
    stream: Stream = Stream()
    stream.submit(on_disconnect="cancel")
    session: Session = stream.session
    assert (session.leave(), stream.hub.followers, stream.forgotten) == (["j"], {}, ["j"])
