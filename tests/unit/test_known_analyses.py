"""Which analyses there are, as the API learns it: no submit is refused for a name that is on its way."""

import asyncio
from types import SimpleNamespace
from typing import cast

import pytest

from millstream.apikeys import ANONYMOUS, Keys
from millstream.protocol.errors import Problem
from millstream.protocol.events import START
from millstream.protocol.fleet import Advertisement
from millstream.protocol.messages import Submit
from millstream.store.store import NewJob, Store, Submitted
from millstream_api.jobs.commands import Commands
from millstream_api.jobs.relay import Relay
from millstream_api.jobs.stores import Stores
from millstream_api.settings import ApiSettings


class Advertised:
    """A store that tells of one analysis, once `answers` is set."""

    def __init__(self) -> None:
        self.answers = asyncio.Event()
        self.looks = 0

    async def analyses(self) -> list[bytes]:
        self.looks += 1
        await self.answers.wait()
        known = Advertisement(
            name="known", description="", params_schema={}, result_schema={}, timeout_s=1, queue="default"
        )
        return [known.model_dump_json().encode()]

    async def submit(self, job: NewJob) -> Submitted:
        return Submitted(job.id, "queued", START, duplicate=False)


def commands(store: Advertised) -> Commands:
    relay = cast(Relay, SimpleNamespace(node="n"))
    return Commands(ApiSettings(_env_file=None), Stores(cast(Store, store)), relay, Keys(None), asyncio.Event())


@pytest.mark.parametrize("already", [False, True], ids=["nobody asks yet", "somebody asks already"])
async def test_a_submit_waits_for_the_names_to_come(already: bool) -> None:
    store = Advertised()
    asked = commands(store)
    refreshing = asyncio.ensure_future(asked.refresh() if already else asyncio.sleep(0))
    submitting = asyncio.ensure_future(asked.submit(ANONYMOUS, Submit(analysis="known"), "job"))
    await asyncio.sleep(0.01)
    assert not submitting.done()
    store.answers.set()
    assert (await submitting).job == "job"
    await refreshing
    assert store.looks == 1


async def test_names_that_are_not_known_cost_one_look_together() -> None:
    store = Advertised()
    asked = commands(store)
    submits = [asyncio.ensure_future(asked.submit(ANONYMOUS, Submit(analysis=f"x{n}"), "job")) for n in range(50)]
    await asyncio.sleep(0.01)
    store.answers.set()
    for submit in submits:
        with pytest.raises(Problem, match="There is no analysis"):
            await submit
    assert store.looks == 1
