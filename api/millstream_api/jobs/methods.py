"""The methods of `millstream.v1`, each once: its name, its parameters, its result, what it is for, and what it does.

A new method is a row here and one in docs/protocol.md; requests are read, and the specification is written, by this
table.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from pydantic_core import to_json

from millstream.apikeys import Principal
from millstream.backoff import backoff_s
from millstream.protocol.errors import Problem
from millstream.protocol.fleet import AnalysisInfo
from millstream.protocol.messages import Attach, Cancel, JobOnly, Listing, Methods, Nothing, Params, Submit
from millstream.store.store import Submitted
from millstream_api.jobs.commands import Commands
from millstream_api.jobs.schemas import Attached, Empty, Snapshot, SubmitResult
from millstream_api.jobs.session import Command, Session

FIRST_PAUSE_S, MAX_PAUSE_S = 0.1, 1.0  # of a submit that waits for room


@dataclass(slots=True)
class Caller:
    """Whose calls these are, and the session that answers them. `waiting`: how many of its submits wait for room."""

    who: Principal
    commands: Commands
    session: Session
    waiting: int = 0
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)  # to try again; those who wait for it get it in order


@dataclass(frozen=True, slots=True)
class Method:
    """`carry_out` has the session answer the command, or raises Problem."""

    name: str
    params: type[Params]
    result: Any
    summary: str
    carry_out: Callable[[Caller, Command], Awaitable[None]]


async def submit(caller: Caller, command: Command) -> None:
    caller.session.submitting(command)
    submitted = await _accepted(caller, command)
    for job in caller.session.submitted(command, submitted):
        await caller.commands.cancel_after_disconnect(caller.who, job)


async def _accepted(caller: Caller, command: Command) -> Submitted:
    if not caller.waiting:
        try:
            return await caller.commands.submit(caller.who, command.params, command.job)
        except Problem as problem:
            if not caller.session.tries_again(problem):
                raise
    return await _accepted_in_turn(caller, command)


async def _accepted_in_turn(caller: Caller, command: Command) -> Submitted:
    """Of the submits of one client that wait for room only the first tries again, after pauses that grow."""
    caller.waiting += 1
    failures = 0
    try:
        async with caller.turn:
            while True:
                try:
                    return await caller.commands.submit(caller.who, command.params, command.job)
                except Problem as problem:
                    if not caller.session.tries_again(problem):
                        raise
                failures += 1
                pause_s = backoff_s(failures, first_s=FIRST_PAUSE_S, max_s=MAX_PAUSE_S)
                await asyncio.sleep(random.uniform(0.5, 1) * pause_s)
    finally:
        caller.waiting -= 1


async def attach(caller: Caller, command: Command) -> None:
    caller.session.attaching(command)
    caller.session.attached(command, await caller.commands.attach(caller.who, command.params))


async def detach(caller: Caller, command: Command) -> None:
    caller.session.detach(command)


async def cancel(caller: Caller, command: Command) -> None:
    snapshot = await caller.commands.cancel(caller.who, command.params)
    caller.session.answer(command, snapshot.as_json())


async def get(caller: Caller, command: Command) -> None:
    snapshot = await caller.commands.get(caller.who, command.params.job)
    caller.session.answer(command, snapshot.as_json())


async def analyses(caller: Caller, command: Command) -> None:
    caller.session.answer(command, to_json(await caller.commands.analyses()))


async def ping(caller: Caller, command: Command) -> None:
    caller.session.answer(command, b"{}")


_TABLE = (
    Method(
        "job.submit", Submit, SubmitResult,
        "Ask for a job. Once answered it runs, whatever happens to this socket or any process.", submit,
    ),
    Method(
        "job.attach", Attach, Attached,
        "Follow a job's events from a cursor on, or from the start: old ones first, live ones after.", attach,
    ),
    Method("job.detach", JobOnly, Empty, "Stop following a job, which goes on.", detach),
    Method(
        "job.cancel", Cancel, Snapshot,
        "End a job, queued or running. Cancelling one that has ended is not an error.", cancel,
    ),
    Method("job.get", JobOnly, Snapshot, "The current state of a job.", get),
    Method("analysis.list", Listing, list[AnalysisInfo], "List the available analyses.", analyses),
    Method("ping", Nothing, Empty, "Check that the connection is alive.", ping),
)  # fmt: skip
METHODS = {method.name: method for method in _TABLE}
PARAMS: Methods = {method.name: method.params for method in _TABLE}
