"""What the pages watch."""

import asyncio

from millstream import Context, analysis


@analysis()
async def count(ctx: Context, to: int, pause_s: float = 0) -> int:
    """Emit the numbers up to `to`."""
    for number in range(to):
        await ctx.emit(number)
        if pause_s:
            await asyncio.sleep(pause_s)
    return to
