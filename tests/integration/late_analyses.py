"""An analysis that no worker knows at first."""

from millstream import Context, analysis


@analysis()
async def late(ctx: Context, text: str) -> str:
    return text.upper()
