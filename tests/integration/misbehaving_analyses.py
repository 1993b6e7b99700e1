"""Analyses that do to their worker what they must not, and end as whatever that means for their own job."""

import asyncio
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

from pydantic import BaseModel, ConfigDict

from millstream import Context, analysis

Deed = Callable[[Context], Awaitable[Any]]


async def leave() -> NoReturn:
    sys.exit(3)


async def interrupt() -> NoReturn:
    raise KeyboardInterrupt


async def exits_in_a_task_group(ctx: Context) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(leave())
        group.create_task(asyncio.sleep(60))


async def exits_in_gather(ctx: Context) -> None:
    await asyncio.gather(leave(), asyncio.sleep(60))


async def interrupts_in_gather(ctx: Context) -> None:
    await asyncio.gather(interrupt())


async def exits_in_a_task_beside(ctx: Context) -> str:
    task = asyncio.create_task(leave())
    await asyncio.wait([task])
    return "done"


async def exits_in_a_callback(ctx: Context) -> str:
    asyncio.get_running_loop().call_soon(sys.exit, 3)
    await asyncio.sleep(0.01)
    return "done"


async def stops_the_loop(ctx: Context) -> str:
    asyncio.get_running_loop().stop()
    await asyncio.sleep(0.01)
    return "done"


def _child(number: int, *, at_once: bool = False) -> int | None:
    """Fork a process that sleeps, and send it a signal. Returns how it ended."""
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    child.start()
    if not at_once:
        time.sleep(0.1)  # most of the time it has come so far as to sleep
    os.kill(child.pid or 0, number)
    child.join(20)
    if child.is_alive():
        child.kill()
    return child.exitcode


async def terminates_a_forked_child(ctx: Context) -> int | None:
    return _child(signal.SIGTERM)


async def terminates_children_at_once(ctx: Context) -> int | None:
    return min(_child(signal.SIGTERM, at_once=True) or 0 for _ in range(20))


async def interrupts_a_forked_child(ctx: Context) -> int | None:
    return _child(signal.SIGINT)


async def terminates_a_child_of_a_thread(ctx: Context) -> int | None:
    return await asyncio.to_thread(_child, signal.SIGTERM)


async def forks_and_exits(ctx: Context) -> int:
    if (pid := os.fork()) == 0:
        sys.exit(7)
    return os.waitstatus_to_exitcode((await asyncio.to_thread(os.waitpid, pid, 0))[1])


async def forks_and_returns(ctx: Context) -> int:
    if (pid := os.fork()) == 0:
        return 0
    return os.waitstatus_to_exitcode((await asyncio.to_thread(os.waitpid, pid, 0))[1])


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


UNREADABLE = {
    "191_levels": nested(191),
    "200_levels": nested(200),
    "254_levels": nested(254),
    "300_levels": nested(300),
    "4301_digits": 10**4300,
}
PLACES: dict[str, Callable[[Context, Any], Awaitable[Any]]] = {
    "chunk": lambda ctx, value: ctx.emit(value),
    "progress": lambda ctx, value: ctx.progress(1, message=value),
    "log": lambda ctx, value: ctx.log(value),
}


def says(name: str, place: str) -> Deed:
    """Write what could not be read."""

    async def deed(ctx: Context) -> Any:
        return UNREADABLE[name] if place == "result" else await PLACES[place](ctx, UNREADABLE[name])

    deed.__name__ = f"says_{name}_in_a_{place}"
    return deed


class Constants(BaseModel):
    model_config = ConfigDict(ser_json_inf_nan="constants")
    value: float


async def returns_nan_by_a_model(ctx: Context) -> Constants:
    await ctx.emit(Constants(value=float("inf")))
    return Constants(value=float("nan"))


async def fails_its_own_validation(ctx: Context) -> None:
    Constants.model_validate({"value": "x"})


async def fails_in_a_task(ctx: Context) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(fails_its_own_validation(ctx))


SUCCEEDED, FAILED = "succeeded", "failed"
#: What an analysis does, and how its job ends: with which result, or which type of error.
DEEDS: dict[Deed, tuple[str, object]] = {
    exits_in_a_task_group: (FAILED, "SystemExit"),
    exits_in_gather: (FAILED, "SystemExit"),
    interrupts_in_gather: (FAILED, "KeyboardInterrupt"),
    exits_in_a_task_beside: (SUCCEEDED, "done"),
    exits_in_a_callback: (SUCCEEDED, "done"),
    stops_the_loop: (SUCCEEDED, "done"),
    terminates_a_forked_child: (SUCCEEDED, -signal.SIGTERM),
    terminates_children_at_once: (SUCCEEDED, -signal.SIGTERM),
    interrupts_a_forked_child: (SUCCEEDED, -signal.SIGINT),
    terminates_a_child_of_a_thread: (SUCCEEDED, -signal.SIGTERM),
    forks_and_exits: (SUCCEEDED, 7),
    forks_and_returns: (SUCCEEDED, 1),
    **{says(name, "result"): (FAILED, None) for name in UNREADABLE},
    **{says(name, place): (FAILED, "TypeError") for name in UNREADABLE for place in PLACES},
    returns_nan_by_a_model: (SUCCEEDED, {"value": None}),
    fails_its_own_validation: (FAILED, "ValidationError"),
    fails_in_a_task: (FAILED, "ExceptionGroup"),
}
BY_NAME = {deed.__name__: deed for deed in DEEDS}


@analysis()
async def misbehaves(ctx: Context, how: str) -> Any:
    return await BY_NAME[how](ctx)


@analysis()
async def goes_to_the_limits(ctx: Context) -> Any:
    """Write what can just be read."""
    values = [nested(188), 10**4299]
    await ctx.emit(values)
    await ctx.progress(1, message=json.dumps(values))
    return values


@analysis()
async def leaves_threads_behind(ctx: Context) -> None:
    """More than there are in the loop's pool, in threads of its own and in a process; none of them ever ends."""
    for _ in range(40):
        asyncio.get_running_loop().run_in_executor(None, threading.Event().wait)
    threading.Thread(target=threading.Event().wait).start()
    multiprocessing.get_context("fork").Process(target=time.sleep, args=(3600,)).start()
    await ctx.log("here")
    await asyncio.to_thread(threading.Event().wait)
