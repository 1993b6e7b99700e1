"""Work in threads: in some of its own, where it takes long for a large file, a large directory or a busy disk. So it
holds up only its own kind, and neither short calls (these go to asyncio's threads) nor other kinds.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar, TypeVarTuple

LARGE = 16 * 1024 * 1024  # bytes of a file, which the system frees in well under a millisecond

T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")


class Threads:
    """At most `count` threads for one kind of work."""

    def __init__(self, name: str, count: int) -> None:
        self._pool = ThreadPoolExecutor(count, thread_name_prefix=name)

    async def run(
        self,
        function: Callable[[*Arguments], T],
        *arguments: *Arguments,
        undo: Callable[[T], object] = lambda result: None,
    ) -> T:
        """Call a function in a thread; see `finished`."""
        return await finished(asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments), undo)


async def finished(work: Awaitable[T], undo: Callable[[T], object]) -> T:
    """The result of work in a thread, which cannot be stopped: a caller that is cancelled is so after the work has
    ended, so that no file is closed under it, and after its result was given to `undo`.
    """
    working = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        await asyncio.wait({working})
        if not working.cancelled() and working.exception() is None:
            undo(working.result())
        raise


def close(file: int, size: int) -> None:
    """Close a file that was read: a large one that was deleted in a thread, because who closes it last frees it."""
    if size < LARGE or os.fstat(file).st_nlink:
        os.close(file)
    else:
        asyncio.get_running_loop().run_in_executor(None, os.close, file)
