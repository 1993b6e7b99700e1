"""What an analysis is given beside its parameters."""

from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, Protocol

from millstream.protocol.event_types import Level

if TYPE_CHECKING:  # one of the servers' packages, which an author need not have
    from aiofiles.threadpool.binary import AsyncBufferedReader


class Context(Protocol):
    """What an analysis may do beside computing. Every method may wait: for a store that is slow or away."""

    job: str
    attempt: int

    async def emit(self, value: Any) -> None:
        """Send a partial result (a `chunk` event): any JSON value, dataclass or pydantic model."""

    async def progress(self, done: float, total: float | None = None, message: str | None = None) -> None:
        """Say how far it is (a `progress` event), in a unit of your choice."""

    async def log(self, message: str, level: Level = "info") -> None:
        """Tell the user something (a `log` event)."""

    def result(self, value: Any) -> None:
        """Set the result of an analysis that is a generator."""

    def open(self, path: str) -> "AbstractAsyncContextManager[AsyncBufferedReader]":
        """Open a file of the data directory for reading, by the path that clients know it by (`/files/<path>`):

            async with ctx.open("corpus/hamlet.txt") as file:
                text = (await file.read()).decode()

        Raises FileNotFoundError for everything that is not served either: hidden names, links, what lies outside.
        """
