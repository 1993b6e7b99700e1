"""One connection to the store, shared by a whole process: every call of one loop tick leaves in one write.

redis-py connects (URL, TLS, authentication, database); from then on this module owns the stream, because redis-py's
cost is per round trip and this one's is per byte: calls are packed into a buffer that is written once a tick, and
replies are handed out in order as they come. Nothing waits for the reply of another call.
"""

import asyncio
import contextlib
import random
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qs

import hiredis
import structlog
from redis.asyncio import Connection, ConnectionPool
from redis.exceptions import RedisError

from millstream.backoff import backoff_s
from millstream.protocol.errors import StoreUnavailable
from millstream.store.not_now import refusal

log = structlog.get_logger("millstream.store.store")

MIN_SILENCE_S, MAX_SILENCE_S = 0.5, 10.0

Reply = Any
Argument = str | bytes | int | float


class Pipeline:
    """Calls to one Redis, kept in order, over one connection that is made again whenever it breaks.

    `on_connect` runs after each connection is made, before any call goes out; `on_push` gets what no call asked for
    (pub/sub messages), and with it set, replies to calls are not matched: the connection only listens. A store that
    answers nothing for `silence_s` is considered dead, though the connection is open; one that only listens is asked
    for a sign of life.
    """

    def __init__(
        self,
        url: str,
        *,
        name: str,
        on_connect: Callable[["Pipeline"], Awaitable[None]] | None = None,
        on_push: Callable[[list[Any]], None] | None = None,
        silence_s: float = MAX_SILENCE_S,
    ) -> None:
        self.url = url
        self._silence_s = silence_s
        self.connected = asyncio.Event()
        self._name = name
        self._on_connect = on_connect
        self._on_push = on_push
        self._pool: ConnectionPool = ConnectionPool.from_url(
            url, socket_connect_timeout=5, socket_timeout=5, client_name=name
        )
        self._outgoing: list[bytes] = []
        self._waiting: deque[asyncio.Future[Reply]] = deque()
        self._writer: asyncio.StreamWriter | None = None
        self._loop = asyncio.get_running_loop()
        self._keeper: asyncio.Task[None] | None = None
        self._closed = False
        self._heard = 0  # replies and messages, on a connection that only listens

    async def open(self, timeout_s: float | None = None) -> "Pipeline":
        """Connect, and stay connected until `close`. Raises StoreUnavailable after `timeout_s` seconds."""
        self._keeper = asyncio.create_task(self._keep_connected(), name=f"pipeline {self._name}")
        try:
            async with asyncio.timeout(timeout_s):
                await self.connected.wait()
        except TimeoutError:
            await self.close()
            raise StoreUnavailable(f"no store answers at {shown(self.url)}") from None
        return self

    async def close(self) -> None:
        self._closed = True
        # More than once, if need be: redis-py connects under wait_for(), which in Python 3.11 can swallow a cancel.
        while self._keeper and not self._keeper.done():
            self._keeper.cancel()
            await asyncio.wait({self._keeper}, timeout=0.1)
        self._fail_waiting()

    def call(self, *arguments: Argument) -> asyncio.Future[Reply]:
        """Send a command; the future holds its reply.

        Raises StoreUnavailable (from the future) when there is no connection or it breaks before the reply: the
        command may then have been carried out or not; so when the store says "not now" (not_now.py). Any other error
        reply is raised as `hiredis.ReplyError`.
        """
        future: asyncio.Future[Reply] = self._loop.create_future()
        if self._writer is None:
            future.set_exception(StoreUnavailable(f"the store at {shown(self.url)} cannot be reached"))
            return future
        if not self._outgoing:
            self._loop.call_soon(self._flush)
        self._outgoing.append(hiredis.pack_command(arguments))  # type: ignore[arg-type]
        self._waiting.append(future)
        return future

    def send(self, *arguments: Argument) -> None:
        """Send a command on a connection that only listens: what it answers goes to `on_push`."""
        if self._writer is None:
            raise StoreUnavailable(f"the store at {shown(self.url)} cannot be reached")
        self._writer.write(hiredis.pack_command(arguments))  # type: ignore[arg-type]

    def _flush(self) -> None:
        data = b"".join(self._outgoing)
        self._outgoing.clear()
        if self._writer is not None and data:
            self._writer.write(data)

    async def _keep_connected(self) -> None:
        failures = 0
        while not self._closed:
            connection: Connection = self._pool.make_connection()  # type: ignore[no-untyped-call]
            try:
                await connection.connect()  # type: ignore[no-untyped-call]
                await self._serve(connection)
                log.warning("connection to the store broke", url=shown(self.url), connection=self._name)
            except (RedisError, OSError, hiredis.HiredisError, StoreUnavailable) as error:
                failures += 1
                if failures == 1:
                    log.warning("store unreachable", url=shown(self.url), connection=self._name, error=str(error))
            except Exception:
                failures += 1
                log.exception("a reply could not be handled", connection=self._name)
            finally:
                if self.connected.is_set():  # it could be used: a store that still loads its data answers, too
                    failures = 0
                self.connected.clear()
                self._writer = None
                self._fail_waiting()
                with contextlib.suppress(RedisError, OSError):
                    await connection.disconnect(nowait=True)
            await asyncio.sleep(random.uniform(0.5, 1) * backoff_s(failures, first_s=0.04, max_s=1))

    async def _serve(self, connection: Connection) -> None:
        """Read replies until the connection breaks."""
        stream: asyncio.StreamReader = connection._reader  # type: ignore[assignment]
        self._writer = connection._writer
        replies = hiredis.Reader()
        reading = asyncio.create_task(self._read(stream, replies))
        watching = asyncio.create_task(self._watch())
        try:
            if self._on_connect:
                preparing = asyncio.ensure_future(self._on_connect(self))
                await asyncio.wait({preparing, reading, watching}, return_when=asyncio.FIRST_COMPLETED)
                if not preparing.done():
                    preparing.cancel()
                    raise StoreUnavailable("the connection broke while it was being made ready")
                preparing.result()
            if not self._on_push:
                self.connected.set()
            await asyncio.wait({reading, watching}, return_when=asyncio.FIRST_COMPLETED)
            await (reading if reading.done() else watching)
        finally:
            reading.cancel()
            watching.cancel()

    async def _watch(self) -> None:
        """Raises StoreUnavailable when a call, or a connection that only listens, has waited for `silence_s`, or up to
        twice that.
        """
        if self._on_push:
            return await self._watch_listening()
        oldest = None
        while oldest is None or not self._waiting or self._waiting[0] is not oldest:
            oldest = self._waiting[0] if self._waiting else None
            await asyncio.sleep(self._silence_s)
        raise StoreUnavailable("the store stopped answering")

    async def _watch_listening(self) -> None:
        heard = -1
        while self._heard != heard:
            heard = self._heard
            if self.connected.is_set():
                self.send("PING")
            await asyncio.sleep(self._silence_s)
        raise StoreUnavailable("the store stopped answering")

    async def _read(self, stream: asyncio.StreamReader, replies: hiredis.Reader) -> None:
        waiting, push = self._waiting, self._on_push
        while data := await stream.read(262_144):
            replies.feed(data)
            while (reply := replies.gets()) is not False:
                if push is not None:
                    self._take_pushed(push, reply)
                    continue
                future = waiting.popleft()
                if future.done():
                    continue
                if isinstance(reply, Exception):
                    future.set_exception(refusal(reply) or reply)
                else:
                    future.set_result(reply)

    def _take_pushed(self, push: Callable[[list[Any]], None], reply: Reply) -> None:
        self._heard += 1
        if isinstance(reply, list):
            self.connected.set()  # from here on it listens
            if reply[0] != b"pong":
                push(reply)
        elif isinstance(reply, Exception) and not self.connected.is_set():
            raise refusal(reply) or reply  # later ones answer a PING, and are a sign of life too

    def _fail_waiting(self) -> None:
        self._outgoing.clear()
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_exception(StoreUnavailable(f"the connection to the store at {shown(self.url)} broke"))
                future.exception()  # mark as retrieved: the caller may be gone


def silence_for(patience_s: float) -> float:
    """How long a connection may be silent, so that calls which wait for `patience_s` are made again on another one."""
    return min(MAX_SILENCE_S, max(MIN_SILENCE_S, patience_s / 2))


def shown(url: str) -> str:
    """A store's URL without its password, which may stand in the query too: of that only the database is shown."""
    address, _, query = url.partition("?")
    scheme, separator, rest = address.rpartition("://")
    host = "…" if "@" in query and "@" not in rest else rest.rpartition("@")[2]  # a password with a ? in it
    database = parse_qs(query).get("db")
    return f"{scheme}{separator}{host}" + (f"?db={database[0]}" if database else "")
