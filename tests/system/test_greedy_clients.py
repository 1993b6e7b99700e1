"""Whatever one client asks for, and however little of it it reads, it costs the server little more than one answer."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.typing import Subprotocol

from tests.processes import Processes
from tests.system.stack import start
from tests.system.test_slow_reader import Memory
from tests.system.witness import witness

RESULT_BYTES = 1_000_000
ALLOWED_BYTES = 64 * 1024 * 1024
Answers = list[dict[str, Any]]


def get(id: int, job: str) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": id, "method": "job.get", "params": {"job": job}}


async def in_batches(socket: ClientConnection, job: str) -> None:
    for batch in range(4):
        await socket.send(json.dumps([get(100 * batch + n, job) for n in range(100)]))


async def one_by_one(socket: ClientConnection, job: str) -> None:
    for id in range(1000):
        await socket.send(json.dumps(get(id, job)))


async def attach_again_and_again(socket: ClientConnection, job: str) -> None:
    for id in range(1000):
        await socket.send(json.dumps({**get(id, job), "method": "job.attach"}))


def whole(answers: Answers) -> bool:
    return all(len(answer["result"]["result"]) > RESULT_BYTES for answer in answers)


def some_refused(answers: Answers) -> bool:
    refused = [answer["error"]["data"]["type"] for answer in answers if "error" in answer]
    return set(refused) == {"/problems/payload_too_large"} and len(refused) < len(answers)


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("ask", "count", "as_expected"),
    [(in_batches, 400, some_refused), (one_by_one, 1000, whole), (attach_again_and_again, 1000, whole)],
)
async def test_answers_that_are_not_read_are_not_made(
    processes: Processes,
    ask: Callable[[ClientConnection, str], Any],
    count: int,
    as_expected: Callable[[Answers], bool],
) -> None:
    stack = await start(processes)
    async with witness(stack.api) as looker:
        job = await looker.submit("process", {"text": "x" * RESULT_BYTES})
        await looker.ends(job)
        for _ in range(5):  # let the API have its working memory before it is measured
            await looker.call("job.get", job=job)
        memory = Memory(stack.api)
        watching = asyncio.create_task(memory.watch())
        protocols = [Subprotocol("millstream.v1")]
        async with connect(
            stack.api.ws, subprotocols=protocols, max_queue=1, max_size=None, compression=None, ping_interval=None
        ) as greedy:
            asking = asyncio.create_task(ask(greedy, job))
            for _ in range(100):
                await looker.call("job.get", job=job)  # others are served meanwhile
            answers: Answers = []
            async for frame in greedy:
                message = json.loads(frame)
                answers += message if isinstance(message, list) else [message] if "id" in message else []
                if len(answers) == count:
                    break
            await asking
        watching.cancel()
    assert [answer["id"] for answer in answers] == list(range(count))
    assert as_expected(answers)
    print(f"memory: {memory.first / 2**20:.1f} MiB, +{(memory.most - memory.first) / 2**20:.1f}")
    assert memory.most - memory.first <= ALLOWED_BYTES
