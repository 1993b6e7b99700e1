"""API keys over HTTP and the socket: who is let in, what a key may do, and that keys come and go without a restart."""

import asyncio
import hashlib
import json
import os
import stat
import sys
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus
from websockets.typing import Subprotocol

from millstream import Client, RequestFailed
from millstream.apikeys import Scope, new_key, read_keys, write_keys
from millstream.store.embedded import free_port
from tests.integration.conftest import Stack
from tests.integration.rpc import Refused, Rpc, rpc
from tests.integration.web import JSONL, ended, problem, submit, web
from tests.processes import START_S, Process, Processes, until

READ: list[Scope] = ["read"]
SUBMIT: list[Scope] = ["submit"]


@dataclass(frozen=True)
class Guarded:
    """An API with keys: `ann` and `bob` may submit and read, `reader` and `writer` are ann's with one scope each."""

    api: Process
    file: Path
    keys: dict[str, str]

    def web(self, name: str) -> httpx.AsyncClient:
        return web(self.api, self.keys[name])

    def header(self, name: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.keys[name]}"}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def guarded(
    stack: Stack, processes: Processes, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Guarded]:
    file: Path = tmp_path_factory.mktemp("guarded") / "keys.json"
    made = {
        "ann": new_key("ann", ["submit", "read"], None),
        "bob": new_key("bob", ["submit", "read"], timedelta(days=1)),
        "reader": new_key("ann", READ, None),
        "writer": new_key("ann", SUBMIT, None),
        "boss": new_key("boss", ["admin"], None),
        "late": new_key("ann", ["admin"], timedelta(seconds=-1)),
    }
    write_keys(file, [key for _, key in made.values()])
    api = await processes.api(stack.store, MILLSTREAM_API_KEYS_FILE=str(file), MILLSTREAM_LOG_LEVEL="debug")
    yield Guarded(api, file, {name: text for name, (text, _) in made.items()})
    log = api.log.read_text()
    assert log
    for name, (text, key) in made.items():
        assert text not in log, f"the key of {name} is in the log"
        assert text.split("_", 2)[2] not in log
        assert key.hash not in log
    await asyncio.shield(api.kill())


