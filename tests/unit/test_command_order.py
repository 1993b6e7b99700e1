"""Commands of one socket run side by side, but those about one job keep their order, whatever the store does."""

import asyncio
import json
from collections import deque
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millstream.apikeys import ANONYMOUS, Keys
from millstream.protocol.catalog import Catalog, Entry
from millstream.protocol.errors import StoreUnavailable
from millstream.protocol.events import Cursor
from millstream.protocol.jobs import Page, Snapshot
from millstream.protocol.messages import LargeAnswer
from millstream.store.store import NewJob, Store, Submitted
from millstream_api.jobs.commands import Commands
from millstream_api.jobs.hub import Hub
from millstream_api.jobs.methods import METHODS, PARAMS
from millstream_api.jobs.relay import Relay
from millstream_api.jobs.rpc_session import RpcSession
from millstream_api.jobs.session import Bounds, Command
from millstream_api.jobs.stores import Stores
from millstream_api.jobs.websocket import PROTOCOL, Socket
from millstream_api.settings import ApiSettings
from tests.unit.readers import a_page

PARAMS_OF: dict[str, dict[str, Any]] = {
    "job.submit": {"analysis": "a", "key": "k"},
    **{method: {"job": "j"} for method in ("job.attach", "job.detach", "job.cancel", "job.get")},
}
ABOUT_A_JOB = ("job.attach", "job.detach", "job.cancel", "job.get")


class HeldStore:
    """A store whose calls have begun but get no answer before `answers` is set. `begun` names each, and its job."""

    def __init__(self) -> None:
        self.answers = asyncio.Event()
        self.away = False
        self.begun: list[tuple[str, str]] = []
        self.keys: dict[str, str] = {}

    async def _called(self, name: str, job: str) -> None:
        self.begun.append((name, job))
        await self.answers.wait()
        if self.away:
            raise StoreUnavailable("away")

    async def submit(self, new: NewJob) -> Submitted:
        await self._called("submit", new.key)
        known = self.keys.setdefault(new.key, new.id) if new.key else new.id
        return Submitted(known, "queued", Cursor(1, 1), duplicate=known != new.id)

    async def attach(self, job: str, *_: Any, **__: Any) -> Page:
        await self._called("attach", job)
        return a_page([], last=1)

    async def cancel(self, job: str, *_: Any) -> Snapshot:
        await self._called("cancel", job)
        return a_page([]).snapshot

    async def snapshot(self, job: str, *_: Any) -> Snapshot:
        await self._called("get", job)
        return a_page([]).snapshot


class Client:
    """A socket on a held store; its wire is this object."""

    write_paused = False

    def __init__(self) -> None:
        self.store = HeldStore()
        self.hub = Hub(lambda _: None)
        self.sent: list[Any] = []
        catalog = Catalog()
        catalog.entries["a"] = Entry(
            name="a", description="", params_schema={}, result_schema={}, timeout_s=1, queue="default"
        )
        relay, stores = SimpleNamespace(hub=self.hub, node="n"), Stores(cast(Store, self.store))
        commands = Commands(ApiSettings(), stores, cast(Relay, relay), Keys(None), asyncio.Event(), catalog)
        self.socket = Socket(commands, ANONYMOUS, PROTOCOL, "a", lambda socket: None)
        self.socket.wire = self

    def send(self, text: str) -> None:
        self.sent.append(json.loads(text))

    def flush(self) -> None: ...

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def close(self, code: int, reason: str = "") -> None: ...

    def call(self, id: int, method: str, **params: Any) -> None:
        self.socket.on_text(json.dumps({"jsonrpc": "2.0", "method": method, "params": params, "id": id}))

    @property
    def answered(self) -> list[int]:
        return [frame["id"] for frame in self.sent if "id" in frame]


async def rest() -> None:
    """All here is in memory: after some turns of the loop, what can happen has happened."""
    for _ in range(50):
        await asyncio.sleep(0)


