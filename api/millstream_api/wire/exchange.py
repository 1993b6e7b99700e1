"""One request and the answer to it, as an ASGI app sees them: `scope`, `receive`, `send`.

Beyond ASGI, the app is offered the connection itself, as CONNECTION, and on plain TCP a whole answer in one message, as
ANSWER (answering.py). A handshake is a request like any other, until the app accepts it or answers something else.
"""

import asyncio
import re
from math import inf
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import structlog
from starlette.types import ASGIApp, Message, Scope

from millstream.protocol.errors import Problem
from millstream_api.problems import problem_response
from millstream_api.wire.answering import ANSWER, write_answer
from millstream_api.wire.answers import status_line
from millstream_api.wire.connection import CONNECTION, ClientGone
from millstream_api.wire.handshake import offered_protocols
from millstream_api.wire.http1 import TOKEN, Headers, Refused, Request
from millstream_api.wire.pagecache import FileTruncated

if TYPE_CHECKING:
    from millstream_api.wire.http_connection import HttpConnection

log = structlog.get_logger("millstream.api")

_HEAD = re.compile(rb"(?:%b++: [^\x00-\x08\x0a-\x1f\x7f]*+\r\n)*+" % TOKEN)  # what a response may begin with
_ASGI = {"version": "3.0", "spec_version": "2.3"}
UNEXPECTED = Problem("internal_error", "Something went wrong here; it has been logged.")
_OF_HANDSHAKE = "websocket."  # what ASGI puts before the messages of an answer to a handshake


