"""The context that an analysis is given: what it offers, and the events that come of it."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from millstream import Context
from millstream.confined_fs import ServedDirectory
from millstream_worker.context import AttemptContext, result_of


class Log:
    """Takes the events in place of a writer."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []

    async def write(self, type: str, data: bytes) -> None:
        self.events.append((type, json.loads(data)))


def no_files(path: str) -> Any:
    raise AssertionError(path)


def context(log: Log | None = None, open_file: Any = no_files) -> AttemptContext:
    return AttemptContext("j", 2, write=(log or Log()).write, open_file=open_file)


def public(names: Any) -> set[str]:
    return {name for name in names if not name.startswith("_")}


def test_it_has_the_public_attributes_of_the_protocol_and_no_others() -> None:
    given: Context = context()
    assert public(dir(given)) == public(vars(Context)) | public(Context.__annotations__)
    assert (given.job, given.attempt) == ("j", 2)


async def test_what_is_said_becomes_events() -> None:
    log = Log()
    ctx = context(log)
    await ctx.emit({"a": float("nan"), "b": (1, "ü")})
    await ctx.progress(1)
    await ctx.progress(2, 4, "half")
    await ctx.log("hello")
    await ctx.log("careful", "warning")
    assert log.events == [
        ("chunk", {"a": None, "b": [1, "ü"]}),
        ("progress", {"done": 1}),
        ("progress", {"done": 2, "total": 4, "message": "half"}),
        ("log", {"level": "info", "message": "hello"}),
        ("log", {"level": "warning", "message": "careful"}),
    ]


@pytest.mark.parametrize("value", [object(), "\udcff"])
async def test_a_chunk_that_json_cannot_write_is_a_type_error(value: Any) -> None:
    log = Log()
    with pytest.raises(TypeError, match="A chunk cannot be written as JSON"):
        await context(log).emit(value)
    assert log.events == []


@pytest.mark.parametrize("numbers", [(float("inf"), 1), (1, float("nan")), ("1", None)])
async def test_progress_in_other_than_finite_numbers_is_a_value_error(numbers: Any) -> None:
    with pytest.raises(ValueError, match="must be a finite number"):
        await context().progress(*numbers)


def test_the_last_result_counts_and_without_one_it_is_null() -> None:
    ctx = context()
    assert result_of(ctx) is None
    ctx.result(1)
    ctx.result([2])
    assert result_of(ctx) == [2]


async def test_files_of_the_directory_are_opened_and_others_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("To be")
    directory = ServedDirectory(tmp_path)
    ctx = context(open_file=directory.open)
    async with ctx.open("a.txt") as file:
        number = file.fileno()
        assert await file.read() == b"To be"
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)
    for path in ("../a.txt", ".hidden", "nothing", ""):
        with pytest.raises(FileNotFoundError, match="There is no file"):
            async with ctx.open(path):
                pass
    directory.close()


async def test_a_level_that_is_none_is_refused_with_those_there_are() -> None:
    log = Log()
    with pytest.raises(ValueError, match="one of debug, info, warning, error, not 'critical'"):
        await context(log).log("help", "critical")  # type: ignore[arg-type]
    assert log.events == []
