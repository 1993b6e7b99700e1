"""A worker process: its health check, how it leaves, and what it tells a store that forgot."""

import asyncio
import signal
import socket

import pytest

from millstream.store import keys
from millstream.store.embedded import free_port
from millstream.store.store import Store
from millstream_worker.__main__ import worker
from tests.integration.conftest import ANALYSES, Client
from tests.integration.jobs import a_job, renew, types
from tests.processes import Process, Processes, until


async def answer(url: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """What `--check` says, by its exit code and in words."""
    code = await asyncio.to_thread(worker, redis=url, check=True)
    return code, capsys.readouterr().out


async def test_a_host_is_healthy_while_a_worker_of_its_own_sends_heartbeats(
    store: Store, client: Client, valkey: Process, capsys: pytest.CaptureFixture[str]
) -> None:
    none = (1, "No worker on this host has sent a recent heartbeat.\n")
    assert await answer(valkey.url, capsys) == none
    await renew(store, "elsewhere-1-ab", 60)
    await renew(store, f"{socket.gethostname()}2-1-ab", 60)
    assert await answer(valkey.url, capsys) == none
    mine = f"{socket.gethostname()}-1-ab"
    await renew(store, mine, 60)
    assert await answer(valkey.url, capsys) == (0, "")
    await client.delete(keys.WORKER + mine)  # it has run out, and the list of workers still has the name
    assert await answer(valkey.url, capsys) == none


async def test_a_host_whose_store_is_away_is_not_healthy(capsys: pytest.CaptureFixture[str]) -> None:
    code, said = await answer(f"redis://127.0.0.1:{free_port()}/0", capsys)
    assert code == 1
    assert said.startswith("The store cannot be reached: ")


async def test_a_store_that_forgot_the_analyses_is_told_again_and_a_second_signal_ends_a_worker_at_once(
    store: Store, client: Client, valkey: Process, own_processes: Processes
) -> None:
    process = await own_processes.worker(
        valkey, MILLSTREAM_ANALYSES=ANALYSES, MILLSTREAM_LEASE_S="0.5", MILLSTREAM_FINISH_S="3600"
    )
    known = await client.hkeys(keys.ANALYSES)
    assert b"hold" in known
    await client.delete(keys.ANALYSES)

    async def told() -> bool:
        return bool(await client.hkeys(keys.ANALYSES) == known)

    await until(told, what="the worker to say again what it knows")

    body = b'{"f":"hold","a":[],"k":{},"t":null,"et":1}'
    await store.submit(a_job("j", analysis="hold", body=body, max_attempts=2))

    async def holding() -> bool:
        return await types(store, "j") == ["queued", "started", "log"]

    await until(holding, what="the job to run")
    process.signal(signal.SIGTERM)

    async def leaving() -> bool:
        return "draining" in process.log.read_text()

    await until(leaving, what="the worker to hear that it is to leave")
    process.signal(signal.SIGTERM)
    assert await process.ended() == 1