ROUTES = [
    ("POST", "/jobs"), ("GET", "/jobs"), ("GET", "/jobs/x"), ("DELETE", "/jobs/x"), ("GET", "/jobs/x/events"),
    ("GET", "/jobs/x/result"), ("GET", "/analyses"), ("GET", "/analyses/process"), ("GET", "/workers"),
    ("GET", "/queues"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_without_a_key_nothing_is_answered(guarded: Guarded, method: str, path: str) -> None:
    good = guarded.keys["ann"]
    id, secret = good.split("_", 2)[1:]
    wrong = [
        None, f"Basic {good}", good, "Bearer",  "Bearer nonsense", f"Bearer {good[:-1]}", f"Bearer {good}x",
        f"Bearer {good.upper()}", f"Bearer ms_00000000_{secret}", f"Bearer ms_{id}_", f"Bearer {guarded.keys['late']}",
        "Bearer " + next(key.hash for key in read_keys(guarded.file) if key.id == id),
    ]  # fmt: skip
    async with web(guarded.api) as http:
        for value in wrong:
            answer = await http.request(method, path, headers={"Authorization": value} if value is not None else {})
            problem(answer, "unauthorized")
            assert answer.headers["www-authenticate"] == "Bearer"
            for part in (good, secret, "sha256"):
                assert part not in answer.text


async def test_a_body_is_not_even_read_before_the_key_is_known(guarded: Guarded) -> None:
    async with web(guarded.api) as http:
        problem(await http.post("/jobs", content=b"{", headers={"Content-Type": "application/json"}), "unauthorized")
        problem(await http.post("/jobs", content=b"x" * 2_000_000), "unauthorized")


async def test_what_needs_no_key_is_open(guarded: Guarded) -> None:
    async with web(guarded.api) as http:
        for path in ("/healthz", "/readyz", "/openapi.json", "/asyncapi.json", "/docs", "/problems/unauthorized"):
            assert (await http.get(path)).status_code == 200


async def test_the_scheme_is_read_without_regard_to_case(guarded: Guarded) -> None:
    async with web(guarded.api) as http:
        answer = await http.get("/jobs", headers={"Authorization": f"bearer   {guarded.keys['ann']}"})
        assert answer.status_code == 200


async def test_a_key_without_the_scope_is_forbidden(guarded: Guarded) -> None:
    body = {"analysis": "process", "params": {"text": "x"}}
    async with guarded.web("reader") as reader, guarded.web("writer") as writer, guarded.web("boss") as boss:
        problem(await reader.post("/jobs", json=body), "forbidden")
        for headers in ({"Prefer": "wait=5"}, {"Accept": JSONL}):
            problem(await writer.post("/jobs", json=body, headers=headers), "forbidden")
        job = await submit(writer, "process", {"text": "x"})
        for path in ("/jobs", f"/jobs/{job}", f"/jobs/{job}/result", f"/jobs/{job}/events"):
            assert "'read'" in problem(await writer.get(path), "forbidden")["detail"]
            assert (await reader.get(path)).status_code in (200, 409)
        problem(await reader.delete(f"/jobs/{job}"), "forbidden")
        for path in ("/workers", "/queues"):
            problem(await reader.get(path), "forbidden")
            assert (await boss.get(path)).status_code == 200
        assert (await ended(reader, job))["owner"] == "ann"
        assert (await boss.post("/jobs", json=body, headers={"Prefer": "wait=5"})).status_code == 200


async def test_each_method_of_the_socket_needs_its_scope(guarded: Guarded) -> None:
    async def code(client: Any, method: str, **params: Any) -> int:
        with pytest.raises(Refused) as caught:
            await client.call(method, **params)
        assert caught.value.data["type"] == "/problems/forbidden"
        return caught.value.code

    async with (
        guarded.web("ann") as ann,
        rpc(guarded.api, additional_headers=guarded.header("reader")) as reader,
        rpc(guarded.api, additional_headers=guarded.header("writer")) as writer,
    ):
        job = await submit(ann, "process", {"text": "x"}, delay_s=60)
        assert await code(reader, "job.submit", analysis="process", params={"text": "x"}) == -32003
        assert await code(reader, "job.cancel", job=job) == -32003
        assert await code(writer, "job.get", job=job) == -32003
        assert await code(writer, "job.attach", job=job) == -32003
        assert (await reader.call("job.get", job=job))["status"] == "queued"
        assert (await writer.call("job.cancel", job=job))["status"] == "cancelled"
        for client in (reader, writer):
            assert await client.call("ping") == {}
            assert await client.call("analysis.list")


async def test_another_owners_job_is_not_found_on_any_route_or_method(guarded: Guarded) -> None:
    async with (
        guarded.web("ann") as ann,
        guarded.web("bob") as bob,
        guarded.web("boss") as boss,
        rpc(guarded.api, additional_headers=guarded.header("bob")) as client,
    ):
        job = await submit(ann, "hold", key="mine")
        for other in (bob, boss):
            for path in (
                f"/jobs/{job}",
                f"/jobs/{job}/events",
                f"/jobs/{job}/result",
                f"/jobs/{job}/events?follow=false",
            ):
                theirs = problem(await other.get(path), "job_not_found")
                nobodys = (await other.get(path.replace(job, "0" * 32))).json()
                assert theirs["detail"].replace(job, "0" * 32) == nobodys["detail"]
            problem(await other.delete(f"/jobs/{job}"), "job_not_found")
            assert job not in (await other.get("/jobs")).text
        for method in ("job.get", "job.attach", "job.cancel"):
            with pytest.raises(Refused) as caught:
                await client.call(method, job=job)
            assert caught.value.code == -32005
        await client.call("job.detach", job=job)
        assert await submit(bob, "hold", key="mine") != job, "idempotency keys are an owner's own"
        assert client.events(job) == []
        assert (await ann.delete(f"/jobs/{job}")).json()["status"] == "cancelled"


async def test_a_socket_is_refused_before_the_upgrade(guarded: Guarded) -> None:
    offers: list[dict[str, Any]] = [
        {},
        {"additional_headers": {"Authorization": "Bearer x"}},
        {"additional_headers": guarded.header("late")},
    ]
    offers += [
        {"subprotocols": [Subprotocol("millstream.v1"), Subprotocol(f"bearer.{key}")]} for key in ("", "eA", "!!!")
    ]
    for options in offers:
        with pytest.raises(InvalidStatus) as caught:
            async with connect(guarded.api.ws, **options):
                pass
        response = caught.value.response
        assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer")
        assert json.loads(response.body or b"")["type"] == "/problems/unauthorized"


async def test_the_key_that_a_browser_offers_is_never_echoed(guarded: Guarded) -> None:
    offer = Subprotocol("bearer." + urlsafe_b64encode(guarded.keys["ann"].encode()).decode().rstrip("="))
    for offers, chosen in (([offer, Subprotocol("millstream.v1")], "millstream.v1"), ([offer], None)):
        async with connect(guarded.api.ws, subprotocols=offers) as socket:
            assert socket.subprotocol == chosen
            assert socket.response
            assert offer not in str(socket.response.headers)


# Keys come and go.


async def millstream(*arguments: str, **environment: str) -> tuple[int, str, str]:
    """Run the command; returns its exit code and what it wrote."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "from millstream.command import run; run()", *arguments,
        env={**os.environ, **environment}, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


async def test_the_command_makes_lists_and_revokes_keys_of_a_running_server(guarded: Guarded) -> None:
    file = ("--file", str(guarded.file))
    code, out, _ = await millstream("keys", "new", "zoe", "--scope", "submit", "--scope", "read", "--days", "3", *file)
    key = out.split()[0]
    id = key.split("_", 2)[1]
    assert (code, key.split("_")[0]) == (0, "ms")
    kept = guarded.file.read_text()
    assert stat.S_IMODE(guarded.file.stat().st_mode) == 0o600
    assert key.split("_", 2)[2] not in kept
    assert hashlib.sha256(key.encode()).hexdigest() in kept
    async with web(guarded.api, key) as http, guarded.web("ann") as ann:

        async def status_is(wanted: int) -> bool:
            return (await http.get("/jobs")).status_code == wanted

        await until(lambda: status_is(200), what="the new key to be known")
        _, listed, _ = await millstream("keys", "list", MILLSTREAM_API_KEYS_FILE=str(guarded.file))
        (line,) = [line for line in listed.splitlines() if line.startswith(id)]
        assert line.split()[1:3] == ["zoe", "submit,read"]
        assert not any(secret.hash in listed for secret in read_keys(guarded.file))
        code, out, _ = await millstream("keys", "revoke", id, *file)
        assert (code, id in out) == (0, True)
        await until(lambda: status_is(401), what="the revoked key to be refused")
        assert (await ann.get("/jobs")).status_code == 200
    code, _, err = await millstream("keys", "revoke", id, *file)
    assert (code, id in err) == (2, True)


async def test_a_file_that_is_gone_lets_nobody_in(guarded: Guarded) -> None:
    whole = guarded.file.read_bytes()
    text, key = new_key("yan", READ, None)
    async with guarded.web("ann") as ann, web(guarded.api, text) as yan:

        async def status_is(http: httpx.AsyncClient, wanted: int) -> bool:
            return (await http.get("/jobs")).status_code == wanted

        write_keys(guarded.file, [key])
        await until(lambda: status_is(yan, 200), what="the key of the new file")
        assert await status_is(ann, 401)
        guarded.file.unlink()
        await until(lambda: status_is(yan, 401), what="the file to be missed")
        guarded.file.write_bytes(whole)
        await until(lambda: status_is(ann, 200), what="the file to be back")


@pytest.mark.parametrize(
    "arguments", [("new", "a b", "--scope", "read"), ("new", "ann", "--scope", "root"), ("new", "ann")]
)
async def test_the_command_refuses_what_makes_no_key(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    code, out, err = await millstream("keys", *arguments, "--file", str(tmp_path / "keys.json"))
    assert code != 0
    assert "ms_" not in out + err
    assert not (tmp_path / "keys.json").exists()


# Starting.


async def api_says(*arguments: str, **environment: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", "millstream_api", *arguments, env={**os.environ, **environment},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    async with asyncio.timeout(START_S):
        out, _ = await process.communicate()
    return process.returncode or 0, out.decode()


async def test_a_public_address_without_keys_is_refused_with_a_message_that_helps() -> None:
    hosts = ("0.0.0.0", "::", "example.org")
    for host, (code, said) in zip(
        hosts, await asyncio.gather(*(api_says("--host", host, "--port", "0") for host in hosts)), strict=True
    ):
        assert code == 2
        for word in (host, "MILLSTREAM_API_KEYS_FILE", "MILLSTREAM_INSECURE", "millstream keys new", "127.0.0.1"):
            assert word in said
        assert "Traceback" not in said


async def test_a_key_file_that_is_none_is_refused_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "keys.json").write_text('{"keys": [{"id": "only"}]}')
    code, said = await api_says("--port", "0", MILLSTREAM_API_KEYS_FILE=str(tmp_path / "keys.json"))
    assert (code, "Traceback" in said, "keys.json" in said) == (2, False, True)


async def test_a_public_address_is_taken_with_keys_or_when_it_is_meant_so(
    stack: Stack, processes: Processes, guarded: Guarded
) -> None:
    for settings in ({"MILLSTREAM_INSECURE": "true"}, {"MILLSTREAM_API_KEYS_FILE": str(guarded.file)}):
        port = free_port()
        arguments = [sys.executable, "-P", "-m", "millstream_api", "--host", "0.0.0.0", "--port", str(port)]
        environment = {"MILLSTREAM_REDIS_URL": stack.store.url, **settings}
        process = Process(
            arguments, environment, processes.directory / f"public-{port}.log", f"http://127.0.0.1:{port}"
        )
        processes.started.append(process)
        await process.start()
        await processes.answers(process)
        await process.kill()


@pytest.mark.parametrize("how", ["revoked", "expired", "other scopes"])
async def test_whoever_came_with_a_key_leaves_with_it(
    stack: Stack, own_processes: Processes, tmp_path: Path, how: str
) -> None:
    ann, bob = new_key("ann", ["submit", "read"], None), new_key("bob", ["submit", "read"], None)
    file, gate = tmp_path / "keys.json", tmp_path / "gate"
    write_keys(file, [ann[1], bob[1]])
    api = await own_processes.api(stack.store, None, MILLSTREAM_API_KEYS_FILE=str(file))
    headers = {"Authorization": f"Bearer {ann[0]}"}
    async with (
        web(api, ann[0]) as http,
        connect(api.ws, additional_headers=headers, proxy=None) as plain,
        rpc(api, additional_headers=headers) as client,
        rpc(api, additional_headers={"Authorization": f"Bearer {bob[0]}"}) as other,
    ):
        job = await client.submit("hold", {"gate": str(gate)})
        async with http.stream("GET", f"/jobs/{job}/events", headers={"Accept": JSONL}) as stream:
            lines = stream.aiter_lines()
            assert json.loads(await anext(lines))["type"] == "queued"
            past = "2001-01-01T00:00:00+00:00"
            changed = {
                "revoked": [],
                "expired": [replace(ann[1], expires=past)],
                "other scopes": [replace(ann[1], scopes=READ)],
            }[how]
            write_keys(file, [*changed, bob[1]])
            await client.wait(lambda: client.close_code is not None, what="the socket to be closed")
            await plain.wait_closed()
            assert client.close_code == plain.close_code == 1008
            gate.touch()
            rest = [json.loads(line)["type"] async for line in lines]
            assert "succeeded" not in rest, "what happened afterwards is not told"
        assert await other.call("ping") == {}
        assert (await other.end(await other.submit("process", {"text": "x"})))[-1]["type"] == "succeeded"


@dataclass(frozen=True)
class Leaving:
    api: Process
    key: str
    kept: str
    revoke: Callable[[], None]

    def rpc(self) -> AbstractAsyncContextManager[Rpc]:
        return rpc(self.api, additional_headers={"Authorization": f"Bearer {self.key}"})


@pytest.fixture
async def leaving(stack: Stack, own_processes: Processes, tmp_path: Path) -> Leaving:
    """An API whose key file has two keys of eve's, one of which is about to be revoked."""
    (text, key), (other, kept) = (new_key("eve", ["submit", "read", "files:read", "metrics"], None) for _ in range(2))
    file, data = tmp_path / "keys.json", tmp_path / "data"
    write_keys(file, [key, kept])
    settings = {"MILLSTREAM_API_KEYS_FILE": str(file), "MILLSTREAM_DATA_DIR": str(data)}
    return Leaving(
        await own_processes.api(stack.store, None, **settings), text, other, lambda: write_keys(file, [kept])
    )


async def test_a_socket_that_reads_nothing_leaves_with_its_key_too(leaving: Leaving) -> None:
    async with leaving.rpc() as deaf, leaving.rpc() as client, web(leaving.api, leaving.kept) as http:
        large = await submit(http, "process", {"text": "x" * 200_000})
        await ended(http, large)
        deaf.socket.transport.pause_reading()
        for number in range(100):
            await deaf.send({"jsonrpc": "2.0", "method": "job.get", "params": {"job": large}, "id": number})
        leaving.revoke()
        await client.wait(lambda: client.close_code is not None, what="the other socket of this key to be closed")
        open_now = 'millstream_sockets{protocol="millstream.v1"} 0.0'
        assert open_now in (await http.get("/metrics")).text.splitlines(), "this one counts no more either"
        late = {"analysis": "process", "params": {"text": "late"}}
        await deaf.send({"jsonrpc": "2.0", "method": "job.submit", "params": late, "id": "late"})
        deaf.socket.transport.resume_reading()
        await deaf.wait(lambda: deaf.close_code is not None, what="the socket to be closed")
        assert deaf.close_code == 1008
        assert [job["job"] for job in (await http.get("/jobs")).json()] == [large]


async def test_a_followed_file_ends_with_its_key(leaving: Leaving) -> None:
    (data := Path(leaving.api.environment["MILLSTREAM_DATA_DIR"])).mkdir(exist_ok=True)
    (data / "app.log").write_text("one\n")
    async with web(leaving.api, leaving.key) as http, http.stream("GET", "/files/app.log?follow=true") as answer:
        parts = answer.aiter_bytes()
        assert await anext(parts) == b"one\n"
        leaving.revoke()
        assert [part async for part in parts] == []


async def test_who_waits_for_a_job_hears_nothing_of_it_once_the_key_is_revoked(
    leaving: Leaving, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    body = {"analysis": "hold", "params": {"gate": str(gate)}}
    async with web(leaving.api, leaving.key) as http, web(leaving.api, leaving.kept) as kept, leaving.rpc() as client:
        waiting = asyncio.create_task(http.post("/jobs", json=body, headers={"Prefer": "wait=20"}))

        async def running() -> bool:
            return bool((await kept.get("/jobs", params={"status": "running"})).json())

        await until(running, what="the job to run")
        leaving.revoke()
        await client.wait(lambda: client.close_code is not None, what="the key to be gone")
        gate.touch()
        problem(await waiting, "unauthorized")


async def test_a_key_that_may_only_submit_learns_no_result(guarded: Guarded) -> None:
    body = {"analysis": "process", "params": {"text": "a secret"}, "key": "once"}
    async with (
        guarded.web("ann") as ann,
        guarded.web("writer") as writer,
        rpc(guarded.api, additional_headers=guarded.header("writer")) as client,
    ):
        done = (await ann.post("/jobs", json=body, headers={"Prefer": "wait=10"})).json()
        job = done["job"]
        assert "a secret" in done["result"]
        answers = [
            (await writer.delete(f"/jobs/{job}")).json(),
            (await writer.post("/jobs", json=body)).json(),
            await client.call("job.cancel", job=job),
        ]
        for answer in answers:
            assert (answer["job"], answer["status"]) == (job, "succeeded")
            assert (answer["result"], answer["error"], answer["progress"]) == (None, None, None)
        assert (await ann.delete(f"/jobs/{job}")).json()["result"] == done["result"]


# The Python client.


async def test_a_client_whose_key_is_revoked_waits_no_longer_and_says_why(leaving: Leaving) -> None:
    async with asyncio.timeout(20), Client(leaving.api.ws, key=leaving.key) as client:
        job = await client.submit("hold", {"gate": "/nowhere"})
        leaving.revoke()
        for waiting in (job.done(), client.submit("process", {"text": "x"}), client.call("ping")):
            with pytest.raises(RequestFailed, match="not known") as caught:
                await waiting
            assert (caught.value.slug, caught.value.code) == ("unauthorized", -32001)


async def test_a_client_that_may_not_follow_its_job_again_waits_no_longer_and_says_why(guarded: Guarded) -> None:
    async with asyncio.timeout(20), Client(guarded.api.ws, key=guarded.keys["writer"]) as client:
        job = await client.submit("hold", {"gate": "/nowhere"})
        await client.drop_connection()
        with pytest.raises(RequestFailed, match="lacks the scope 'read'"):
            await job.done()
        assert (await job.cancel())["status"] == "cancelled", "what it may do, it still does"


async def test_a_client_without_a_key_is_told_so(guarded: Guarded) -> None:
    with pytest.raises(RequestFailed, match="A key is needed"):
        async with Client(guarded.api.ws):
            pass


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_a_client_asks_no_proxy_for_this_machine(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    for name in ("http_proxy", "https_proxy", "socks_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # answers nobody
    async with Client(stack.api.ws.replace("127.0.0.1", host)) as client:
        assert await client.call("ping") == {}
