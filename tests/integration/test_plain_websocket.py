"""Plain mode over real sockets, processes and a real store."""

import json
import random
from pathlib import Path

import pytest
import redis.asyncio as redis
from websockets.exceptions import ConnectionClosed

from millstream.store import keys
from tests.integration.conftest import Client, Stack
from tests.integration.rpc import plain
from tests.processes import until


async def test_hello_is_answered_with_exactly_what_the_contract_says(stack: Stack) -> None:
    async with plain(stack.api) as socket:
        await socket.send("hello")
        assert await socket.recv() == "Processed data: hello"


@pytest.mark.parametrize("text", ["", " ", "zeile\nzeile\r\n", "Ünï \U0001f600 \u2028", '{"not": "parsed"}', "\u0000"])
async def test_any_text_is_data(stack: Stack, text: str) -> None:
    async with plain(stack.api) as socket:
        await socket.send(text)
        assert await socket.recv() == f"Processed data: {text}"


async def test_text_that_is_no_utf8_ends_the_socket_and_is_no_error_of_ours(stack: Stack) -> None:
    before = stack.api.log.read_text()
    async with plain(stack.api) as socket:
        await socket.send(b"\xff", text=True)
        with pytest.raises(ConnectionClosed) as closed:
            await socket.recv()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1007  # RFC 6455 §7.4.1
    assert "Traceback" not in stack.api.log.read_text().removeprefix(before)


async def test_a_thousand_frames_sent_without_waiting_are_answered_in_their_order(stack: Stack) -> None:
    chance = random.Random(1)
    texts = [f"{chance.choice([0, 0, 0.005, 0.05])} number {number}" for number in range(1000)]
    async with plain(stack.api, "?analysis=nap") as socket:
        for text in texts:
            await socket.send(text)
        assert [await socket.recv() for _ in texts] == texts


async def test_frames_run_side_by_side(stack: Stack, tmp_path: Path) -> None:
    gates = [tmp_path / str(number) for number in range(20)]
    async with redis.Redis.from_url(stack.store.url) as client, plain(stack.api, "?analysis=wait_for") as socket:
        for gate in gates:
            await socket.send(str(gate))
        await running_jobs(client, "wait_for", 20)
        for gate in reversed(gates):
            gate.touch()
        assert [await socket.recv() for _ in gates] == [str(gate) for gate in gates]


async def test_a_failing_analysis_is_an_error_in_its_turn_and_the_socket_goes_on(stack: Stack) -> None:
    async with plain(stack.api, "?analysis=stumble") as socket:
        for text in ("one", "", "three"):
            await socket.send(text)
        assert [await socket.recv() for _ in range(3)] == ["Error: one", "Error: ValueError", "Error: three"]


async def test_a_result_that_is_no_string_comes_as_json(stack: Stack) -> None:
    async with plain(stack.api, "?analysis=measure") as socket:
        await socket.send("é")
        assert json.loads(await socket.recv()) == {"text": "é", "length": 1, "none": None}


async def test_nothing_but_answers_is_sent(stack: Stack) -> None:
    async with plain(stack.api, "?analysis=letters") as socket:
        for text in ("abc", "def"):
            await socket.send(text)
            assert await socket.recv() == "null"  # and what else there was of the first would come before the second


@pytest.mark.parametrize(
    ("query", "expected"),
    [("?analysis=nothing", "There is no analysis 'nothing'"), ("?analysis=flaky", "flaky: "), ("?analysis=", "''")],
)
async def test_what_cannot_be_run_is_an_error_in_words(stack: Stack, query: str, expected: str) -> None:
    async with plain(stack.api, query) as socket:
        await socket.send("x")
        answer = str(await socket.recv())
        assert answer.startswith("Error: ")
        assert expected in answer


async def test_binary_closes_with_1003(stack: Stack) -> None:
    async with plain(stack.api) as socket:
        await socket.send(b"hello")
        with pytest.raises(ConnectionClosed):
            await socket.recv()
        assert socket.close_code == 1003


async def test_a_job_runs_on_when_its_client_has_left(stack: Stack, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    async with redis.Redis.from_url(stack.store.url) as client:
        async with plain(stack.api, "?analysis=wait_for") as socket:
            await socket.send(str(gate))
            (job,) = await running_jobs(client, "wait_for")
        gate.touch()

        async def succeeded() -> bool:
            return bool(await client.hget(job, "status") == b"succeeded")

        await until(succeeded, what="the end of the job")


async def running_jobs(client: Client, analysis: str, count: int = 1) -> list[str]:
    """The records of the running jobs of an analysis, once there are so many."""
    found: list[str] = []

    async def all_found() -> bool:
        records = [key.decode() async for key in client.scan_iter(f"{keys.JOB}*")]
        wanted = [analysis.encode(), b"running"]
        found[:] = [key for key in records if await client.hmget(key, "analysis", "status") == wanted]
        return len(found) == count

    await until(all_found, what=f"{count} jobs of {analysis}")
    return found
