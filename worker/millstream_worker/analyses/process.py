"""The tutorial's analysis: a message is processed and answered."""

import asyncio
from typing import Annotated

from pydantic import Field

from millstream import Context, analysis


@analysis()
async def process(
    ctx: Context, text: str, delay_s: Annotated[float, Field(ge=0, le=3600, allow_inf_nan=False)] = 0
) -> str:
    """Wait for `delay_s` seconds, then answer the text."""
    if delay_s:
        await asyncio.sleep(delay_s)
    return "Processed data: " + text
