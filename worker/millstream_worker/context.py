"""What an analysis is given beside its parameters: `millstream.Context` as a worker provides it."""

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiofiles
from aiofiles.threadpool.binary import AsyncBufferedReader
from pydantic_core import PydanticSerializationError, to_json

from millstream.confined_fs import NotServed, Opened
from millstream.protocol.event_types import LEVELS, Level
from millstream.protocol.reading import readable


class AttemptContext:
    """The context of one attempt. An author's code gets no more of the attempt than this.

    `write` takes an event's type and its data as JSON. `open_file` opens a file of the data directory, blocks for it,
    and raises NotServed.
    """

    __slots__ = ("_open_file", "_result", "_write", "attempt", "job")

    def __init__(
        self,
        job: str,
        attempt: int,
        *,
        write: Callable[[str, bytes], Awaitable[None]],
        open_file: Callable[[str], Opened],
    ) -> None:
        self.job = job
        self.attempt = attempt
        self._write = write
        self._open_file = open_file
        self._result: Any = None

    async def emit(self, value: Any) -> None:
        await self._write("chunk", _json("chunk", value))

    async def progress(self, done: float, total: float | None = None, message: str | None = None) -> None:
        for name, value in (("done", done), ("total", total)):
            if value is not None and not (isinstance(value, int | float) and math.isfinite(value)):
                raise ValueError(f"progress: {name} must be a finite number, not {value!r}.")
        data = {"done": done, "total": total, "message": message}
        await self._write("progress", _json("progress", {k: v for k, v in data.items() if v is not None}))

    async def log(self, message: str, level: Level = "info") -> None:
        if level not in LEVELS:
            raise ValueError(f"log: the level is one of {', '.join(LEVELS)}, not {level!r}.")
        await self._write("log", _json("log", {"level": level, "message": message}))

    def result(self, value: Any) -> None:
        self._result = value

    @asynccontextmanager
    async def open(self, path: str) -> AsyncIterator[AsyncBufferedReader]:
        try:
            opened = await asyncio.to_thread(self._open_file, path)
        except NotServed:
            raise FileNotFoundError(f"There is no file {path!r} in the data directory.") from None
        async with aiofiles.open(opened.file, "rb") as handle:
            yield handle


def result_of(context: AttemptContext) -> Any:
    """What the analysis has set with `result`. For the executor: an author's code has no use for it."""
    return context._result


def _json(type: str, value: Any) -> bytes:
    try:
        return readable(to_json(value, inf_nan_mode="null"))
    except (PydanticSerializationError, ValueError) as error:
        raise TypeError(f"A {type} cannot be written as JSON: {error}") from None
