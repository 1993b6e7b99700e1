"""What a user can meet stands in the docs: settings, methods, event types, error slugs, close codes."""

from pathlib import Path

import pytest

from millstream.protocol.errors import PROBLEM_TYPES
from millstream.protocol.event_types import EVENT_TYPES
from millstream_api.jobs import websocket
from millstream_api.jobs.methods import METHODS
from millstream_api.jobs.streams import HEARTBEAT_S
from millstream_api.settings import ApiSettings
from millstream_worker.settings import WorkerSettings

ROOT = Path(__file__).parents[2]
PROTOCOL = (ROOT / "docs/protocol.md").read_text()
SETTINGS = (ROOT / "docs/settings.md").read_text()


@pytest.mark.parametrize("name", sorted({*ApiSettings.model_fields, *WorkerSettings.model_fields}))
def test_the_docs_name_each_setting_with_its_meaning(name: str) -> None:
    field = {**WorkerSettings.model_fields, **ApiSettings.model_fields}[name]
    assert f"| `MILLSTREAM_{name.upper()}` | {field.description} |" in SETTINGS


@pytest.mark.parametrize("type_", sorted(EVENT_TYPES))
def test_the_protocol_describes_each_event_type(type_: str) -> None:
    assert f"| `{type_}` |" in PROTOCOL


@pytest.mark.parametrize("method", sorted(METHODS))
def test_the_protocol_describes_each_method_with_its_parameters(method: str) -> None:
    row = next(line for line in PROTOCOL.splitlines() if line.startswith(f"| `{method}` |"))
    for parameter in METHODS[method].params.model_fields:
        assert f"`{parameter}`" in row


@pytest.mark.parametrize("slug", sorted(PROBLEM_TYPES))
def test_the_protocol_lists_each_error_with_its_codes(slug: str) -> None:
    assert f"| `{slug}` | {PROBLEM_TYPES[slug].code} | {PROBLEM_TYPES[slug].status} |" in PROTOCOL


@pytest.mark.parametrize("code", [websocket.POLICY, websocket.RESTARTING, websocket.OVERLOADED])
def test_the_protocol_lists_each_close_code(code: int) -> None:
    (line,) = (line for line in PROTOCOL.splitlines() if line.startswith("Close codes: "))
    assert f"; {code} " in line


def test_the_protocol_says_how_often_a_quiet_stream_has_a_comment() -> None:
    assert f"a comment every {HEARTBEAT_S} s" in PROTOCOL


def test_every_decision_and_document_is_linked_or_numbered() -> None:
    numbers = sorted(path.name[:4] for path in (ROOT / "docs/decisions").glob("[0-9]*.md"))
    assert numbers == [f"{n:04d}" for n in range(1, len(numbers) + 1)]
