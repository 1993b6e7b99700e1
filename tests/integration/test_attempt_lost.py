"""An attempt that is lost while its analysis runs tells no end, whatever the analysis makes of being stopped."""

import asyncio
from pathlib import Path

import pytest

from millstream import Context, analysis
from millstream.authoring.analysis import MARK, Analysis
from millstream.confined_fs import ServedDirectory
from millstream.protocol.errors import StoreUnavailable
from millstream.store.store import Claimed, Store
from millstream_worker.attempt import Attempt
from millstream_worker.executor import InLoop
from millstream_worker.settings import WorkerSettings
from tests.integration.jobs import running, snapshot, types


@analysis("a")
async def stops(ctx: Context) -> None:
    """Stop as it should."""
    await ctx.emit(1)
    await asyncio.Event().wait()


@analysis("a")
async def raises(ctx: Context) -> None:
    """Answer to being stopped with an error of its own."""
    await ctx.emit(1)
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        raise ValueError("stopped?") from None


@analysis("a")
async def returns(ctx: Context) -> str:
    """Take no notice of being stopped."""
    await ctx.emit(1)
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        pass
    return "done"


@analysis("a")
async def goes_on(ctx: Context) -> None:
    """Write on after being stopped, and so meet the reason."""
    await ctx.emit(1)
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        pass
    await ctx.emit(2)


EVERY_ANSWER = [stops, raises, returns, goes_on]


async def attempt(store: Store, job: Claimed, analysis: Analysis, data: Path) -> str:
    directory = ServedDirectory(data)
    try:
        settings = WorkerSettings(_env_file=None)
        return await Attempt(job, analysis, store, settings, "w", directory).run(InLoop())
    finally:
        directory.close()


@pytest.mark.parametrize("function", EVERY_ANSWER)
async def test_one_whose_job_has_ended_meanwhile_is_lost(store: Store, tmp_path: Path, function: object) -> None:
    job = await running(store)
    await store.cancel(job.id, "", None)
    assert await attempt(store, job, getattr(function, MARK), tmp_path) == "lost"
    assert await types(store, job.id) == ["queued", "started", "cancelled"]


@pytest.mark.parametrize("function", EVERY_ANSWER)
async def test_one_whose_events_the_store_has_not_taken_is_lost_and_the_job_goes_on(
    store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, function: object
) -> None:
    async def away(*_: object) -> None:
        raise StoreUnavailable("away")

    job = await running(store)
    monkeypatch.setattr(store, "append", away)
    assert await attempt(store, job, getattr(function, MARK), tmp_path) == "lost"
    assert (await snapshot(store, job.id)).status == "running"
    assert await types(store, job.id) == ["queued", "started"]
