"""What a worker of any version has advertised: what cannot be used takes nothing else with it."""

import json

import pytest

from millstream.store import keys
from millstream.store.store import Store
from millstream_api.jobs import commands
from millstream_worker.loading import load_analyses
from tests.integration.conftest import Client
from tests.integration.web import submit, web
from tests.integration.within import within
from tests.processes import Process, Processes

ODD = {"name": "odd", "description": "", "result_schema": {}, "timeout_s": 1, "queue": "default"}
NESTED = b"[" * 300 + b"]" * 300
BAD = {
    "a schema that is none": json.dumps({**ODD, "params_schema": {"properties": {"n": {"required": True}}}}).encode(),
    "a reference to elsewhere": json.dumps({**ODD, "params_schema": {"$ref": "http://127.0.0.1:9/x"}}).encode(),
    "nested too deep": json.dumps({**ODD, "params_schema": {"x": 1}}).encode().replace(b"1}", NESTED + b"}"),
    "not JSON": b"odd",
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
async def test_an_api_that_starts_beside_a_bad_entry_serves_all_others_and_says_once_what_is_wrong(
    store: Store, client: Client, valkey: Process, own_processes: Processes, bad: bytes
) -> None:
    await store.advertise([analysis.advertisement(60) for analysis in load_analyses("").values()])
    await client.hset(keys.ANALYSES, "odd", bad)
    api = await own_processes.api(valkey)
    async with web(api) as http:
        for _ in range(3):
            listed = await http.get("/analyses")
            assert listed.status_code == 200
            assert [entry["name"] for entry in listed.json()] == ["process", "text.stats"]
        assert (await http.get("/openapi.json")).status_code == 200
        assert (await http.get("/analyses/odd")).status_code == 404
        await submit(http, "process", {"text": "x"})
        refused = await http.post("/jobs", json={"analysis": "odd", "params": {}})
        assert (refused.status_code, refused.json()["type"]) == (404, "/problems/unknown_analysis")
    assert api.log.read_text().count("an advertised analysis cannot be used") == 1


async def test_an_api_forgets_an_analysis_too_when_its_workers_are_long_gone(
    store: Store, client: Client, valkey: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    advertised = [analysis.advertisement(60) for analysis in load_analyses("").values()]
    await store.advertise(advertised)
    async with within(valkey) as here, web(here.api) as http:
        await submit(http, "process", {"text": "x"})
        await client.zadd(keys.KNOWN, {"process": 1})
        monkeypatch.setattr(commands, "STALE_S", 0)
        refused = await http.post("/jobs", json={"analysis": "process", "params": {"text": "x"}})
        assert (refused.status_code, refused.json()["type"]) == (404, "/problems/unknown_analysis")
        assert list(here.commands.catalog.entries) == ["text.stats"]
