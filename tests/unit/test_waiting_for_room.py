"""Plain frames that find the queue full: one of them asks again, the others wait behind it, in their order."""

import asyncio
import random
from itertools import count
from types import SimpleNamespace
from typing import Any, cast

import pytest

from millstream.apikeys import ANONYMOUS, Principal
from millstream.protocol.errors import Problem
from millstream.protocol.events import Cursor
from millstream.protocol.messages import Submit
from millstream.store.store import Submitted
from millstream_api.jobs import methods
from millstream_api.jobs.commands import Commands
from millstream_api.jobs.hub import Hub
from millstream_api.jobs.methods import Caller
from millstream_api.jobs.plain_session import TRANSIENT_REFUSALS, PlainSession
from millstream_api.jobs.session import Bounds


class Client:
    """A plain socket, a store with room for `room` jobs more, and a clock that stands: `later` ends a pause."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        ids = count(1)
        self.room = 0
        self.tried: list[str] = []
        self.accepted: list[str] = []
        self.pauses: list[float] = []
        self.refusal = "queue_full"
        self._pausing: list[asyncio.Future[None]] = []
        self.session = PlainSession(Hub(lambda _: None), "a", Bounds(), lambda _: f"j{next(ids)}", lambda: None)
        self.caller = Caller(ANONYMOUS, cast(Commands, self), self.session)
        self.tasks: list[asyncio.Task[None]] = []
        monkeypatch.setattr(methods, "asyncio", SimpleNamespace(sleep=self._pause, Lock=asyncio.Lock))
        monkeypatch.setattr(random, "uniform", lambda _, most: most)

    async def submit(self, who: Principal, request: Submit, job: str) -> Submitted:
        self.tried.append(job)
        await asyncio.sleep(0)
        if not self.room:
            raise Problem(self.refusal, "no room")
        self.room -= 1
        self.accepted.append(job)
        return Submitted(job, "queued", Cursor(1, 1), duplicate=False)

    async def _pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pausing.append(future)
        await future

    async def send(self, frames: int) -> None:
        for _ in range(frames):
            (command,) = self.session.receive("x" * 10)
            self.tasks.append(asyncio.create_task(self._carry_out(command)))
        await self.rest()

    async def _carry_out(self, command: Any) -> None:
        try:
            await methods.submit(self.caller, command)
        except Problem as problem:
            self.session.refuse(command, problem)

    async def rest(self) -> None:
        for _ in range(100):
            await asyncio.sleep(0)

    async def later(self) -> list[str]:
        """A pause ends. Returns the jobs that were tried then."""
        before = len(self.tried)
        assert len(self._pausing) == 1, "one frame pauses for all"
        self._pausing.pop().set_result(None)
        await self.rest()
        return self.tried[before:]


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Client:
    return Client(monkeypatch)


@pytest.mark.parametrize("refusal", TRANSIENT_REFUSALS)
async def test_only_the_first_frame_asks_again_after_pauses_that_grow(client: Client, refusal: str) -> None:
    client.refusal = refusal
    await client.send(20)
    assert [await client.later() for _ in range(6)] == [["j1"]] * 6
    assert client.pauses == sorted(client.pauses)
    assert client.pauses[0] < client.pauses[-1] == client.pauses[-2] == methods.MAX_PAUSE_S


async def test_frames_are_accepted_in_their_order_as_there_is_room(client: Client) -> None:
    await client.send(10)
    before = len(client.tried)
    await client.send(2)
    assert client.tried[before:] == [], "those that come meanwhile wait behind the others"
    client.room = 3
    assert await client.later() == ["j1", "j2", "j3", "j4"]
    client.room = 100
    await client.later()
    assert client.accepted == [f"j{number}" for number in range(1, 13)]
    before = len(client.tried)
    await client.send(2)
    assert client.tried[before:] == ["j13", "j14"], "nobody waits any more"
    await asyncio.gather(*client.tasks)


async def test_frames_of_a_client_that_has_left_are_not_kept_waiting(client: Client) -> None:
    await client.send(5)
    client.session.leave()
    await client.later()
    await asyncio.gather(*client.tasks)
    assert client.accepted == []


async def test_a_frame_that_can_never_be_accepted_holds_up_no_other(client: Client) -> None:
    await client.send(3)
    client.refusal = "invalid_params"
    await client.later()
    await asyncio.gather(*client.tasks)
    assert [client.session.next_frame() for _ in range(3)] == ["Error: no room"] * 3


def test_reading_stops_while_frames_that_are_not_accepted_are_large(client: Client) -> None:
    session = client.session
    size = Bounds().bytes // 2
    first, second = (session.receive("x" * size)[0] for _ in range(2))
    for command in (first, second):
        session.submitting(command)
    assert session.full
    session.submitted(first, Submitted(first.job, "queued", Cursor(1, 1), duplicate=False))
    assert not session.full
    session.receive("x" * size)
    assert session.full
    session.refuse(second, Problem("queue_full", "no room"))
    assert not session.full
