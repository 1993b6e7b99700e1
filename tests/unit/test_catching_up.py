"""Readers that are behind take turns, so that many of them do not keep everybody else waiting."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

from millstream.apikeys import Keys
from millstream.protocol.events import START
from millstream.protocol.jobs import Page
from millstream.store.store import Store
from millstream_api.jobs.commands import CATCHING_UP, Commands
from millstream_api.jobs.hub import Hub, State
from millstream_api.jobs.relay import Relay
from millstream_api.jobs.stores import Stores
from millstream_api.settings import ApiSettings
from tests.unit.readers import SmallReader, a_page, an_event


class SlowLog:
    """A store whose logs are read while others begin to be; `most` counts how many were read at a time."""

    def __init__(self) -> None:
        self.now = self.most = 0

    async def attach(self, job: str, *_: Any, **__: Any) -> Page:
        self.now += 1
        self.most = max(self.most, self.now)
        for _turn in range(3):
            await asyncio.sleep(0)
        self.now -= 1
        return a_page([an_event(1), an_event(2)], last=2)


async def test_only_so_many_logs_are_read_at_a_time_and_all_are_read() -> None:
    log, hub = SlowLog(), Hub(lambda _: None)
    relay = cast(Relay, SimpleNamespace(hub=hub, node="n"))
    commands = Commands(ApiSettings(), Stores(cast(Store, log)), relay, Keys(None), asyncio.Event())
    followers = [hub.follow("j", SmallReader(100), terminal_only=False) for _ in range(5 * CATCHING_UP)]
    for follower in followers:
        follower.start(START, behind=True)
    await asyncio.gather(*map(commands.catch_up, followers))
    assert log.most == CATCHING_UP
    assert {follower.state for follower in followers} == {State.LIVE}
