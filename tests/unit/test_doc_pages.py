"""The pages hang together: links lead somewhere, named files exist, examples are JSON, and everything that a client can
meet has its heading or its row.
"""

import json
import re
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pytest
from fastapi.routing import APIRoute

from millstream.protocol.event_types import EVENT_TYPES
from millstream_api.app import create_app
from millstream_api.jobs import websocket
from millstream_api.jobs.methods import METHODS
from millstream_api.jobs.schemas import NOTIFICATIONS
from millstream_api.settings import ApiSettings
from millstream_worker.settings import WorkerSettings
from tests.mutants import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
DECISIONS = sorted((ROOT / "docs/decisions").glob("[0-9]*.md"))
PROTOCOL = (ROOT / "docs/protocol.md").read_text()

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
NAMED = re.compile(r"`([\w./*-]+?)(?:::\w+)?`")
MARKER = re.compile(r"^<!-- (generated|end)(?:: [\w-]+)? -->$", re.MULTILINE)
TOP = {path.name for path in ROOT.iterdir() if path.is_dir()} & {"api", "worker", "shared", "tests", "docs", ".ci"}
SUFFIXES = (".py", ".md", ".lua", ".toml", ".yaml")
#: Files of the reader's, which the pages have them write, and names that stand for any.
READERS = {"my_analyses.py", "./my_analyses.py", "test_my_analyses.py", "watch.py", "NNNN-a-short-title.md"}


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


def prose(page: Path) -> str:
    return BLOCK.sub("", page.read_text())


def anchors(page: Path) -> set[str]:
    """The names that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def headings(text: str) -> str:
    return without_names("\n".join(re.findall(r"^#+ .*$", BLOCK.sub("", text), re.MULTILINE)))


def without_names(path: str) -> str:
    """A path whose parameters have no names, in which code and docs may differ."""
    return re.sub(r"\{\w+\}", "{}", path)


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_each_link_leads_somewhere(page: Path) -> None:
    for target in LINK.findall(prose(page)):
        if re.match(r"https?:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_each_file_that_is_named_exists(page: Path) -> None:
    for name in NAMED.findall(prose(page)):
        inside = "/" in name and name.partition("/")[0] in TOP
        if name in READERS or not (inside or name.endswith(SUFFIXES)):
            continue
        assert any(ROOT.glob(name.rstrip("/"))), name


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_what_is_generated_has_a_beginning_and_an_end(page: Path) -> None:
    markers = MARKER.findall(page.read_text())
    assert markers == ["generated", "end"] * (len(markers) // 2)


def test_each_page_of_the_docs_is_in_the_index() -> None:
    index = (ROOT / "docs/README.md").read_text()
    listed = {(ROOT / "docs" / target.partition("#")[0]).resolve() for target in LINK.findall(index)}
    pages = {page for page in (ROOT / "docs").rglob("*.md") if page not in DECISIONS and page.name != "README.md"}
    assert pages - listed == set()


# The protocol.


def examples() -> Iterator[str]:
    """The JSON documents of the examples: a block of them, a line of a body, the data of a server-sent event."""
    for language, text in BLOCK.findall(PROTOCOL):
        for line in text.splitlines():
            line = line.removeprefix("data: ")
            if language == "json" or line.startswith(("{", "[")):
                yield line


def test_each_example_is_json() -> None:
    found = list(examples())
    assert len(found) > 50
    for line in found:
        json.loads(re.sub(r",…(?=[,}\]])", "", line))


def test_each_event_of_the_examples_has_a_type_of_the_table() -> None:
    shown = {line["type"] for line in map(json.loads, examples()) if isinstance(line, dict) and "seq" in line}
    assert shown == set(EVENT_TYPES)


@pytest.mark.parametrize("name", [*METHODS, *NOTIFICATIONS])
def test_each_method_and_notification_has_a_heading_and_an_example(name: str) -> None:
    assert f"#### `{name}`\n" in PROTOCOL
    _, _, section = PROTOCOL.partition(f"#### `{name}`\n")
    section = re.split(r"^##", section, maxsplit=1, flags=re.MULTILINE)[0]
    assert f'"method":"{name}"' in section


def test_each_route_has_a_heading(tmp_path: Path) -> None:
    app = create_app(ApiSettings(data_dir=tmp_path))
    paths = app.openapi()["paths"].items()
    routes = {f"{method.upper()} {path}" for path, calls in paths for method in calls if method != "parameters"}
    routes |= {f"GET {route.path}" for route in app.routes if isinstance(route, APIRoute)}
    app.state.directory.close()
    assert {"POST /jobs", "PATCH /uploads/{id}", "GET /asyncapi.json"} <= routes
    found = headings(PROTOCOL)
    assert [route for route in sorted(routes) if f"`{without_names(route)}`" not in found] == []


def test_each_close_code_has_a_row() -> None:
    for code in (1000, 1003, websocket.POLICY, 1009, websocket.RESTARTING, websocket.OVERLOADED):
        assert f"\n| {code} | " in PROTOCOL


def test_the_protocol_says_how_often_a_quiet_stream_has_a_sign_of_life() -> None:
    assert f"`MILLSTREAM_HEARTBEAT_S` ({ApiSettings.model_fields['heartbeat_s'].default} s)" in PROTOCOL


# Settings and decisions.


def test_each_setting_that_a_page_names_exists() -> None:
    names = {f"MILLSTREAM_{name.upper()}" for name in {*ApiSettings.model_fields, *WorkerSettings.model_fields}}
    names |= set(re.findall(r"\$\{(MILLSTREAM_\w+)", (ROOT / "compose.yaml").read_text()))
    for page in PAGES:
        assert set(re.findall(r"MILLSTREAM_[A-Z_]*[A-Z]", page.read_text())) - names == set(), page_id(page)


def test_decisions_are_numbered() -> None:
    assert [page.name[:4] for page in DECISIONS] == [f"{n:04d}" for n in range(1, len(DECISIONS) + 1)]


@pytest.mark.parametrize("page", DECISIONS, ids=page_id)
def test_each_decision_has_a_date_and_a_status_and_is_in_the_index(page: Path) -> None:
    found = re.match(r"# (\d+)\. .*\n\nDate: (.*)\nStatus: (.*)\n\n", page.read_text())
    assert found
    number, when, status = found.groups()
    assert page.name.startswith(f"{int(number):04d}-")
    date.fromisoformat(when)
    assert re.fullmatch(r"proposed|accepted|superseded by \d{4}", status)
    index = (ROOT / "docs/decisions/README.md").read_text()
    assert f"({page.name})" in index
    assert f"| {when} | {status} |" in next(line for line in index.splitlines() if page.name in line)
