"""Who may open a socket, under which protocol."""

import asyncio
import json
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus
from websockets.typing import Origin, Subprotocol

from millstream.apikeys import new_key, write_keys
from tests.integration.conftest import Stack
from tests.integration.rpc import Refused, Rpc, plain, rpc
from tests.processes import Process, Processes


async def refused(api: Process, **options: Any) -> tuple[int, dict[str, Any]]:
    """The status and the problem with which a handshake is refused."""
    with pytest.raises(InvalidStatus) as caught:
        async with connect(api.ws, **options):
            pass
    response = caught.value.response
    assert response.headers["content-type"] == "application/problem+json"
    return response.status_code, json.loads(response.body or b"")


def protocols(*names: str) -> list[Subprotocol]:
    return [Subprotocol(name) for name in names]


@pytest.mark.parametrize("offered", [["chat"], ["millstream.v2"], ["chat", "MILLSTREAM.V1"]])
async def test_a_client_that_offers_only_unknown_protocols_is_refused_in_the_handshake(
    stack: Stack, offered: list[str]
) -> None:
    status, problem = await refused(stack.api, subprotocols=protocols(*offered))
    assert (status, problem["type"]) == (400, "/problems/invalid_request")
    assert "millstream.v1" in problem["detail"]


async def test_a_known_protocol_is_chosen_among_others(stack: Stack) -> None:
    async with connect(stack.api.ws, subprotocols=protocols("chat", "millstream.v1")) as socket:
        assert socket.subprotocol == "millstream.v1"


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "http://127.0.0.1", "null", "http://127.0.0.1:1", "file://"]
)
async def test_a_page_of_another_origin_may_not_open_a_socket(stack: Stack, origin: str) -> None:
    status, problem = await refused(stack.api, origin=Origin(origin))
    assert (status, problem["type"]) == (403, "/problems/forbidden")


async def test_a_page_of_another_scheme_at_the_same_address_is_of_another_origin(stack: Stack) -> None:
    status, _ = await refused(stack.api, origin=Origin(stack.api.url.replace("http", "https")))
    assert status == 403


async def test_a_page_of_the_same_origin_may_open_a_socket(stack: Stack) -> None:
    async with plain(stack.api, origin=Origin(stack.api.url)) as socket:
        await socket.send("same")
        assert await socket.recv() == "Processed data: same"


# An API with keys, and one more origin.


class Secured:
    """`ann` and `bob` may do everything, `reader` may only read, `late` has expired."""

    def __init__(self, api: Process, keys: dict[str, str]) -> None:
        self.api = api
        self.keys = keys

    def header(self, name: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.keys[name]}"}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def secured(
    stack: Stack, processes: Processes, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Secured]:
    path: Path = tmp_path_factory.mktemp("keys") / "keys.json"
    made = {
        "ann": new_key("ann", ["submit", "read"], None),
        "bob": new_key("bob", ["submit", "read"], timedelta(days=1)),
        "reader": new_key("ann", ["read"], None),
        "late": new_key("ann", ["admin"], timedelta(days=-1)),
    }
    write_keys(path, [kept for _, kept in made.values()])
    api = await processes.api(
        stack.store, MILLSTREAM_API_KEYS_FILE=str(path), MILLSTREAM_ORIGINS="https://a.example, https://b.example"
    )
    yield Secured(api, {name: text for name, (text, _) in made.items()})
    await api.kill()


async def test_without_a_key_or_with_a_wrong_one_the_handshake_is_refused(secured: Secured) -> None:
    good = secured.keys["ann"]
    wrong = [{}, {"Authorization": "Bearer nonsense"}, {"Authorization": f"Basic {good}"}]
    wrong += [{"Authorization": f"Bearer {good[:-1]}"}, {"Authorization": f"Bearer {good}x"}, secured.header("late")]
    for headers in wrong:
        status, problem = await refused(secured.api, additional_headers=headers)
        assert (status, problem["type"]) == (401, "/problems/unauthorized")


async def test_a_key_in_the_header_opens_a_socket(secured: Secured) -> None:
    async with plain(secured.api, additional_headers=secured.header("ann")) as socket:
        await socket.send("with a key")
        assert await socket.recv() == "Processed data: with a key"


async def test_a_browser_offers_its_key_as_a_protocol_that_is_never_echoed(secured: Secured) -> None:
    offer = "bearer." + urlsafe_b64encode(secured.keys["ann"].encode()).decode().rstrip("=")
    async with connect(secured.api.ws, subprotocols=protocols("millstream.v1", offer)) as socket:
        assert socket.subprotocol == "millstream.v1"
    async with connect(secured.api.ws, subprotocols=protocols(offer)) as socket:
        assert socket.subprotocol is None
    for wrong in ("bearer.!!!", "bearer.", "bearer." + urlsafe_b64encode(b"ms_1_2").decode().rstrip("=")):
        status, _ = await refused(secured.api, subprotocols=protocols("millstream.v1", wrong))
        assert status == 401


