"""`/ws`: frames to the session, the session's frames back. What is decided is decided by the session."""

import asyncio
import random
from base64 import urlsafe_b64decode
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

import structlog
from starlette.requests import HTTPConnection
from starlette.types import Receive, Scope, Send

from millstream.apikeys import Principal
from millstream.protocol.errors import Problem
from millstream.protocol.messages import SOCKET
from millstream_api.jobs.commands import Commands
from millstream_api.jobs.hub import Follower
from millstream_api.jobs.methods import METHODS, PARAMS, Caller
from millstream_api.jobs.plain_session import PlainSession
from millstream_api.jobs.rpc_session import RpcSession
from millstream_api.jobs.session import Bounds, Command
from millstream_api.problems import problem_response
from millstream_api.wire.connection import Socket as Wire
from millstream_api.wire.connection import upgrade_of

log = structlog.get_logger("millstream.api")

PROTOCOL = "millstream.v1"
BEARER = "bearer."
POLICY, INTERNAL_ERROR, OVERLOADED, RESTARTING = 1008, 1011, 1013, 1012


class Sockets:
    """The open sockets of this process."""

    def __init__(self, commands: Commands) -> None:
        self._commands = commands
        self._open: set[Socket] = set()
        self._leaving: set[asyncio.Task[None]] = set()

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a handshake: with a socket, or with a problem."""
        settings = self._commands.settings
        request = HTTPConnection(scope)
        try:
            _check_origin(request, settings.origins)
            offered = scope["subprotocols"]
            who = self._commands.keys.authenticate(request.headers.get("authorization"), key=_offered_key(offered))
            protocol = _choose_protocol(offered)
        except Problem as problem:
            await problem_response(problem, SOCKET)(scope, receive, send)
            return
        socket = Socket(self._commands, who, protocol, request.query_params.get("analysis", "process"), self._left)
        socket.wire = upgrade_of(scope).accept(protocol, socket)
        draining = self._commands.draining.is_set()
        if len(self._open) >= settings.connections or draining:
            socket.wire.close(RESTARTING if draining else OVERLOADED, "reconnect later")
            return
        self._open.add(socket)

    def _left(self, socket: "Socket") -> None:
        self._open.discard(socket)
        task = asyncio.create_task(socket.leave())
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    def count(self) -> dict[str, int]:
        """How many are open, by protocol."""
        found = Counter(socket.protocol for socket in self._open)
        return {"plain": found[None], PROTOCOL: found[PROTOCOL]}

    async def close_revoked(self) -> None:
        """Close the sockets of keys that were revoked or have expired."""
        keys = self._commands.keys
        gone = {who for who in {socket.who for socket in self._open} if not keys.is_still_valid(who)}
        for socket in tuple(self._open):
            if socket.who in gone:
                socket.cut(POLICY)

    async def drain(self) -> None:
        """Tell every client to reconnect, let what is owed to it go out, and close."""
        async with asyncio.TaskGroup() as group:
            for socket in tuple(self._open):
                group.create_task(socket.drain())
        while self._leaving:
            await asyncio.wait(self._leaving)


class Socket:
    """One WebSocket: its messages go to a session, the session's frames to it. Its `Listener`, in the words of wire."""

    wire: Wire

    def __init__(
        self,
        commands: Commands,
        who: Principal,
        protocol: str | None,
        analysis: str,
        on_left: Callable[["Socket"], None],
    ) -> None:
        settings = commands.settings
        bounds = Bounds(
            in_flight=settings.connection_in_flight,
            events=settings.reader_events,
            bytes=settings.reader_bytes,
            batch=settings.batch,
            json_values=settings.json_values,
        )
        self.who = who
        self.protocol = protocol
        self._commands = commands
        self._on_left = on_left
        self._loop = asyncio.get_running_loop()
        self._room = asyncio.Event()
        self._awake = self._paused = self._left = False
        self._closing: int | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._reading_log: asyncio.Task[None] | None = None
        hub, new_job_id = commands.relay.hub, commands.stores.new_job_id
        self.session: RpcSession | PlainSession
        if protocol:
            self.session = RpcSession(hub, PARAMS, bounds, new_job_id, self._wake, settings.root_path)
        else:
            self.session = PlainSession(hub, analysis, bounds, new_job_id, self._wake)
        self._caller = Caller(who, commands, self.session)

    async def leave(self) -> None:
        """The client is gone: its jobs run on, save those that it wanted cancelled."""
        for job in self.session.leave():
            await self._commands.cancel_after_disconnect(self.who, job)

    async def drain(self) -> None:
        """Say when to reconnect, send what is owed, close. A plain client is owed an answer to every frame it sent."""
        settings = self._commands.settings
        self.session.drain(random.randint(0, settings.reconnect_ms))
        try:
            async with asyncio.timeout(settings.drain_s * 0.8):
                while not self.session.idle and not self._left:
                    self._room.clear()
                    await self._room.wait()
        except TimeoutError:
            pass
        self.end(RESTARTING)

    def end(self, code: int) -> None:
        """Close, when what is ready to be sent has been sent."""
        self._closing = code
        self._wake()

    def cut(self, code: int) -> None:
        """Close at once, whether or not the client reads: nothing more is taken from it, or said to it."""
        self.wire.close(code)
        self.on_lost()

    # What the client says.

    def on_text(self, text: str) -> None:
        for command in self.session.receive(text):
            self._start(command)
        if self.session.full:
            self._paused = True
            self.wire.pause()

    def on_binary(self, data: bytes) -> None:
        if code := self.session.receive_binary():
            self._paused = True
            self.wire.pause()
            self.end(code)

    def on_writable(self) -> None:
        self._wake()

    def on_lost(self) -> None:
        if self._left:
            return
        self._left = True
        self._room.set()
        if self._reading_log:
            self._reading_log.cancel()
        self._on_left(self)

    def _start(self, command: Command) -> None:
        task = self._loop.create_task(self._carry_out(command))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _carry_out(self, first: Command) -> None:
        """Carry out a command, and then those that waited for it."""
        command: Command | None = first
        while command:
            try:
                await METHODS[command.method].carry_out(self._caller, command)
            except Problem as problem:
                self.session.refuse(command, problem)
            except Exception:
                log.exception("command failed", method=command.method)
                defect = Problem("internal_error", "Something went wrong here; it has been logged.")
                self.session.refuse(command, defect)
            command = self.session.next_in_turn(command)

    # What is said to it.

    def _wake(self) -> None:
        """There is something to send, or room: see to it at the end of this tick, together with what else happens."""
        if not self._awake:
            self._awake = True
            self._loop.call_soon(self._write)

    def _write(self) -> None:
        self._awake = False
        if self._left:
            return
        session, wire = self.session, self.wire
        while not wire.write_paused and (frame := session.next_frame()) is not None:
            wire.send(frame)
        wire.flush()
        self._room.set()
        if command := session.next_with_room():
            self._start(command)
        if self._closing:
            if not wire.write_paused:
                wire.close(self._closing)
                self.on_lost()
            return
        if self._paused and not session.full:
            self._paused = False
            wire.resume()
        if self._reading_log is None and not wire.write_paused and (follower := session.next_behind()):
            self._reading_log = self._loop.create_task(self._read_log(follower))

    async def _read_log(self, follower: Follower) -> None:
        try:
            await self._commands.catch_up(follower)
            self.session.log_read(follower)
        except Exception:
            log.exception("socket failed")
            self.end(INTERNAL_ERROR)
        finally:
            self._reading_log = None
            self._wake()


def _choose_protocol(offered: list[str]) -> str | None:
    """None is plain mode. Raises Problem when only protocols are offered that are not known here."""
    protocols = [name for name in offered if not name.startswith(BEARER)]
    if PROTOCOL in protocols:
        return PROTOCOL
    if not protocols:
        return None
    raise Problem("invalid_request", f"This server speaks {PROTOCOL}, or plain text when no subprotocol is offered.")


def _offered_key(protocols: list[str]) -> str | None:
    """The key in an offered protocol `bearer.<base64url of the key>`: browsers cannot set a header."""
    for name in protocols:
        if name.startswith(BEARER):
            encoded = name.removeprefix(BEARER)
            with suppress(ValueError):
                return urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)).decode()
    return None


def _check_origin(request: HTTPConnection, listed: str) -> None:
    """A browser's page may open a socket only from this origin or a listed one. Raises Problem."""
    origin = request.headers.get("origin")
    if origin is None or origin in listed.split(","):
        return
    scheme = "https" if request.scope["scheme"] == "wss" else "http"
    if origin == f"{scheme}://{request.headers.get('host')}":
        return
    raise Problem("forbidden", f"Pages of {origin[:100]} may not open sockets here; MILLSTREAM_ORIGINS lists who may.")
