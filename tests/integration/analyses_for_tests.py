"""Analyses that do on purpose what real ones do by accident."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from millstream import Context, Final, Retry, analysis


async def appears(path: str) -> None:
    while not await asyncio.to_thread(Path(path).exists):  # noqa: ASYNC110 (another process makes the file)
        await asyncio.sleep(0.01)


@analysis()
async def nap(ctx: Context, text: str) -> str:
    """Sleep for as long as the text's first word says, then give the text back."""
    await asyncio.sleep(float(text.split()[0]))
    return text


@analysis()
async def measure(ctx: Context, text: str) -> dict[str, Any]:
    return {"text": text, "length": len(text), "none": None}


@analysis()
async def stumble(ctx: Context, text: str = "") -> None:
    raise ValueError(text)


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not even that")


@analysis()
async def raises(ctx: Context, what: str) -> None:
    """Raise what is hard to put into words."""
    match what:
        case "surrogate":
            raise ValueError("broken \udcff text")
        case "mute":
            raise Mute
        case "exit":
            raise SystemExit(3)
        case "interrupt":
            raise KeyboardInterrupt
        case "progress":
            await ctx.progress(float("inf"), 10)
        case "never":
            raise Retry(delay_s=float("nan"))
        case _:
            raise Retry(delay_s=-1)


@analysis()
async def hold(ctx: Context, gate: str = "", text: str = "") -> str:
    """Wait until the file `gate` is there; without one, for ever."""
    await ctx.log("holding")
    await (appears(gate) if gate else asyncio.Event().wait())
    return text


@analysis()
async def wait_for(ctx: Context, text: str) -> str:
    """Wait until the file `text` is there."""
    await appears(text)
    return text


@analysis(max_attempts=3)
async def flaky(ctx: Context, good_from: int) -> int:
    """Fail until the attempt of this number."""
    if ctx.attempt < good_from:
        raise RuntimeError(f"attempt {ctx.attempt}")
    return ctx.attempt


@analysis()
async def ask_again(ctx: Context, times: int, delay_s: float = 0) -> int:
    if ctx.attempt <= times:
        raise Retry("not yet", delay_s=delay_s)
    return ctx.attempt


@analysis(max_attempts=3)
async def hopeless(ctx: Context) -> None:
    raise Final("never")


@analysis()
async def report(ctx: Context, count: int, size: int = 0, pause_s: float = 0) -> int:
    """Send chunks, and say now and then how far it is."""
    for number in range(count):
        await ctx.emit({"number": number, "filler": "x" * size})
        if number % 10 == 0:
            await ctx.progress(number, count, "counting")
            await ctx.log(f"at {number}", "debug")
        if pause_s:
            await asyncio.sleep(pause_s)
    return count


@analysis()
async def count_up(ctx: Context, to: int) -> AsyncIterator[int]:
    for number in range(to):
        yield number
    ctx.result({"counted": to})


@analysis()
async def letters(ctx: Context, text: str) -> AsyncIterator[str]:
    for letter in text:
        yield letter


@analysis()
async def large(ctx: Context, size: int, as_chunk: bool = False) -> str:
    if as_chunk:
        await ctx.emit("x" * size)
    return "" if as_chunk else "x" * size


@analysis()
async def enormous(ctx: Context) -> int:
    """A number that msgpack has no form for."""
    return 2**70


@analysis()
async def boast(ctx: Context, count: int, size: int) -> int:
    """Say much about the progress, without waiting."""
    for number in range(count):
        await ctx.progress(number, count, "x" * size)
    return count


@analysis()
async def anything(ctx: Context, value: Any = None) -> Any:
    """Give the value back; `"object"` stands for what JSON cannot write, `"nan"` for what it has no number for."""
    return {"object": object(), "nan": float("nan")}.get(value, value) if isinstance(value, str) else value


@analysis()
async def give_up_inside(ctx: Context) -> None:
    """Await a task that other code has cancelled."""
    task = asyncio.create_task(asyncio.sleep(60))
    task.cancel()
    await task


@analysis()
async def stubborn(ctx: Context, gate: str) -> str:
    """Take no notice of being cancelled until the file `gate` is there."""
    while not Path(gate).exists():
        try:
            await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            pass
    return "finished all the same"


@analysis("typed", timeout=7.5)
async def with_types(
    ctx: Context, text: Annotated[str, Field(min_length=2)], n: Annotated[int, Field(ge=1, le=9)] = 3
) -> list[str]:
    """Say the text n times."""
    return [text] * n


@analysis(timeout=0.2)
async def hasty(ctx: Context) -> None:
    """Take longer than it may."""
    await asyncio.sleep(60)


@analysis()
async def gated(ctx: Context, to: int, gates: dict[str, str]) -> AsyncIterator[int]:
    """Count; before a number that has a gate, wait until that file is there."""
    for number in range(to):
        if gate := gates.get(str(number)):
            await appears(gate)
        yield number
    ctx.result(None)


@analysis()
async def read_file(ctx: Context, path: str) -> str:
    """What a file of the data directory holds."""
    async with ctx.open(path) as file:
        return (await file.read()).decode()