class Exchange:
    """`keep_alive`: another request may follow on the connection."""

    __slots__ = (
        "_bodiless", "_body_read", "_chunked", "_complete", "_connection", "_left", "_started", "_wake", "keep_alive",
        "request", "scope", "task",
    )  # fmt: skip

    def __init__(self, connection: "HttpConnection", request: Request, state: dict[str, Any], app: ASGIApp) -> None:
        self.request = request
        self.keep_alive = request.keep_alive
        self.scope = _scope(connection, request, state)
        self._connection = connection
        self._body_read = False  # has the app been given the end of the body?
        self._started = self._complete = False
        self._bodiless = self._chunked = False
        self._left: int | None = None  # bytes of the answer's body that are still to come; None: any number
        self._wake: asyncio.Future[None] | None = None
        self.task: asyncio.Task[None] = asyncio.get_running_loop().create_task(self._run(app))

    async def _run(self, app: ASGIApp) -> None:
        """Run the app, and see that the request is answered, or its connection ended."""
        connection = self._connection
        try:
            await app(self.scope, self.receive, self.send)
        except (ClientGone, FileTruncated):
            pass  # the connection is closed, or will be: there is no client left to tell
        except Exception:
            log.exception("request failed", method=self.request.method, path=self.scope["path"])
        finally:
            if connection.lost:
                self.end()
            elif not self._complete:
                connection.break_off(problem_response(UNEXPECTED, self.scope["path"]))
            connection.tasks.discard(self.task)

    def abandon(self) -> bool:
        """The connection answers in its own words, or with none. Returns whether the app has begun to."""
        self._complete = True
        self.came()
        return self._started

    # The request.

    def came(self) -> None:
        """More of the body came, or the end of what the client says, or the answer is complete."""
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def receive(self) -> Message:
        """The body, in parts; then `http.disconnect`, when the client has gone or says nothing more."""
        connection = self._connection
        reader = connection.reader
        if self.request.handshake:
            return {"type": "websocket.connect"}
        while not self._complete:
            if not self._body_read:
                try:
                    body = reader.read_body()
                except Refused as refused:
                    connection.refuse(refused)
                    break
                if body or reader.body_complete:
                    self._body_read = reader.body_complete
                    if reader.held and not self._body_read:
                        await asyncio.sleep(0)  # many small chunks: others have their turn
                    return {"type": "http.request", "body": body, "more_body": not self._body_read}
            if connection.eof:
                break
            if not self._body_read:
                if self.request.expects_continue and not self._started and not reader.held:
                    connection.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                connection.wait_for_body()
            await self._until_more_came()
            connection.deadline = inf
        return {"type": "http.disconnect"}

    async def _until_more_came(self) -> None:
        self._wake = asyncio.get_running_loop().create_future()
        try:
            await self._wake
        finally:
            self._wake = None

    # The answer.

    async def send(self, message: Message) -> None:
        connection = self._connection
        kind = message["type"]
        if self._complete:
            return
        if kind == ANSWER:
            await write_answer(connection, message, connection.limits.stall_s)
            return
        if connection.timed and connection.is_closing():
            raise ClientGone("the client left")
        if connection.write_paused:
            await self._until_writable()
            if self._complete:
                return
        if self.request.handshake:
            kind = kind.removeprefix(_OF_HANDSHAKE)
        if kind == "http.response.start":
            self._start_asgi(message["status"], message.get("headers", ()))
        elif kind == "http.response.body":
            self._write_body(message.get("body", b""), more=message.get("more_body", False))
        else:
            raise RuntimeError(f"an app sent {kind!r}, which is no part of an answer")

    async def _until_writable(self) -> None:
        """Wait while the write buffer is full. A client that reads nothing for too long is disconnected."""
        connection = self._connection
        timer = asyncio.get_running_loop().call_later(connection.limits.stall_s, connection.abort)
        try:
            await connection.writable()
        finally:
            timer.cancel()
        if connection.timed and connection.is_closing():
            raise ClientGone("the client left, or read nothing")

    def _start_asgi(self, status: int, headers: Headers) -> None:
        lines, length, chunked = [], None, False
        for name, value in headers:
            name = name.lower()
            if name == b"content-length":
                length = int(value)
            elif name == b"transfer-encoding":
                chunked = True
                continue
            elif name == b"connection":
                self.keep_alive = self.keep_alive and value.strip().lower() != b"close"
                continue
            lines.append(b"%b: %b\r\n" % (name, value))
        self._bodiless = self.request.method == "HEAD" or status in (204, 304)
        if self._bodiless:
            pass
        elif length is not None and not chunked:
            self._left = length
        else:
            self._chunked = self.request.http_version != "1.0"
            self.keep_alive = self.keep_alive and self._chunked  # to HTTP/1.0, the end of the connection is its end
            if self._chunked:
                lines.append(b"transfer-encoding: chunked\r\n")
        head = b"".join(lines)
        if not _HEAD.fullmatch(head):
            raise RuntimeError(f"an app sent headers that HTTP does not allow: {head!r}")
        self.start(status, head)

    def start(self, status: int, head: bytes) -> None:
        """Write status line and headers, unless they have been written."""
        if self._started:
            return
        self._started = True
        connection, request = self._connection, self.request
        if request.expects_continue and not connection.reader.body_complete:
            self.keep_alive = False  # the client waits with the body, or does not send it
        end = b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n"
        connection.write(b"".join((status_line(status), connection.date_line(), head, end)))

    def _write_body(self, body: bytes, *, more: bool) -> None:
        if not self._started:
            raise RuntimeError("an app sent a body before its start")
        connection = self._connection
        if self._bodiless:
            pass
        elif self._chunked:
            if body:
                for part in (b"%x\r\n" % len(body), body, b"\r\n"):
                    connection.write(part)
            if not more:
                connection.write(b"0\r\n\r\n")
        else:
            if self._left is not None:
                self._left -= len(body)
                if self._left < 0 or (self._left and not more):
                    raise RuntimeError("an app's body is not as long as its Content-Length says")
            connection.write(body)
        if not more:
            self.end()

    def end(self) -> None:
        """The answer is complete."""
        if not self._complete:
            self._complete = True
            self.came()
            self._connection.end_exchange(keep_alive=self.keep_alive)


def _scope(connection: "HttpConnection", request: Request, state: dict[str, Any]) -> Scope:
    raw_path, _, query = request.target.partition(b"?")
    path = raw_path.decode()
    scope: Scope = {
        "type": "http", "asgi": _ASGI, "http_version": request.http_version, "method": request.method,
        "scheme": connection.scheme, "path": unquote(path) if "%" in path else path, "raw_path": raw_path,
        "query_string": query, "root_path": "", "headers": [*request.headers], "client": connection.client,
        "server": connection.server, "state": state.copy(),
        "extensions": {CONNECTION: connection, ANSWER: {}} if connection.plain_tcp else {CONNECTION: connection},
    }  # fmt: skip
    if request.handshake:
        scope["type"], scope["scheme"] = "websocket", "wss" if connection.scheme == "https" else "ws"
        scope["subprotocols"] = offered_protocols(request.headers)
        scope["extensions"]["websocket.http.response"] = {}
    return scope
