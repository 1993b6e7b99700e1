"""Each job has its store: whatever is said about a job is said there, and nowhere else."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from millstream.apikeys import ANONYMOUS, Keys
from millstream.protocol.catalog import Catalog, Entry
from millstream.protocol.events import START, Cursor
from millstream.protocol.jobs import Page, Snapshot
from millstream.protocol.messages import Attach, Cancel, Submit
from millstream.store.store import NewJob, Store, Submitted
from millstream_api.jobs.commands import Commands
from millstream_api.jobs.hub import Follower, State
from millstream_api.jobs.relay import Relay
from millstream_api.jobs.stores import Stores
from millstream_api.settings import ApiSettings
from tests.unit.readers import SmallReader, a_page, an_event


@dataclass(eq=False)
class Recorder:
    """A store that knows every job, and which calls were made."""

    calls: list[tuple[str, Any]] = field(default_factory=list)

    async def submit(self, new: NewJob) -> Submitted:
        self.calls.append(("submit", new.id))
        return Submitted(new.id, "queued", Cursor(1, 1), duplicate=False)

    async def snapshot(self, job: str, *_: Any) -> Snapshot:
        self.calls.append(("snapshot", job))
        return a_page([]).snapshot

    async def cancel(self, job: str, *_: Any) -> Snapshot:
        self.calls.append(("cancel", job))
        return a_page([]).snapshot

    async def attach(self, job: str, *_: Any, **__: Any) -> Page:
        self.calls.append(("attach", job))
        return a_page([])

    async def detach(self, job: str, node: str) -> None:
        self.calls.append(("detach", job))

    async def positions(self, jobs: list[str]) -> list[tuple[int, str]]:
        self.calls.append(("positions", jobs))
        return [(9, "running") for _ in jobs]


class ByFirstLetter(Stores):
    """Two stores: of jobs whose id begins with x, and of the others."""

    def __init__(self) -> None:
        self.x, self.other = Recorder(), Recorder()

    def of(self, job: str) -> Store:
        return cast(Store, self.x if job.startswith("x") else self.other)


@pytest.fixture
def stores() -> ByFirstLetter:
    return ByFirstLetter()


@pytest.fixture
async def relay(stores: ByFirstLetter) -> Relay:
    return Relay("redis://127.0.0.1:1", stores)


def follow(relay: Relay, job: str, *, behind: bool = False) -> Follower:
    follower = relay.hub.follow(job, SmallReader(9), terminal_only=False)
    follower.start(START, behind=behind)
    return follower


CALLS: dict[str, Callable[[Commands], Awaitable[Any]]] = {
    "submit": lambda commands: commands.submit(ANONYMOUS, Submit(analysis="a"), "x1"),
    "snapshot": lambda commands: commands.snapshot(ANONYMOUS, "x1"),
    "get": lambda commands: commands.get(ANONYMOUS, "x1"),
    "cancel": lambda commands: commands.cancel(ANONYMOUS, Cancel(job="x1")),
    "attach": lambda commands: commands.attach(ANONYMOUS, Attach(job="x1")),
    "catch_up": lambda commands: commands.catch_up(follow(commands.relay, "x1", behind=True)),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
async def test_a_command_goes_to_the_store_of_its_job(
    stores: ByFirstLetter, relay: Relay, call: Callable[[Commands], Awaitable[Any]]
) -> None:
    catalog = Catalog()
    catalog.entries["a"] = Entry(
        name="a", description="", params_schema={}, result_schema={}, timeout_s=1, queue="default"
    )
    commands = Commands(ApiSettings(), stores, relay, Keys(None), asyncio.Event(), catalog)
    await call(commands)
    assert [job for _, job in stores.x.calls] == ["x1"]
    assert stores.other.calls == []


async def test_a_store_is_told_of_its_own_jobs_that_nobody_follows(stores: ByFirstLetter, relay: Relay) -> None:
    relay.hub.publish(an_event(2))
    await asyncio.gather(*relay._tasks)
    assert (stores.x.calls, stores.other.calls) == ([], [("detach", "j")])


async def test_quiet_logs_are_compared_with_the_store_of_each(stores: ByFirstLetter, relay: Relay) -> None:
    followers = [follow(relay, job) for job in ("x1", "j", "x2")]
    await relay.check()
    assert stores.x.calls == [], "what is heard for the first time is not quiet yet"
    await relay.check()
    assert (stores.x.calls, stores.other.calls) == ([("positions", ["x1", "x2"])], [("positions", ["j"])])
    assert {follower.state for follower in followers} == {State.BEHIND}
