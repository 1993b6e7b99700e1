"""What a follower does with each thing that may happen, one at a time; test_following.py has them all mixed."""

import pytest

from millstream.protocol.events import START, Cursor, Event
from millstream_api.jobs.hub import EARLY, Follower, Hub, State
from tests.unit.readers import JOB, SmallReader, a_page, an_event


def follow(*, room: int = 100, terminal_only: bool = False) -> tuple[Hub, Follower, SmallReader, list[str]]:
    forgotten: list[str] = []
    hub, reader = Hub(forgotten.append), SmallReader(room)
    return hub, hub.follow(JOB, reader, terminal_only=terminal_only), reader, forgotten


def test_an_event_that_does_not_continue_what_the_reader_has_sends_the_follower_to_the_log() -> None:
    hub, follower, reader, _ = follow()
    follower.start(Cursor(1, 1001))
    hub.publish(an_event(2))
    hub.publish(an_event(4))
    hub.publish(an_event(3))
    assert (reader.seqs, follower.state, reader.told) == ([2], State.BEHIND, True)


def test_a_reader_that_fails_on_an_event_keeps_it_from_no_other_and_meets_it_again_in_the_log() -> None:
    class Odd(SmallReader):
        def offer(self, follower: Follower, event: Event) -> bool:
            raise ValueError("it cannot be read")

    hub, before, good, _ = follow()
    odd = hub.follow(JOB, Odd(100), terminal_only=False)
    after = hub.follow(JOB, second := SmallReader(100), terminal_only=False)
    for follower in (before, odd, after):
        follower.start(Cursor(1, 1001))
    hub.publish(an_event(2))
    hub.publish(an_event(3))
    assert good.seqs == second.seqs == [2, 3]
    assert (before.state, odd.state, after.state) == (State.LIVE, State.BEHIND, State.LIVE)
    with pytest.raises(ValueError, match="it cannot be read"):
        odd.read(a_page([an_event(2)], last=2))


def test_an_event_that_the_reader_has_had_is_passed_over() -> None:
    hub, follower, reader, _ = follow()
    follower.start(Cursor(1, 1001))
    for seq in (2, 3, 2, 3, 1):
        hub.publish(an_event(seq))
    assert (reader.seqs, follower.state) == ([2, 3], State.LIVE)


def test_a_connection_that_breaks_before_the_start_sends_the_follower_to_the_log() -> None:
    hub, follower, reader, _ = follow()
    hub.resync(lambda _: True)
    assert not reader.told
    follower.start(Cursor(1, 1001))
    assert (follower.state, reader.told) == (State.BEHIND, True)


def test_a_connection_that_breaks_sends_only_those_to_the_log_whose_jobs_it_carries() -> None:
    hub, follower, reader, _ = follow()
    elsewhere_reader = SmallReader(100)
    elsewhere = hub.follow("elsewhere", elsewhere_reader, terminal_only=False)
    early = hub.follow("elsewhere", SmallReader(100), terminal_only=False)
    for started in (follower, elsewhere):
        started.start(START)
    hub.resync(lambda job: job == JOB)
    early.start(START)
    assert (follower.state, reader.told) == (State.BEHIND, True)
    assert (elsewhere.state, elsewhere_reader.told, early.state) == (State.LIVE, False, State.LIVE)


def test_events_that_come_before_the_start_are_kept_for_it() -> None:
    hub, follower, reader, _ = follow()
    for seq in (2, 3, 4):
        hub.publish(an_event(seq))
    assert reader.seqs == []
    follower.start(Cursor(1, 1001))
    assert (reader.seqs, follower.state) == ([2, 3, 4], State.LIVE)


def test_more_events_before_the_start_than_are_kept_send_the_follower_to_the_log() -> None:
    hub, follower, reader, _ = follow()
    for seq in range(2, EARLY + 3):
        hub.publish(an_event(seq))
    follower.start(Cursor(1, 1001))
    assert (reader.seqs, follower.state, reader.told) == ([], State.BEHIND, True)


def test_events_that_come_while_the_log_is_read_make_it_be_read_again() -> None:
    hub, follower, reader, _ = follow()
    follower.start(START, behind=True)
    assert follower.ask() == START
    hub.publish(an_event(3))
    follower.read(a_page([an_event(1), an_event(2)]))
    assert follower.state is State.BEHIND
    assert follower.ask() == an_event(2).cursor
    follower.read(a_page([an_event(3)]))
    assert (reader.seqs, follower.state) == ([1, 2, 3], State.LIVE)


def test_what_was_heard_but_is_not_in_the_log_when_it_is_read_again_is_not_waited_for() -> None:
    hub, follower, _, _ = follow()
    follower.start(START, behind=True)
    hub.publish(an_event(9))
    assert follower.ask() == START
    follower.read(a_page([an_event(1)]))
    assert follower.state is State.LIVE


def test_a_gap_is_told_before_the_log_begins_again() -> None:
    _, follower, reader, _ = follow(room=1)
    follower.start(Cursor(7, 77), behind=True)
    follower.read(a_page([an_event(1), an_event(2)], gap=True))
    assert (reader.gaps, reader.seqs, follower.cursor) == ([("7-77", "0-0")], [1], an_event(1).cursor)


