"""What Millstream is measured beside, each as a process of its own.

    python -m tests.benchmarks.peers echo PORT
    python -m tests.benchmarks.peers relay PORT REDIS_URL
    python -m tests.benchmarks.peers worker REDIS_URL stock|tuned

The relay is a WebSocket in front of arq as a good engineer would write it: each frame becomes a job, its worker
publishes the answer, and one pub/sub connection a process brings it back to the future that waits for that job.
"""

import asyncio
import secrets
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import uvicorn
import uvloop
from arq.connections import ArqRedis, RedisSettings, create_pool
from arq.worker import Worker
from fastapi import FastAPI, WebSocket

#: arq as it comes polls every 0.5 s, runs 10 jobs at a time and keeps results for an hour.
ARQ: dict[str, dict[str, Any]] = {"stock": {}, "tuned": {"poll_delay": 0.01, "max_jobs": 100, "keep_result": 0}}
STARTED = "bench:workers"  # how many workers have started


def answer(text: str) -> str:
    """What the analysis `process` answers."""
    return "Processed data: " + text


async def process(ctx: dict[str, Any], text: str, channel: str) -> str:
    """The same as a function of arq, which tells the relay."""
    result = answer(text)
    await ctx["redis"].publish(channel, f"{ctx['job_id']}\n{result}")
    return result


async def _started(ctx: dict[str, Any]) -> None:
    await ctx["redis"].incr(STARTED)


async def work(url: str, options: dict[str, Any]) -> None:
    """Run an arq worker until the process is ended."""
    settings = RedisSettings.from_dsn(url)
    await Worker(functions=[process], redis_settings=settings, on_startup=_started, **options).async_run()


class Answers:
    """The jobs that this process waits for, and the one channel on which all of them are answered."""

    def __init__(self, redis: ArqRedis) -> None:
        self._redis = redis
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
        await self._redis.enqueue_job("process", text, self._channel, _job_id=job)
        return await future


def relay(url: str) -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        redis = await create_pool(RedisSettings.from_dsn(url))
        app.state.answers = Answers(redis)
        async with app.state.answers.listening():
            yield
        await redis.close(close_connection_pool=True)

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
    """uvicorn with the settings of api/server.py."""

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
        "relay": lambda port, url: serve(relay(url), int(port)),
        "worker": lambda url, options: uvloop.run(work(url, ARQ[options])),
    }
    kinds[kind](*arguments)


if __name__ == "__main__":
    main(*sys.argv[1:])
