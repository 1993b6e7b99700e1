"""How many connections there may be, of all and of one address, and which have run out of time."""

from math import inf
from time import monotonic

from millstream_api.wire.http1 import Request
from millstream_api.wire.population import RESERVE, Population

MINE, YOURS, PROXY = "192.0.2.1", "192.0.2.2", "192.0.2.9"


class Connection:
    def __init__(self, address: str | None = MINE) -> None:
        self.client = (address, 1) if address else None
        self.deadline = inf
        self.calls: list[str] = []

    def time_out(self) -> None:
        self.calls.append("time_out")

    def abort(self) -> None:
        self.calls.append("abort")


def population(most: int = 1000, of_address: int = 1000) -> Population:
    return Population(most=most, most_of_address=of_address, exempt=lambda address: address == PROXY)


def asks_for(target: bytes) -> Request:
    return Request("GET", target, "1.1", [], 0, True, False, False)


def test_an_address_has_a_share_of_all_connections_and_gets_it_back() -> None:
    found, mine = population(of_address=2), [Connection(), Connection(), Connection()]
    assert [found.admit(connection) for connection in mine] == [True, True, False]
    assert found.admit(Connection(YOURS)), "another address has its own"
    found.leave(mine[2])
    assert not found.admit(mine[2])
    found.leave(mine[2])
    found.leave(mine[0])
    assert found.admit(Connection())
    assert found.refused == 2


def test_a_proxy_and_what_has_no_address_may_have_all() -> None:
    found = population(of_address=1)
    for address in (PROXY, None):
        assert [found.admit(Connection(address)) for _ in range(3)] == [True] * 3


def test_beyond_the_limit_a_reserve_answers_what_costs_nothing_and_its_oldest_makes_room() -> None:
    found, member = population(most=1), Connection()
    found.admit(member)
    reserve = [Connection() for _ in range(RESERVE)]
    for connection in reserve:
        assert found.admit(connection)
        assert connection.deadline < inf
        assert not found.keeps_alive(connection)
        assert found.refusal(connection, asks_for(b"/healthz")) is None
        assert "limit" in str(found.refusal(connection, asks_for(b"/jobs")))
    assert not any(connection.calls for connection in reserve)
    found.admit(Connection())
    assert [connection.calls for connection in reserve] == [["abort"], *([[]] * (RESERVE - 1))]
    assert found.refusal(member, asks_for(b"/jobs")) is None
    assert found.keeps_alive(member)
    found.leave(member)
    again = Connection()
    found.admit(again)
    assert found.keeps_alive(again), "there is room again"


async def test_each_whose_time_is_over_is_told_and_no_other() -> None:
    found, late, early, reserved = population(most=2), Connection(), Connection(), Connection()
    for connection in (late, early, reserved):
        found.admit(connection)
    late.deadline = reserved.deadline = monotonic() - 1
    early.deadline = monotonic() + 60
    await found.sweep()
    assert [connection.calls for connection in (late, early, reserved)] == [["time_out"], [], ["time_out"]]
    assert len(found) == 3
