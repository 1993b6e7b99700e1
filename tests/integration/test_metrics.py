"""`GET /metrics`: the figures are those of what happened, in the formats that Prometheus reads."""

from pathlib import Path

import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from millstream.apikeys import new_key, write_keys
from tests.integration.conftest import Stack
from tests.integration.rpc import Refused, plain, rpc
from tests.integration.web import ended, problem, submit, web
from tests.processes import Process, Processes, until

Figures = dict[tuple[str, ...], float]


@pytest.fixture
async def api(stack: Stack, own_processes: Processes) -> Process:
    return await own_processes.api(stack.store, MILLSTREAM_DATA_DIR=str(stack.data), MILLSTREAM_QUEUE_DEPTH="1000")


async def figures(http: httpx.AsyncClient) -> Figures:
    """Every sample, by its name and the values of its labels, which come in the order of their names."""
    answer = await http.get("/metrics")
    assert (answer.status_code, answer.headers["content-type"].partition(";")[0]) == (200, "text/plain")
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in parse_text(answer.text)
        for sample in family.samples
    }


async def test_what_happens_is_counted(api: Process, stack: Stack) -> None:
    (stack.data / "counted.bin").write_bytes(bytes(100_000))
    async with web(api) as http:
        before = await figures(http)
        assert before["millstream_sockets", "plain"] == before["millstream_sockets", "millstream.v1"] == 0
        assert (before["millstream_store_up",], before["millstream_draining",]) == (1, 0)
        async with plain(api) as simple, rpc(api) as client:
            await simple.send("hello")
            await simple.recv()
            await client.end(await client.submit("process", {"text": "x"}))
            with pytest.raises(Refused):
                await client.submit("nothing", {})
            await client.call("job.submit", analysis="process", params={"text": "y"}, key="once")
            assert (await client.call("job.submit", analysis="process", params={"text": "y"}, key="once"))["duplicate"]
            during = await figures(http)
        assert during["millstream_sockets", "plain"] == during["millstream_sockets", "millstream.v1"] == 1
        assert during["millstream_connections",] >= before["millstream_connections",] + 2
        assert during["millstream_connections_refused_total",] == 0
        submissions = {key[1]: value for key, value in during.items() if key[0] == "millstream_submissions_total"}
        assert submissions == {"accepted": 3, "unknown_analysis": 1, "duplicate": 1}
        assert during["millstream_events_relayed_total",] >= 3
        await http.get("/files/counted.bin")
        await http.get("/files/counted.bin", headers={"Range": "bytes=0-9"})

        async def all_sent() -> bool:
            return (await figures(http))["millstream_file_sent_bytes_total",] == 100_010

        await until(all_sent, what="the bytes to be counted")
        after = await figures(http)
        assert (after["millstream_file_streams_opened_total",], after["millstream_file_streams",]) == (2, 0)
        assert after["millstream_sockets", "plain"] == 0
        assert after["process_resident_memory_bytes",] > 2**20


async def test_the_fleet_is_told_of(api: Process, stack: Stack, tmp_path: Path) -> None:
    async with web(api) as http:
        workers = (await http.get("/workers")).json()
        queues = (await http.get("/queues")).json()
        seen = await figures(http)
        assert [key[1] for key in seen if key[0] == "millstream_queue_running"] == [queue["name"] for queue in queues]
        for worker in workers:
            labels = worker["queue"], worker["worker"]
            assert seen["millstream_worker_slots", *labels] == worker["slots"]
        failed = [seen["millstream_worker_attempts_total", "failed", w["queue"], w["worker"]] for w in workers]
        assert (await ended(http, await submit(http, "read_file", {"path": "nothing"})))["status"] == "failed"

        async def counted() -> bool:
            now = await figures(http)
            return (
                sum(now["millstream_worker_attempts_total", "failed", w["queue"], w["worker"]] for w in workers)
                == sum(failed) + 1
            )

        await until(counted, what="the failure to be counted with a heartbeat")
        delayed = [await submit(http, "process", {"text": "x"}, delay_s=60) for _ in range(3)]
        assert (await figures(http))["millstream_queue_delayed", "default"] >= 3
        gate = tmp_path / "gate"
        held = await submit(http, "hold", {"gate": str(gate)})

        async def running() -> bool:
            return (await figures(http))["millstream_queue_running", "default"] >= 1

        await until(running, what="the job that runs to be seen")
        for job in (*delayed, held):
            await http.delete(f"/jobs/{job}")


async def test_openmetrics_is_spoken_to_those_who_ask(api: Process) -> None:
    async with web(api) as http:
        answer = await http.get("/metrics", headers={"Accept": "application/openmetrics-text;version=1.0.0"})
        assert answer.headers["content-type"].startswith("application/openmetrics-text")
        names = {family.name for family in parse_openmetrics(answer.text)}  # type: ignore[no-untyped-call]
    assert {"millstream_submissions", "millstream_queue_depth", "millstream_file_sent_bytes"} <= names


async def test_a_store_that_is_away_is_a_figure_and_no_error(tmp_path: Path) -> None:
    async with Processes(tmp_path) as processes:
        store = await processes.store()
        api = await processes.api(store)
        async with web(api) as http:
            assert (await figures(http))["millstream_store_up",] == 1
            await store.kill()

            async def seen() -> bool:
                return (await figures(http))["millstream_store_up",] == 0

            await until(seen, what="the outage to be seen")
            assert ("millstream_sockets", "plain") in await figures(http)


async def test_a_key_needs_its_scope(stack: Stack, own_processes: Processes, tmp_path: Path) -> None:
    scraper, user = new_key("prometheus", ["metrics"], None), new_key("ann", ["read", "submit"], None)
    write_keys(tmp_path / "keys.json", [scraper[1], user[1]])
    api = await own_processes.api(stack.store, None, MILLSTREAM_API_KEYS_FILE=str(tmp_path / "keys.json"))
    async with web(api, scraper[0]) as good, web(api, user[0]) as lesser, web(api) as nobody:
        assert ("millstream_store_up",) in await figures(good)
        problem(await good.get("/workers"), "forbidden")
        problem(await lesser.get("/metrics"), "forbidden")
        problem(await nobody.get("/metrics"), "unauthorized")
