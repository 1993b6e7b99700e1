"""An analysis that no worker knows at first."""

from millstream_worker.analysis import Context, analysis


@analysis()
async def late(ctx: Context, text: str) -> str:
    return text.upper()