async def in_order(first: str, second: str, *, away: bool = False) -> Client:
    """Two commands about the same, then one about something else, on a store that holds its calls for a while."""
    client, about = Client(), PARAMS_OF[first].get("job", "k")
    client.store.away = away
    client.call(1, first, **PARAMS_OF[first])
    client.call(2, second, **PARAMS_OF[second])
    client.call(3, "ping")
    await rest()
    assert 3 in client.answered, "it had to wait, too"
    if first != "job.detach":  # which needs no store
        assert client.store.begun == [(first.partition(".")[2], about)]
        assert client.answered == [3]
    client.store.answers.set()
    await rest()
    assert [id for id in client.answered if id != 3] == [1, 2]
    return client


@pytest.mark.parametrize("second", ABOUT_A_JOB)
@pytest.mark.parametrize("first", ABOUT_A_JOB)
async def test_two_commands_about_one_job_are_carried_out_in_their_order(first: str, second: str) -> None:
    client = await in_order(first, second)
    followed = second == "job.attach" or (first == "job.attach" and second != "job.detach")
    assert list(client.hub.followers) == (["j"] if followed else [])


async def test_of_two_submits_with_one_key_the_first_is_the_one_that_is_accepted() -> None:
    client = await in_order("job.submit", "job.submit")
    answers = {frame["id"]: frame["result"] for frame in client.sent}
    assert [answers[id]["duplicate"] for id in (1, 2)] == [False, True]
    assert answers[1]["job"] == answers[2]["job"]
    assert list(client.hub.followers) == [answers[1]["job"]]


@pytest.mark.parametrize("second", ABOUT_A_JOB)
async def test_a_command_whose_predecessor_failed_is_carried_out_all_the_same(second: str) -> None:
    client = await in_order("job.attach", second, away=True)
    refused = {frame["id"] for frame in client.sent if "error" in frame}
    assert refused == ({1} if second == "job.detach" else {1, 2})
    assert client.hub.followers == {}


def test_methods_whose_answers_may_be_large_are_carried_out_one_at_a_time() -> None:
    large = {name for name, method in METHODS.items() if issubclass(method.params, LargeAnswer)}
    assert large == {*ABOUT_A_JOB, "analysis.list"}
    assert {name for name, method in METHODS.items() if "job" in method.params.model_fields} == set(ABOUT_A_JOB)
    subjects = [METHODS[name].params.model_validate({"job": name}).ordered_by for name in ABOUT_A_JOB]
    assert {*subjects, METHODS["analysis.list"].params().ordered_by} == {LargeAnswer}


CALLS: list[tuple[str, dict[str, Any]]] = [
    ("ping", {}), ("analysis.list", {}),
    ("job.submit", {"analysis": "a"}), ("job.submit", {"analysis": "a", "key": "j"}),
    *((method, {"job": job}) for method in ABOUT_A_JOB for job in ("j", "i")),
]  # fmt: skip


@given(st.lists(st.sampled_from(CALLS)), st.randoms(use_true_random=False), st.booleans())
def test_whatever_is_asked_only_what_is_about_the_same_waits_and_nothing_is_left_waiting(
    calls: list[tuple[str, dict[str, Any]]], chance: Any, batch: bool
) -> None:
    session = RpcSession(Hub(lambda _: None), PARAMS, Bounds(), lambda _: "new", lambda: None)
    requests = [{"jsonrpc": "2.0", "method": m, "params": p, "id": n} for n, (m, p) in enumerate(calls)]
    frames = [requests] if batch and requests else requests
    running: deque[Command] = deque(command for frame in frames for command in session.receive(json.dumps(frame)))
    subjects = [command.params.ordered_by for command in running if command.params.ordered_by is not None]
    assert len(subjects) == len(set(subjects))
    done: list[Command] = []
    while running:
        running.rotate(chance.randrange(len(running)))
        done.append(running.popleft())
        session.answer(done[-1], b"{}")
        if following := session.next_in_turn(done[-1]):
            running.append(following)
    assert sorted(cast(int, command.id) for command in done) == list(range(len(calls)))
    for subject in {command.params.ordered_by for command in done} - {None}:
        ids = [cast(int, command.id) for command in done if command.params.ordered_by == subject]
        assert ids == sorted(ids)
    assert session._turns == {}