def test_a_gap_before_an_empty_page_is_told_once_and_the_log_is_read_from_the_start() -> None:
    _, follower, reader, _ = follow()
    follower.start(Cursor(7, 77), behind=True)
    follower.read(a_page([], gap=True, more=True))
    assert (reader.gaps, follower.ask()) == ([("7-77", "0-0")], START)
    follower.read(a_page([an_event(5)]))
    assert (len(reader.gaps), reader.seqs) == (1, [5])


def test_events_that_the_log_has_lost_are_told_where_they_were_and_once() -> None:
    _, follower, reader, _ = follow(room=1)
    follower.start(START, behind=True)
    follower.read(a_page([an_event(3), an_event(4)]))
    assert (reader.gaps, reader.seqs) == ([("0-0", "0-0")], [3])
    reader.held.clear()
    follower.read(a_page([an_event(4), an_event(7)]))
    three, four = str(an_event(3).cursor), str(an_event(4).cursor)
    assert (reader.gaps[1:], reader.seqs) == ([(four, four)], []), "told, but there was no room for 7"
    reader.held.clear()
    follower.read(a_page([an_event(7)]))
    assert (len(reader.gaps), reader.seqs, three < four) == (2, [7], True)


def test_a_reader_of_the_last_event_alone_is_told_of_no_gap_before_it() -> None:
    _, follower, reader, _ = follow(terminal_only=True)
    follower.start(START, behind=True)
    follower.read(a_page([an_event(9, "succeeded")], ended=True, last=9))
    assert (reader.gaps, reader.seqs, follower.state) == ([], [9], State.DONE)


@pytest.mark.parametrize("terminal_only", [False, True])
@pytest.mark.parametrize("begin", [START, Cursor(4, 1004)])
def test_an_end_that_the_log_has_lost_is_told(begin: Cursor, terminal_only: bool) -> None:
    _, follower, reader, _ = follow(terminal_only=terminal_only)
    follower.start(begin, behind=True)
    follower.read(a_page([], ended=True, last=9))
    assert (reader.gaps, follower.state) == ([(str(begin), str(an_event(9).cursor))], State.DONE)


def test_a_tail_that_the_log_has_lost_is_told_with_the_next_event() -> None:
    hub, follower, reader, _ = follow()
    follower.start(an_event(4).cursor, behind=True)
    follower.read(a_page([], last=6))
    assert follower.state is State.LIVE
    hub.publish(an_event(7))
    follower.read(a_page([an_event(7)], last=7))
    four = str(an_event(4).cursor)
    assert (reader.gaps, reader.seqs, follower.state) == ([(four, four)], [7], State.LIVE)


def test_a_job_that_is_gone_is_told_as_a_gap_and_ends_the_following() -> None:
    hub, follower, reader, forgotten = follow()
    follower.start(Cursor(7, 77), behind=True)
    follower.read(None)
    hub.drop_if_done(follower)
    assert (reader.gaps, follower.state, hub.followers, forgotten) == ([("7-77", "0-0")], State.DONE, {}, [])


def test_an_end_that_the_log_was_read_up_to_already_ends_the_following() -> None:
    _, follower, reader, _ = follow()
    follower.start(an_event(5).cursor, behind=True)
    follower.read(a_page([], ended=True, last=5))
    assert (reader.seqs, follower.state) == ([], State.DONE)


def test_a_page_that_comes_after_the_end_is_left_alone() -> None:
    hub, follower, reader, _ = follow()
    follower.start(START)
    hub.publish(an_event(1, "succeeded"))
    follower.read(a_page([an_event(1, "succeeded")]))
    assert reader.seqs == [1]


@pytest.mark.parametrize("terminal_only", [False, True])
def test_the_store_is_told_once_nobody_here_follows_a_job_that_goes_on(terminal_only: bool) -> None:
    hub, follower, _, forgotten = follow(terminal_only=terminal_only)
    second = hub.follow(JOB, SmallReader(1), terminal_only=False)
    hub.drop(follower)
    assert forgotten == []
    hub.drop(second)
    assert (forgotten, hub.followers) == ([JOB], {})
    hub.drop(second)
    assert forgotten == [JOB]


def test_the_store_is_not_told_of_a_job_that_ended_or_that_is_kept() -> None:
    hub, follower, _, forgotten = follow()
    follower.start(START)
    hub.publish(an_event(1, "failed"))
    assert (forgotten, hub.followers) == ([], {})
    hub.drop(hub.follow("other", SmallReader(1), terminal_only=False), forget=False)
    assert forgotten == []


def test_an_event_that_nobody_here_wants_is_told_to_the_store_unless_it_is_the_last() -> None:
    forgotten: list[str] = []
    hub = Hub(forgotten.append)
    hub.publish(an_event(2))
    assert forgotten == [JOB]
    hub.publish(an_event(3, "succeeded"))
    assert forgotten == [JOB]


def test_followers_of_one_job_do_not_hold_each_other_up() -> None:
    hub, slow, slow_reader, _ = follow(room=1)
    fast_reader = SmallReader(100)
    fast = hub.follow(JOB, fast_reader, terminal_only=False)
    slow.start(START)
    fast.start(START)
    for seq in (1, 2, 3):
        hub.publish(an_event(seq))
    assert (fast_reader.seqs, slow_reader.seqs) == ([1, 2, 3], [1])
    assert (fast.state, slow.state) == (State.LIVE, State.BEHIND)
