"""An analysis that only workers of the queue `slow` run."""

import asyncio

from millstream import Context, analysis
from tests.integration.analyses_for_tests import appears


@analysis(queue="slow")
async def slow(ctx: Context, gate: str = "") -> str:
    """Wait until the file `gate` is there; without one, not at all."""
    await (appears(gate) if gate else asyncio.sleep(0))
    return "slow"