async def test_a_key_is_taken_with_padding_and_said_by_no_refusal(secured: Secured) -> None:
    padded = urlsafe_b64encode(secured.keys["ann"].encode()).decode()
    assert padded.endswith("=")

    async def upgrade(protocols: str) -> tuple[bytes, bytes]:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(secured.api.url.rpartition(":")[2]))
        writer.write(
            b"GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n" + protocols.encode() + b"\r\n\r\n"
        )
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        rest = await asyncio.wait_for(reader.read(2000), 10) if b" 101 " not in head else b""
        writer.close()
        return head, rest

    head, _ = await upgrade(f"Sec-WebSocket-Protocol: millstream.v1, bearer.{padded}")
    assert head.startswith(b"HTTP/1.1 101")
    assert b"sec-websocket-protocol: millstream.v1\r\n" in head.lower()
    quoted, _ = await upgrade(f'Sec-WebSocket-Protocol: "bearer.{padded}"')
    assert quoted.startswith(b"HTTP/1.1 101")
    assert b"sec-websocket-protocol" not in quoted.lower()
    head, rest = await upgrade(f"Sec-WebSocket-Protocol: chat, bearer.{padded}")
    assert head.startswith(b"HTTP/1.1 400")
    assert padded.rstrip("=").encode() not in head + rest
    for wrong in (f"millstream.v1 bearer.{padded}", f"bearer.{padded} x", ",,,", f"bearer {padded}", f"x{padded}"):
        head, rest = await upgrade(f"Sec-WebSocket-Protocol: {wrong}")
        assert head.startswith(b"HTTP/1.1 401")
        assert padded.rstrip("=").encode() not in head + rest
        assert b"application/problem+json" in head


async def test_a_listed_origin_may_open_a_socket_and_others_may_not(secured: Secured) -> None:
    headers = secured.header("ann")
    for origin in ("https://a.example", "https://b.example", secured.api.url):
        async with rpc(secured.api, additional_headers=headers, origin=Origin(origin)) as client:
            assert await client.call("ping") == {}
    status, _ = await refused(secured.api, additional_headers=headers, origin=Origin("https://c.example"))
    assert status == 403


async def test_behind_a_proxy_that_speaks_https_the_pages_origin_is_the_proxys(secured: Secured) -> None:
    headers = secured.header("ann")
    origin = Origin(secured.api.url.replace("http", "https"))
    async with rpc(secured.api, additional_headers=headers | {"X-Forwarded-Proto": "https"}, origin=origin) as client:
        assert await client.call("ping") == {}
    status, _ = await refused(secured.api, additional_headers=headers, origin=origin)
    assert status == 403


async def error_of(client: Rpc, method: str, **params: Any) -> int:
    with pytest.raises(Refused) as caught:
        await client.call(method, **params)
    assert await client.call("ping") == {}
    return caught.value.code


async def test_a_key_that_may_only_read_is_forbidden_to_submit_and_to_cancel(secured: Secured) -> None:
    async with (
        rpc(secured.api, additional_headers=secured.header("ann")) as owner,
        rpc(secured.api, additional_headers=secured.header("reader")) as reader,
    ):
        job = await owner.submit("process", {"text": "x"})
        assert await error_of(reader, "job.submit", analysis="process", params={"text": "x"}) == -32003
        assert await error_of(reader, "job.cancel", job=job) == -32003
        await owner.end(job)
        assert (await reader.call("job.get", job=job))["owner"] == "ann"
        await reader.call("job.attach", job=job)
        assert (await reader.end(job))[-1]["type"] == "succeeded"


async def test_the_jobs_of_another_owner_are_not_there(secured: Secured) -> None:
    async with (
        rpc(secured.api, additional_headers=secured.header("ann")) as ann,
        rpc(secured.api, additional_headers=secured.header("bob")) as bob,
    ):
        job = await ann.submit("process", {"text": "x", "delay_s": 60})
        for method in ("job.get", "job.attach", "job.cancel"):
            assert await error_of(bob, method, job=job) == -32005
        assert await bob.call("job.detach", job=job) == {}
        assert (await ann.call("job.get", job=job))["status"] in ("queued", "running")
        await ann.call("job.cancel", job=job)
        assert (await ann.end(job))[-1]["type"] == "cancelled"
