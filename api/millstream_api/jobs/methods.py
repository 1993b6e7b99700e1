"""The methods of `millstream.v1`, each once: its name, its parameters, its result, what it is for, and what it does.

A new method is a row here and one in docs/protocol.md; requests are read, and the specification is written, by this
table.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from millstream.apikeys import Principal
from millstream.protocol.errors import Problem
from millstream.protocol.events import START
from millstream.protocol.fleet import AnalysisInfo
from millstream.protocol.jobs import Snapshot
from millstream.protocol.messages import Attach, Cancel, JobOnly, Methods, Nothing, Params, Submit, read_cursor
from millstream.store.store import Submitted
from millstream_api.jobs.commands import Commands, cancels_on_disconnect
from millstream_api.jobs.hub import Follower, State
from millstream_api.jobs.schemas import Attached, Empty, SubmitResult
from millstream_api.jobs.session import Command, Session

TRANSIENT_REFUSALS = ("queue_full", "too_many_in_flight", "rate_limited")  # there will be room again


@dataclass(slots=True, eq=False)
class Caller:
    """Whose calls these are, and the session that answers them."""

    who: Principal
    commands: Commands
    session: Session
    left: bool = False


@dataclass(frozen=True, slots=True)
class Method:
    """`carry_out` has the session answer the command, or raises Problem."""

    name: str
    params: type[Params]
    result: Any
    summary: str
    carry_out: Callable[[Caller, Command], Awaitable[None]]


async def submit(caller: Caller, command: Command) -> None:
    request: Submit = command.params
    session, hub = caller.session, caller.commands.relay.hub
    follower = _follow(caller, command.job, request.events == "terminal")
    try:
        submitted = await _accepted(caller, request, command.job)
    except BaseException:
        _unfollow(caller, follower)
        raise
    behind = submitted.duplicate
    if submitted.duplicate:
        _unfollow(caller, follower)
        session.submitted_as(command, submitted.job)
        known = session.followers.get(submitted.job)
        follower = known or _follow(caller, submitted.job, request.events == "terminal")
    if cancels_on_disconnect(request, submitted):
        session.cancel_on_disconnect.add(submitted.job)
    if caller.left:
        hub.drop(follower)
        if cancels_on_disconnect(request, submitted):
            await caller.commands.cancel_after_disconnect(caller.who, submitted.job)
        return
    result = {
        "job": submitted.job,
        "status": submitted.status,
        "cursor": str(submitted.cursor),
        "duplicate": submitted.duplicate,
    }

    def start() -> None:
        if follower.state is State.PENDING:
            follower.start(submitted.cursor, behind=behind)
            hub.drop_if_done(follower)

    session.answer(command, result, start)


async def _accepted(caller: Caller, request: Submit, job: str) -> Submitted:
    """Submit; in plain mode a full queue is waited for, so that the client feels it as backpressure."""
    while True:
        try:
            return await caller.commands.submit(caller.who, request, job)
        except Problem as problem:
            if caller.left or not caller.session.waits_for_room or problem.slug not in TRANSIENT_REFUSALS:
                raise
        await asyncio.sleep(random.uniform(0.05, 0.15))


async def attach(caller: Caller, command: Command) -> None:
    request: Attach = command.params
    session, hub = caller.session, caller.commands.relay.hub
    after = read_cursor(request.after)
    follower = hub.follow(request.job, session, terminal_only=request.events == "terminal")
    try:
        page = await caller.commands.attach(caller.who, request)
    except BaseException:
        hub.drop(follower, forget=False)
        raise
    if caller.left:
        hub.drop(follower)
        return
    if earlier := session.followers.get(request.job):
        hub.drop(earlier, forget=False)
    session.followers[request.job] = follower
    replay_from = START if page.gap else after
    result = {**page.snapshot.as_dict(), "replay_from": str(replay_from)}
    session.answer(command, result, lambda: follower.start(after, behind=True))


async def detach(caller: Caller, command: Command) -> None:
    if follower := caller.session.followers.get(command.params.job):
        caller.session.leave(follower)
        caller.commands.relay.hub.drop(follower)
    caller.session.answer(command, {})


async def cancel(caller: Caller, command: Command) -> None:
    snapshot = await caller.commands.cancel(caller.who, command.params)
    caller.session.answer(command, snapshot.as_dict())


async def get(caller: Caller, command: Command) -> None:
    snapshot = await caller.commands.get(caller.who, command.params.job)
    caller.session.answer(command, snapshot.as_dict())


async def analyses(caller: Caller, command: Command) -> None:
    caller.session.answer(command, await caller.commands.analyses())


async def ping(caller: Caller, command: Command) -> None:
    caller.session.answer(command, {})


def _follow(caller: Caller, job: str, terminal_only: bool) -> Follower:
    follower = caller.commands.relay.hub.follow(job, caller.session, terminal_only=terminal_only)
    caller.session.followers[job] = follower
    return follower


def _unfollow(caller: Caller, follower: Follower) -> None:
    caller.commands.relay.hub.drop(follower, forget=False)
    caller.session.followers.pop(follower.job, None)


_TABLE = (
    Method(
        "job.submit", Submit, SubmitResult,
        "Ask for a job. Once answered it runs, whatever happens to this socket or any process.", submit,
    ),
    Method(
        "job.attach", Attach, Attached,
        "Follow a job's events from a cursor on, or from the start: old ones first, live ones after.", attach,
    ),
    Method("job.detach", JobOnly, Empty, "Follow a job no longer; it runs on.", detach),
    Method(
        "job.cancel", Cancel, Snapshot,
        "End a job, queued or running. One that has ended already is no error.", cancel,
    ),
    Method("job.get", JobOnly, Snapshot, "A job as it stands.", get),
    Method("analysis.list", Nothing, list[AnalysisInfo], "What can be asked for.", analyses),
    Method("ping", Nothing, Empty, "Is the connection alive?", ping),
)  # fmt: skip
METHODS = {method.name: method for method in _TABLE}
PARAMS: Methods = {method.name: method.params for method in _TABLE}
