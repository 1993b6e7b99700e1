"""What a browser is told of a file: its type, its charset, and whether to show it; nothing of it runs in our origin."""

import mimetypes
from pathlib import Path

import pytest
from pydantic import ValidationError

from millstream_api.files.representations import restrictions
from millstream_api.settings import ApiSettings
from tests.integration.conftest import Stack
from tests.integration.serving import files_here
from tests.integration.web import web

SHOWN = ["p.png", "p.jpg", "p.jpeg", "p.gif", "p.webp", "p.avif", "s.mp3", "s.wav", "s.ogg", "s.flac", "s.m4a",
         "v.mp4", "v.webm", "t.txt", "d.pdf", "d.json"]  # fmt: skip
DOWNLOADED = ["x.html", "x.htm", "x.xhtml", "x.svg", "x.svgz", "x.xml", "x.js", "x.mjs", "x.css", "x.md", "x.csv",
              "x.zip", "x.bin", "x", "x.shtml", "x.xht", "x.mhtml", "x.swf", "x.wasm", "x.HTML", "x.Svg"]  # fmt: skip


@pytest.mark.parametrize("name", [*SHOWN, *DOWNLOADED])
async def test_a_browser_may_show_few_types_and_runs_nothing_of_any(stack: Stack, home: Path, name: str) -> None:
    home.mkdir()
    (home / name).write_text("x" * 10)
    async with web(stack.api) as http:
        for path, headers in (
            (f"/files/{home.name}/{name}", {}), (f"/stream/file?path={home.name}/{name}", {}),
            (f"/files/{home.name}/{name}", {"Range": "bytes=0-1"}),
            (f"/files/{home.name}/{name}", {"Range": "bytes=0-1,3-4"}),
        ):  # fmt: skip
            for answer in (await http.get(path, headers=headers), await http.head(path, headers=headers)):
                assert answer.headers["content-disposition"].partition(";")[0] == (
                    "inline" if name in SHOWN else "attachment"
                )
                assert answer.headers["content-security-policy"] == "sandbox"
                assert answer.headers["x-content-type-options"] == "nosniff"
        async with http.stream("GET", f"/files/{home.name}/{name}?follow=true") as followed:
            names = ("content-disposition", "content-security-policy", "x-content-type-options", "content-type")
            assert [followed.headers[n] for n in names] == [
                (await http.get(f"/files/{home.name}/{name}")).headers[n] for n in names
            ]
            assert followed.headers["x-accel-buffering"] == "no", "a proxy is not to hold it back"


@pytest.mark.parametrize("name", SHOWN)
def test_what_is_shown_does_not_depend_on_the_system_s_table_of_types(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(mimetypes, "guess_type", mimetypes.MimeTypes(filenames=()).guess_type)
    for written in (name, name.upper()):
        assert restrictions(written)["Content-Disposition"].startswith("inline;")


TYPES = {
    "t.txt": "text/plain; charset=utf-8", "t.csv": "text/csv; charset=utf-8", "t.css": "text/css; charset=utf-8",
    "t.html": "text/html; charset=utf-8", "t.json": "application/json", "t.png": "image/png",
    "t.txt.gz": "application/octet-stream", "t": "application/octet-stream",
}  # fmt: skip


@pytest.mark.parametrize("name", [*TYPES, "t.xml"])
async def test_text_says_its_charset_where_it_does_not_say_it_itself(stack: Stack, home: Path, name: str) -> None:
    home.mkdir()
    (home / name).write_text("é" * 10)
    async with web(stack.api) as http:
        whole = await http.get(f"/files/{home.name}/{name}")
        several = await http.get(f"/files/{home.name}/{name}", headers={"Range": "bytes=0-1,4-5"})
    kind = whole.headers["content-type"]
    assert kind == TYPES[name] if name in TYPES else "charset" not in kind
    assert f"Content-Type: {kind}\r\n".encode() in several.content


async def test_the_charset_of_text_is_what_the_operator_says(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_bytes(b"\xe9")
    for charset, kind in (("iso-8859-1", "text/plain; charset=iso-8859-1"), ("", "text/plain")):
        async with files_here(tmp_path, text_charset=charset) as http:
            assert (await http.get("/files/t.txt")).headers["content-type"] == kind
    for wrong in ("utf 8", "utf-8\r\nX: y", "utf-8;", '"utf-8"'):
        with pytest.raises(ValidationError):
            ApiSettings(_env_file=None, text_charset=wrong)
