"""What the pages watch."""

import asyncio
from pathlib import Path

from millstream import Context, analysis


@analysis()
async def count(ctx: Context, to: int, pause_s: float = 0) -> int:
    """Emit the numbers up to `to`."""
    for number in range(to):
        await ctx.emit(number)
        if pause_s:
            await asyncio.sleep(pause_s)
    return to


@analysis()
async def gated(ctx: Context, gate: str) -> None:
    """Emit a chunk, then wait for a file."""
    await ctx.emit("before")
    while not Path(gate).exists():  # noqa: ASYNC110  (another process makes it)
        await asyncio.sleep(0.02)
