"""What Millstream is measured beside, each as a process of its own.

    python -m tests.benchmarks.peers echo PORT
    python -m tests.benchmarks.peers relay PEER PORT REDIS_URL
    python -m tests.benchmarks.peers worker PEER REDIS_URL

The relay is a WebSocket in front of a queue as a good engineer would write it: each frame becomes a job, its worker
publishes the answer, and one pub/sub connection a process brings it back to the future that waits for that job. No peer
keeps results: they are never read.
"""

import asyncio
import secrets
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import redis.asyncio as redis
import saq
import streaq
import uvicorn
import uvloop
from arq.connections import RedisSettings, create_pool
from arq.worker import Worker, func
from fastapi import FastAPI, WebSocket

STARTED = "bench:workers"  # how many workers have started

Enqueue = Callable[[str, str, str], Awaitable[object]]  # (job, text, the channel that is told)


@dataclass(frozen=True, slots=True)
class Peer:
    """A queue: how jobs get into it, and what runs a worker of it until the process is ended."""

    enqueuing: Callable[[str], AbstractAsyncContextManager[Enqueue]]
    work: Callable[[str], Coroutine[Any, Any, None]]


def answer(text: str) -> str:
    """What the analysis `process` answers."""
    return "Processed data: " + text


async def process(client: redis.Redis, job: str, text: str, channel: str) -> None:
    """The same as a job, which tells the relay."""
    await client.publish(channel, f"{job}\n{answer(text)}")


def arq_peer(**options: Any) -> Peer:
    async def run(ctx: dict[str, Any], job: str, text: str, channel: str) -> None:
        await process(ctx["redis"], job, text, channel)

    async def started(ctx: dict[str, Any]) -> None:
        await ctx["redis"].incr(STARTED)

    @asynccontextmanager
    async def enqueuing(url: str) -> AsyncIterator[Enqueue]:
        pool = await create_pool(RedisSettings.from_dsn(url))
        yield lambda job, text, channel: pool.enqueue_job("run", job, text, channel, _job_id=job)
        await pool.close(close_connection_pool=True)

    async def work(url: str) -> None:
        functions, settings = [func(run, name="run")], RedisSettings.from_dsn(url)
        await Worker(functions=functions, redis_settings=settings, on_startup=started, **options).async_run()

    return Peer(enqueuing, work)


def saq_peer() -> Peer:
    async def run(ctx: Any, *, job: str, text: str, channel: str) -> None:
        await process(ctx["client"], job, text, channel)

    @asynccontextmanager
    async def enqueuing(url: str) -> AsyncIterator[Enqueue]:
        queue = saq.Queue.from_url(url)
        await queue.connect()
        yield lambda job, text, channel: queue.enqueue(
            "run", key=job, ttl=-1, kwargs={"job": job, "text": text, "channel": channel}
        )
        await queue.disconnect()

    async def work(url: str) -> None:
        client = redis.Redis.from_url(url)

        async def started(ctx: Any) -> None:
            ctx["client"] = client
            await client.incr(STARTED)

        queue = saq.Queue.from_url(url)
        await saq.Worker(queue, [("run", run)], concurrency=100, startup=started).start()

    return Peer(enqueuing, work)


def streaq_peer() -> Peer:
    def made(url: str) -> tuple[Any, Any, redis.Redis]:
        client = redis.Redis.from_url(url)

        @asynccontextmanager
        async def started() -> AsyncIterator[None]:
            await client.incr(STARTED)
            yield

        worker: Any = streaq.Worker(redis_url=url, concurrency=100, lifespan=started)

        @worker.task(ttl=0, silent=True)  # type: ignore[untyped-decorator]
        async def run(job: str, text: str, channel: str) -> None:
            await process(client, job, text, channel)

        return worker, run, client

    @asynccontextmanager
    async def enqueuing(url: str) -> AsyncIterator[Enqueue]:
        worker, run, _ = made(url)
        async with worker:
            yield lambda job, text, channel: run.enqueue(job, text, channel)

    async def work(url: str) -> None:
        await made(url)[0].run_async()

    return Peer(enqueuing, work)


#: stock arq polls every 0.5 s, runs 10 jobs at a time and keeps results for an hour.
PEERS = {
    "arq": arq_peer(),
    "arq-tuned": arq_peer(poll_delay=0.01, max_jobs=100, keep_result=0),
    "saq": saq_peer(),
    "streaq": streaq_peer(),
}


class Answers:
    """The jobs that this process waits for, and the one channel on which all of them are answered."""

    def __init__(self, client: redis.Redis, enqueue: Enqueue) -> None:
        self._redis = client
        self._enqueue = enqueue
        self._channel = f"bench:answers:{secrets.token_hex(8)}"
        self._waiting: dict[str, asyncio.Future[str]] = {}

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        async with self._redis.pubsub(ignore_subscribe_messages=True) as pubsub:
            await pubsub.subscribe(self._channel)
            listening = asyncio.create_task(self._listen(pubsub.listen()))
            yield
            listening.cancel()

    async def _listen(self, messages: AsyncIterator[dict[str, Any]]) -> None:
        async for message in messages:
            job, _, text = message["data"].decode().partition("\n")
            if future := self._waiting.pop(job, None):
                future.set_result(text)

    async def ask(self, text: str) -> str:
        job = uuid4().hex
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._waiting[job] = future
        await self._enqueue(job, text, self._channel)
        return await future


def relay(peer: Peer, url: str) -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with redis.Redis.from_url(url) as client, peer.enqueuing(url) as enqueue:
            app.state.answers = Answers(client, enqueue)
            async with app.state.answers.listening():
                yield

    app = FastAPI(lifespan=lifespan)

    @app.websocket("/ws")
    async def ws(websocket: WebSocket) -> None:
        answers: Answers = websocket.app.state.answers

        async def serve(text: str) -> None:
            await websocket.send_text(await answers.ask(text))

        await websocket.accept()
        async with asyncio.TaskGroup() as group:
            async for text in websocket.iter_text():
                group.create_task(serve(text))

    return app


def echo() -> FastAPI:
    """No queue at all."""
    app = FastAPI()

    @app.websocket("/ws")
    async def ws(websocket: WebSocket) -> None:
        await websocket.accept()
        async for text in websocket.iter_text():
            await websocket.send_text(answer(text))

    return app


def serve(app: FastAPI, port: int) -> None:
    """uvicorn with the settings of api/millstream_api/server.py."""

    @app.get("/readyz")
    async def readyz() -> str:
        return "ready"

    uvicorn.run(
        app, port=port, loop="uvloop", http="httptools", ws="websockets-sansio", ws_per_message_deflate=False,
        ws_ping_interval=20, ws_ping_timeout=None, log_level="warning", access_log=False, server_header=False,
    )  # fmt: skip


def main(kind: str, *arguments: str) -> None:
    kinds: dict[str, Callable[..., None]] = {
        "echo": lambda port: serve(echo(), int(port)),
        "relay": lambda name, port, url: serve(relay(PEERS[name], url), int(port)),
        "worker": lambda name, url: uvloop.run(PEERS[name].work(url)),
    }
    kinds[kind](*arguments)


if __name__ == "__main__":
    main(*sys.argv[1:])
