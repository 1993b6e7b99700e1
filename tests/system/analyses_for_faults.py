"""Analyses for the fault tests. Like any user's, they know worker.analysis and nothing else of Millstream."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

from worker.analysis import Context, analysis

HOUR = 3600


def _first(directory: str, job: str) -> bool:
    """Is this the first time that the job runs, in whichever process?"""
    try:
        (Path(directory) / job).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


@analysis()
async def stuck_once(ctx: Context, directory: str) -> str:
    """The first to run it never ends; the second ends at once. Both emit a chunk first."""
    first = _first(directory, ctx.job)
    await ctx.emit({"first": first})
    if first:
        await asyncio.sleep(HOUR)
    return "first" if first else "second"


@analysis()
async def talks_on(ctx: Context, directory: str) -> str:
    """The first to run it emits chunks without end; the second, one, and ends."""
    if _first(directory, ctx.job):
        while True:
            await ctx.emit("first")
            await asyncio.sleep(0.02)
    await ctx.emit("second")
    return "second"


@analysis()
async def holds_on(ctx: Context, directory: str) -> str:
    """The first to run it will not be cancelled."""
    if not _first(directory, ctx.job):
        return "second"
    while True:
        try:
            await asyncio.sleep(HOUR)
        except asyncio.CancelledError:
            continue


@analysis()
async def counts(ctx: Context, to: int, pause_s: float = 0, padding: int = 0) -> AsyncIterator[list[object]]:
    """Emit [1, "…"], [2, "…"], … and return the last number."""
    text = "." * padding
    for n in range(1, to + 1):
        yield [n, text]
        if pause_s:
            await asyncio.sleep(pause_s)
    ctx.result(to)


@analysis()
async def recorded(ctx: Context, directory: str, wait_s: float = 0) -> int:
    """Write down that it runs: a line for each start, in the job's own file. Returns the number of starts so far."""
    file = Path(directory) / ctx.job
    with file.open("a") as lines:
        lines.write("started\n")
    await asyncio.sleep(wait_s)
    return len(file.read_text().splitlines())
