"""Jobs as the tests of the store make them, and what a worker does with them."""

from collections.abc import Sequence
from typing import Any

from millstream.protocol.events import Event
from millstream.protocol.jobs import Snapshot
from millstream.store import keys
from millstream.store.store import Claimed, NewJob, Store, new_job_id
from tests.processes import until

LONG_S = 60.0
SHORT_S = 0.1


def a_job(id: str = "", **changes: Any) -> NewJob:
    return NewJob(
        id or new_job_id(), **{"analysis": "a", "body": b'{"f":"a","a":[],"k":{},"t":null,"et":1}', **changes}
    )


async def claim(
    store: Store,
    slots: int = 10,
    *,
    lease_s: float = LONG_S,
    worker: str = "w",
    known: Sequence[str] = ("a",),
    queue: str = "default",
) -> list[Claimed]:
    names = "\n" + "\n".join(known) + "\n"
    return (await store.claim(worker, lease_s, slots, names, queue))[1]


async def running(store: Store, *, lease_s: float = LONG_S, **changes: Any) -> Claimed:
    """A new job that is claimed."""
    job = a_job(**changes)
    await store.submit(job)
    (claimed,) = await claim(store, lease_s=lease_s)
    assert claimed.id == job.id
    return claimed


async def lease_runs_out(store: Store, job: str) -> None:
    async def gone() -> bool:
        return not await store.pipeline.call("EXISTS", f"{keys.LEASE}{job}")

    await until(gone, what=f"the lease of {job} to run out")


async def claimed_again(store: Store, job: str, *, lease_s: float = LONG_S, worker: str = "w2") -> Claimed:
    """Wait until the job is due again, and take it."""
    found: list[Claimed] = []

    async def taken() -> bool:
        found.extend(await claim(store, lease_s=lease_s, worker=worker))
        return bool(found)

    await until(taken, what=f"{job} to be due again")
    (again,) = found
    assert again.id == job
    return again


async def renew(store: Store, worker: str, lease_s: float, *jobs: Claimed) -> list[tuple[str, str]]:
    """A heartbeat; returns what was lost."""
    pairs = [part for job in jobs for part in (job.id, job.token)]
    reply = await store.run("renew", rest=pairs, worker=worker, lease_ms=round(lease_s * 1000), heartbeat=b"{}")
    return [(id.decode(), token.decode()) for id, token in zip(reply[::2], reply[1::2], strict=True)]


async def milliseconds(store: Store) -> int:
    """The store's clock."""
    seconds, microseconds = await store.pipeline.call("TIME")
    return int(seconds) * 1000 + int(microseconds) // 1000


async def next_millisecond(store: Store) -> None:
    """What is submitted from now on is later than what was before."""
    begin = await milliseconds(store)

    async def passed() -> bool:
        return await milliseconds(store) > begin

    await until(passed, what="the next millisecond")


async def events(store: Store, job: str) -> list[Event]:
    page = await store.attach(job)
    assert page is not None
    return page.events


async def types(store: Store, job: str) -> list[str]:
    return [event.type for event in await events(store, job)]


async def snapshot(store: Store, job: str) -> Snapshot:
    found = await store.snapshot(job)
    assert found is not None
    return found


async def everything(store: Store) -> dict[bytes, Any]:
    """All that the store holds, times to live left out: to see that something changed nothing."""
    found: dict[bytes, Any] = {}
    for key in sorted(await store.pipeline.call("KEYS", "*")):
        found[key] = await store.pipeline.call("DUMP", key)
    return found
