"""Files that are opened in a browser: few types are shown, and nothing of an uploader's runs in our origin."""

from base64 import b64decode
from contextlib import suppress

import pytest
from playwright.async_api import Browser, Error

from tests.browser.conftest import Live

RUN = "document.title = 'it ran'; localStorage.taken = 'yes'"
PAGES = {
    "page.html": f"<!doctype html><title>x</title><script>{RUN}</script>",
    "page.xhtml": f"<html xmlns='http://www.w3.org/1999/xhtml'><script>{RUN}</script></html>",
    "picture.svg": f"<svg xmlns='http://www.w3.org/2000/svg'><script>{RUN}</script></svg>",
}
PNG = b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==")


@pytest.mark.parametrize("name", PAGES)
async def test_a_page_of_an_uploader_is_downloaded_and_not_run(live: Live, browser: Browser, name: str) -> None:
    (live.data / name).write_text(PAGES[name])
    page = await browser.new_page()
    for path in (f"/files/{name}", f"/stream/file?path={name}", f"/files/{name}?follow=true"):
        async with page.expect_download() as downloading:
            with suppress(Error):  # the page stays where it was
                await page.goto(live.api.url + path)
        download = await downloading.value
        assert download.suggested_filename == name
        await download.cancel()
    await page.goto(f"{live.api.url}/healthz")  # a document without a policy, which may frame
    async with page.expect_download():
        await page.evaluate(
            "url => document.body.append(Object.assign(document.createElement('iframe'), {src: url}))",
            f"/files/{name}",
        )
    assert await page.evaluate("[document.title === 'it ran', localStorage.taken === undefined]") == [False, True]


async def test_images_and_text_are_shown_in_an_origin_of_their_own(live: Live, browser: Browser) -> None:
    (live.data / "p.png").write_bytes(PNG)
    (live.data / "t.txt").write_text("naïve 漢")
    (live.data / "d.json").write_text('{"naïve": "漢"}')
    page = await browser.new_page()
    await page.goto(f"{live.api.url}/files/p.png")
    assert await page.evaluate("document.images[0].naturalWidth") == 1
    for name in ("t.txt", "d.json"):
        await page.goto(f"{live.api.url}/files/{name}")
        assert await page.evaluate("document.querySelector('pre').innerText") == (live.data / name).read_text()
        assert await page.evaluate("self.origin") == "null"
