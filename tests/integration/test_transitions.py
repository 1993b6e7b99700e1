"""The table of transitions in shared/millstream/protocol/jobs.py, compared with what the scripts in lua/ allow."""

import random
from collections.abc import Awaitable, Callable

import pytest

from millstream.protocol.event_types import TERMINAL_TYPES
from millstream.protocol.jobs import TERMINAL, TRANSITIONS, Status
from millstream.store import keys
from millstream.store.store import Claimed, LeaseLost, NewJob, Store
from tests.integration.conftest import Client
from tests.integration.jobs import a_job, claim, events, renew, snapshot

END = b'{"result":1,"error":{"code":"analysis_error","message":"no"}}'


class Story:
    """One job, and all that may happen to it. `claims`: every lease on it that there was, the last one last."""

    def __init__(self, store: Store, client: Client) -> None:
        self.store = store
        self.client = client
        self.job: NewJob = a_job(max_attempts=3)
        self.claims: list[Claimed] = []

    @property
    def last(self) -> Claimed:
        return self.claims[-1]

    async def submit(self) -> None:
        await self.store.submit(self.job)

    async def claim(self) -> None:
        self.claims += await claim(self.store)

    async def append(self) -> None:
        await self.store.append(self.last, 1, [("chunk", b"1")])

    async def renew(self) -> None:
        await renew(self.store, "w", 60, self.last)

    async def succeed(self) -> None:
        await self.store.finish(self.last, "succeeded", END)

    async def fail(self) -> None:
        await self.store.finish(self.last, "failed", END)

    async def retry(self) -> None:
        await self.store.retry(self.last, {"code": "analysis_error", "message": "no"}, 0)

    async def hand_back(self) -> None:
        await self.store.hand_back(self.last, "leaving")

    async def cancel(self) -> None:
        await self.store.cancel(self.job.id, "", None)

    async def attach(self) -> None:
        await self.store.attach(self.job.id, node="n")

    async def detach(self) -> None:
        await self.store.detach(self.job.id, "n")

    async def lose_the_lease(self) -> None:
        """As when it runs out."""
        if await self.client.delete(f"{keys.LEASE}{self.job.id}"):
            await self.client.zadd(keys.lane(), {self.job.id: 1})

    async def lose_the_last_attempt(self) -> None:
        if await self.status() is Status.RUNNING:
            await self.client.hset(f"{keys.JOB}{self.job.id}", "max_attempts", "1")
            await self.lose_the_lease()
            await self.claim()

    async def outlive_itself(self) -> None:
        await self.client.delete(f"{keys.BODY}{self.job.id}")
        if await self.status() is not Status.RUNNING:
            await self.claim()

    async def status(self) -> Status:
        return (await snapshot(self.store, self.job.id)).status


Step = Callable[[Story], Awaitable[None]]
STEPS: list[Step] = [
    Story.submit, Story.claim, Story.append, Story.renew, Story.succeed, Story.fail, Story.retry, Story.hand_back,
    Story.cancel, Story.attach, Story.detach, Story.lose_the_lease, Story.lose_the_last_attempt, Story.outlive_itself,
]  # fmt: skip
#: How to bring a job into each status; each has had a lease, so that a late write by its owner can be tried.
WAYS: dict[Status, list[Step]] = {
    Status.QUEUED: [Story.submit, Story.claim, Story.retry],
    Status.RUNNING: [Story.submit, Story.claim],
    Status.SUCCEEDED: [Story.submit, Story.claim, Story.succeed],
    Status.FAILED: [Story.submit, Story.claim, Story.fail],
    Status.CANCELLED: [Story.submit, Story.claim, Story.cancel],
}


async def take(story: Story, step: Step) -> None:
    try:
        await step(story)
    except LeaseLost:
        pass


@pytest.mark.parametrize("before", Status)
async def test_each_status_is_followed_by_those_of_the_table_and_no_others(
    store: Store, client: Client, before: Status
) -> None:
    reached = set()
    for step in STEPS:
        await client.flushdb()
        story = Story(store, client)
        for way in WAYS[before]:
            await way(story)
        assert await story.status() is before
        await take(story, step)
        reached.add(await story.status())
    assert reached - {before} == TRANSITIONS[before]


@pytest.mark.parametrize("seed", range(20))
async def test_whatever_happens_in_whatever_order_a_log_is_whole_and_ends_once(
    store: Store, client: Client, seed: int
) -> None:
    chance = random.Random(seed)
    for _ in range(10):
        await client.flushdb()
        story = Story(store, client)
        await story.submit()
        await story.claim()
        before = await story.status()
        for _ in range(chance.randint(1, 15)):
            step = chance.choice(STEPS)
            await take(story, step)
            after = await story.status()
            assert after is before or after in TRANSITIONS[before], f"{before} → {after} by {step.__name__}"
            if before in TERMINAL:
                assert await client.exists(f"{keys.LEASE}{story.job.id}", f"{keys.BODY}{story.job.id}") == 0
            before = after
        log = await events(store, story.job.id)
        assert [event.seq for event in log] == list(range(1, len(log) + 1))
        ends = [event for event in log if event.type in TERMINAL_TYPES]
        assert ends == ([log[-1]] if before in TERMINAL else [])
        if ends:
            assert ends[0].type == before
            assert await client.zcard(keys.lane()) == 0
        assert len({claim.token for claim in story.claims}) == len(story.claims)


def test_the_table_knows_every_status_and_what_is_terminal_leads_nowhere() -> None:
    assert set(TRANSITIONS) == set(Status)
    assert {status for status, following in TRANSITIONS.items() if not following} == TERMINAL
    assert {str(status) for status in TERMINAL} == TERMINAL_TYPES
