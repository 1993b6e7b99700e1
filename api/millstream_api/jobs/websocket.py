"""`/ws`: frames to the session, the session's frames back. What is decided is decided by the session."""

import asyncio
import random
from base64 import urlsafe_b64decode
from collections import Counter
from contextlib import suppress
from urllib.parse import urlsplit

import structlog
from starlette.responses import Response
from starlette.websockets import WebSocket, WebSocketDisconnect

from millstream.apikeys import Principal
from millstream.protocol.errors import Problem
from millstream.protocol.messages import SOCKET
from millstream_api.jobs.commands import Commands
from millstream_api.jobs.methods import METHODS, PARAMS, Caller
from millstream_api.jobs.plain_session import PlainSession
from millstream_api.jobs.rpc_session import RpcSession
from millstream_api.jobs.session import Bounds, Command
from millstream_api.problems import problem_response

log = structlog.get_logger("millstream.api")

PROTOCOL = "millstream.v1"
BEARER = "bearer."
POLICY, OVERLOADED, RESTARTING = 1008, 1013, 1012


class Sockets:
    """The open sockets of this process."""

    def __init__(self, commands: Commands) -> None:
        self._commands = commands
        self._open: set[Socket] = set()
        self._leaving: set[asyncio.Task[None]] = set()

    async def serve(self, websocket: WebSocket) -> None:
        """Serve one connection from its handshake to its end."""
        settings = self._commands.settings
        try:
            _check_origin(websocket, settings.origins)
            offered = websocket.scope["subprotocols"]
            who = self._commands.keys.authenticate(websocket.headers.get("authorization"), key=_offered_key(offered))
            protocol = _choose_protocol(offered)
        except Problem as problem:
            await _refuse(websocket, problem_response(problem, SOCKET))
            return
        await websocket.accept(subprotocol=protocol)
        draining = self._commands.draining.is_set()
        if len(self._open) >= settings.connections or draining:
            code = RESTARTING if draining else OVERLOADED
            await websocket.close(code, "reconnect later")
            return
        socket = Socket(websocket, self._commands, who, protocol)
        self._open.add(socket)
        try:
            await socket.serve()
        finally:
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
                socket.end(POLICY)

    async def drain(self) -> None:
        """Tell every client to reconnect, let what is owed to it go out, and close."""
        async with asyncio.TaskGroup() as group:
            for socket in tuple(self._open):
                group.create_task(socket.drain())
        while self._leaving:
            await asyncio.wait(self._leaving)


class Socket:
    """One connection: a task that reads and a task that writes, around a session."""

    def __init__(self, websocket: WebSocket, commands: Commands, who: Principal, protocol: str | None) -> None:
        settings = commands.settings
        bounds = Bounds(settings.connection_in_flight, settings.reader_events, settings.reader_bytes)
        self._websocket = websocket
        self._commands = commands
        self.who = who
        self.protocol = protocol
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._closing: int | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        hub, new_job_id = commands.relay.hub, commands.stores.new_job_id
        self.session: RpcSession | PlainSession
        if protocol:
            self.session = RpcSession(hub, PARAMS, bounds, new_job_id, self._wake.set)
        else:
            analysis = websocket.query_params.get("analysis", "process")
            self.session = PlainSession(hub, analysis, bounds, new_job_id, self._wake.set)
        self._caller = Caller(who, commands, self.session)

    async def serve(self) -> None:
        writing = asyncio.create_task(self._write())
        reading = asyncio.create_task(self._read())
        done, open_ = await asyncio.wait({reading, writing}, return_when=asyncio.FIRST_COMPLETED)
        for task in open_:
            task.cancel()
        for task in done:
            if (error := task.exception()) and not isinstance(error, WebSocketDisconnect):
                log.error("socket failed", exc_info=error)

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
                while not self.session.idle and not self.session.left:
                    self._room.clear()
                    await self._room.wait()
        except TimeoutError:
            pass
        self.end(RESTARTING)

    def end(self, code: int) -> None:
        """Close, when what is ready to be sent has been sent."""
        self._closing = code
        self._wake.set()

    # Reading.

    async def _read(self) -> None:
        while True:
            while self.session.full:
                self._room.clear()
                await self._room.wait()
            message = await self._websocket.receive()
            if message["type"] == "websocket.disconnect":
                return
            text = message.get("text")
            if text is None:
                if code := self.session.receive_binary():
                    self.end(code)
                    await asyncio.Event().wait()  # the writer closes, and ends this task
                continue
            for command in self.session.receive(text):
                task = asyncio.create_task(self._carry_out(command))
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

    # Writing.

    async def _write(self) -> None:
        session, send = self.session, self._websocket.send
        while True:
            self._wake.clear()
            while (frame := session.next_frame()) is not None:
                await send({"type": "websocket.send", "text": frame})
            self._room.set()
            if self._closing:
                await self._websocket.close(self._closing)
                return
            if follower := session.next_behind():
                await self._commands.catch_up(follower)
                session.log_read(follower)
            else:
                await self._wake.wait()


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


def _check_origin(websocket: WebSocket, listed: str) -> None:
    """A browser's page may open a socket only from this origin or a listed one. Raises Problem."""
    origin = websocket.headers.get("origin")
    if origin is None or origin in {item.strip() for item in listed.split(",")}:
        return
    parts = urlsplit(origin)
    secure = websocket.url.scheme == "wss"
    if parts.netloc == websocket.headers.get("host") and parts.scheme == ("https" if secure else "http"):
        return
    raise Problem("forbidden", f"Pages of {origin[:100]} may not open sockets here; MILLSTREAM_ORIGINS lists who may.")


async def _refuse(websocket: WebSocket, response: Response) -> None:
    """Answer the handshake with an HTTP error."""
    await websocket.send_denial_response(response)
