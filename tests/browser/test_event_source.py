"""A browser's own EventSource, WebSocket and pages."""

import signal
from base64 import urlsafe_b64encode
from pathlib import Path

import httpx
import pytest
from playwright.async_api import Browser

from millstream.apikeys import new_key, write_keys
from tests.browser.conftest import Live
from tests.processes import until

WATCH = """job => {
    window.seen = []; window.opened = 0;
    const source = new EventSource(`/jobs/${job}/events`);
    source.onopen = () => window.opened++;
    source.onerror = () => { window.state = source.readyState };
    for (const type of ["queued", "started", "chunk", "log", "retrying", "succeeded", "failed", "cancelled", "gap"])
        source.addEventListener(type, event => {
            window.seen.push([event.type, JSON.parse(event.data).seq, event.lastEventId]);
        });
}"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_an_event_source_survives_a_restart_in_mid_stream(
    live: Live, browser: Browser, number: signal.Signals
) -> None:
    page = await browser.new_page()
    await page.goto(f"{live.api.url}/healthz")  # a document without a policy: Playwright waits by eval
    async with httpx.AsyncClient(base_url=live.api.url, trust_env=False) as http:
        asked = {"analysis": "count", "params": {"to": 300, "pause_s": 0.02}}
        job = (await http.post("/jobs", json=asked)).json()["job"]
    await page.evaluate(WATCH, job)
    await page.wait_for_function("window.seen.length > 50")
    live.api.signal(number)
    await live.api.ended()
    await live.api.start()
    await page.wait_for_function("window.seen.some(event => event[0] == 'succeeded')", timeout=30_000)
    seen = await page.evaluate("window.seen")
    assert [seq for _, seq, _ in seen] == list(range(1, 304)), "every event once, in order"
    assert [kind for kind, _, _ in seen] == ["queued", "started", *["chunk"] * 300, "succeeded"]
    assert await page.evaluate("window.opened") >= 2
    # After the end it comes back once more, is told 204, and stays away.
    await page.wait_for_function("window.state === EventSource.CLOSED", timeout=30_000)
    assert len(await page.evaluate("window.seen")) == 303


async def test_a_page_opens_a_socket_with_its_key_in_a_protocol(live: Live, browser: Browser, tmp_path: Path) -> None:
    text, key = new_key("ann", ["submit", "read"], None)
    write_keys(tmp_path / "keys.json", [key])
    api = await live.processes.api(live.store, None, MILLSTREAM_API_KEYS_FILE=str(tmp_path / "keys.json"))
    page = await browser.new_page()
    await page.goto(f"{api.url}/asyncapi")

    async def answer(key: str) -> list[str]:
        offered = ["millstream.v1", "bearer." + urlsafe_b64encode(key.encode()).decode().rstrip("=")]
        told: list[str] = await page.evaluate(
            """([url, offered]) => new Promise(resolve => {
                const socket = new WebSocket(url, offered);
                socket.onopen = () => socket.send('{"jsonrpc":"2.0","id":1,"method":"ping"}');
                socket.onmessage = event => resolve([socket.protocol, event.data]);
                socket.onerror = () => resolve(["refused"]);
            })""",
            [api.ws, offered],
        )
        return told

    assert await answer(text) == ["millstream.v1", '{"jsonrpc":"2.0","result":{},"id":1}']
    assert await answer(text + "x") == ["refused"]


@pytest.mark.parametrize("path", ["/docs", "/asyncapi", "/problems", "/problems/queue_full"])
async def test_the_pages_need_no_other_site(live: Live, browser: Browser, path: str, tmp_path: Path) -> None:
    page = await browser.new_page()
    asked, wrong = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("console", lambda message: wrong.append(message.text) if "Security Policy" in message.text else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    await page.goto(live.api.url + path)
    await page.wait_for_load_state("networkidle")
    if path == "/docs":
        await page.wait_for_selector(".opblock-summary-path")
    await page.screenshot(path=tmp_path / "page.png", full_page=True)
    assert live.api.url + path in asked
    assert all(url.startswith((f"{live.api.url}/", "data:", "blob:")) for url in asked), asked
    assert wrong == []
    assert (await page.inner_text("body")).strip()


async def test_readers_do_not_come_back_for_what_has_ended(live: Live) -> None:
    async with httpx.AsyncClient(base_url=live.api.url, trust_env=False) as http:
        done = await http.post("/jobs", json={"analysis": "count", "params": {"to": 1}}, headers={"Prefer": "wait=10"})
        snapshot = done.json()

        async def told() -> bool:
            headers = {"Last-Event-ID": snapshot["cursor"]}
            return (await http.get(f"/jobs/{snapshot['job']}/events", headers=headers)).status_code == 204

        await until(told, what="204 after the last event")
