"""The same job as a good engineer would build it on arq, and an echo without any queue; each a process:

    python -m tests.benchmarks.peers api KIND PORT REDIS_URL
    python -m tests.benchmarks.peers worker KIND REDIS_URL

KIND is `echo`, `arq` (as it comes) or `arq-tuned` (poll 10 ms, 100 slots). The API enqueues each
frame and relays what the worker publishes: one pub/sub connection a process, a future for each job.
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import uvicorn
from arq import create_pool
from arq.connections import ArqRedis, RedisSettings
from arq.worker import Worker, func
from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from redis.asyncio import Redis

CHANNEL = "answers"
WORKERS: dict[str, dict[str, Any]] = {
    "arq": {},
    "arq-tuned": {"poll_delay": 0.01, "max_jobs": 100},
}


async def process(ctx: dict[str, Any], text: str) -> str:
    answer = "Processed data: " + text
    redis: ArqRedis = ctx["redis"]
    await redis.publish(CHANNEL, f"{ctx['job_id']} {answer}")
    return answer


def make_app(kind: str, url: str) -> FastAPI:
    waiting: dict[str, asyncio.Future[str]] = {}
    pools: list[ArqRedis] = []

    async def relay(redis: Redis) -> None:
        async with redis.pubsub() as pubsub:
            await pubsub.subscribe(CHANNEL)
            async for message in pubsub.listen():
                if message["type"] == "message":
                    job, _, answer = message["data"].decode().partition(" ")
                    if future := waiting.pop(job, None):
                        future.set_result(answer)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        if kind == "echo":
            yield
            return
        pools.append(await create_pool(RedisSettings.from_dsn(url)))
        relaying = asyncio.create_task(relay(Redis.from_url(url)))
        yield
        relaying.cancel()

    app = FastAPI(lifespan=lifespan)

    async def answered(text: str) -> str:
        if kind == "echo":
            return "Processed data: " + text
        job = uuid4().hex
        waiting[job] = asyncio.get_running_loop().create_future()
        await pools[0].enqueue_job("process", text, _job_id=job)
        return await waiting[job]

    @app.websocket("/ws")
    async def socket(websocket: WebSocket) -> None:
        """Frames run side by side; answers leave in the order of the frames."""
        await websocket.accept()
        answers: asyncio.Queue[asyncio.Task[str]] = asyncio.Queue()

        async def write() -> None:
            while True:
                await websocket.send_text(await (await answers.get()))

        writing = asyncio.create_task(write())
        try:
            while True:
                answers.put_nowait(asyncio.create_task(answered(await websocket.receive_text())))
        except WebSocketDisconnect:
            writing.cancel()

    return app


def main() -> None:
    role, kind, *rest = sys.argv[1:]
    if role == "api":
        uvicorn.run(
            make_app(kind, rest[1]), host="127.0.0.1", port=int(rest[0]), loop="uvloop", ws="websockets-sansio",
            ws_per_message_deflate=False, log_level="warning", access_log=False,
        )  # fmt: skip
    else:
        functions = [func(process, name="process")]
        settings = RedisSettings.from_dsn(rest[0])
        Worker(functions=functions, redis_settings=settings, **WORKERS[kind]).run()


if __name__ == "__main__":
    main()
