"""Analyses for the fault tests. Like any user's, they know the public face of `millstream` and nothing else.

A `directory` is where they leave marks, for each other and for the test.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

from millstream import Context, analysis

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
async def stubborn_once(ctx: Context, directory: str) -> str:
    """The first to run it cannot be cancelled; the second ends at once."""
    if not _first(directory, ctx.job):
        return "second"
    await ctx.emit("here")
    while True:
        try:
            await asyncio.sleep(HOUR)
        except asyncio.CancelledError:
            continue


@analysis()
async def blocks_once(ctx: Context, directory: str) -> str:
    """The first to run it lets nothing else happen in its worker until the directory has a file called `enough`."""
    if not _first(directory, ctx.job):
        return "second"
    await ctx.emit("here")
    while not (Path(directory) / "enough").exists():
        time.sleep(0.01)  # noqa: ASYNC251 (what must not be done)
    return "first"


@analysis()
async def talks(ctx: Context, directory: str) -> int:
    """Emit the number of the attempt again and again, until the directory has a file called `enough`."""
    while not (Path(directory) / "enough").exists():
        await ctx.emit(ctx.attempt)
        await asyncio.sleep(0.01)
    return ctx.attempt


@analysis()
async def holds(ctx: Context, directory: str) -> None:
    """Say that it runs, and wait until the directory has a file called `enough`."""
    await ctx.emit("here")
    while not (Path(directory) / "enough").exists():  # noqa: ASYNC110 (another process makes the file)
        await asyncio.sleep(0.05)


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
async def later(ctx: Context, text: str) -> str:
    """Answer the text after 4 seconds."""
    await asyncio.sleep(4)
    return text


@analysis()
async def identifies(ctx: Context, wait_s: float, rest_s: float = 0) -> int:
    """Wait, say three times which process this is, rest, and say it once more."""
    await asyncio.sleep(wait_s)
    for _ in range(3):
        await ctx.emit(os.getpid())
    await asyncio.sleep(rest_s)
    return os.getpid()


@analysis()
async def speaks_when_told(ctx: Context, directory: str) -> int:
    """Wait until the directory has a file `speak-<attempt>`, then say three times which process this is."""
    while True:
        if (Path(directory) / f"speak-{ctx.attempt}").exists():
            break
        await asyncio.sleep(0.01)
    for _ in range(3):
        await ctx.emit(os.getpid())
    return os.getpid()


@analysis()
async def recorded(ctx: Context, directory: str, wait_s: float = 0) -> int:
    """Write a line into the job's own file, and return how many lines it then has."""
    file = Path(directory) / ctx.job
    with file.open("a") as lines:
        lines.write("started\n")
    await asyncio.sleep(wait_s)
    return len(file.read_text().splitlines())
