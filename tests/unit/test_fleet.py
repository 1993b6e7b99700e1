"""Heartbeats, advertisements and queue statistics: old and new versions read each other's."""

import json
import socket
from typing import Any

import pytest
from pydantic import BaseModel

from millstream.protocol.catalog import Catalog
from millstream.protocol.errors import Problem
from millstream.protocol.fleet import Advertisement, Heartbeat, LaneStats, QueueStats

BEAT = Heartbeat(
    worker="w", host="h", pid=1, queue="default", slots=2, running=1, rss=3, at="2026-11-24T08:00:00.000Z",
    ended={"succeeded": 4},
)  # fmt: skip
NUMBER = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
SHOUT = Advertisement(
    name="shout", description="", params_schema=NUMBER, result_schema={}, timeout_s=1, queue="default", max_attempts=2
)


@pytest.mark.parametrize(("told", "optional"), [(BEAT, ["rss", "ended"]), (SHOUT, ["max_attempts"])])
def test_what_a_later_version_adds_is_passed_over_and_what_an_earlier_one_lacks_has_a_default(
    told: BaseModel, optional: list[str]
) -> None:
    document: dict[str, Any] = json.loads(told.model_dump_json())
    assert type(told).model_validate({**document, "invented_later": {"deep": [1]}}) == told
    for name in optional:
        earlier = {key: value for key, value in document.items() if key != name}
        default = type(told).model_fields[name].get_default(call_default_factory=True)
        assert getattr(type(told).model_validate(earlier), name) == default


def test_the_lanes_of_a_queue_are_added_up_and_the_oldest_counts() -> None:
    stats = QueueStats.of("gpu", [LaneStats(1, 2, 3, 0.5), LaneStats(10, 20, 30, 7.5), LaneStats(100, 200, 300, 0)])
    assert stats.model_dump() == {
        "name": "gpu", "depth": 111, "by_priority": {"high": 1, "default": 10, "low": 100}, "running": 222,
        "delayed": 333, "oldest_age_s": 7.5,
    }  # fmt: skip


def test_a_catalog_checks_parameters_by_the_schema_that_was_advertised() -> None:
    catalog = Catalog()
    catalog.update([SHOUT.model_dump_json().encode()])
    entry = catalog.find("shout")
    entry.check({"n": 1})
    with pytest.raises(Problem) as caught:
        entry.check({"n": "one"})
    assert (caught.value.slug, caught.value.errors[0]["pointer"]) == ("invalid_params", "/params/n")
    assert set(entry.as_dict()) == {"name", "description", "params_schema", "result_schema", "timeout_s", "queue"}


def odd(**changes: Any) -> bytes:
    return SHOUT.model_copy(update={"name": "odd", **changes}).model_dump_json().encode()


@pytest.mark.parametrize(
    "advertised",
    [
        odd(params_schema={"properties": {"n": {"required": True}}}),
        odd(params_schema={"required": True}),
        odd(params_schema={"pattern": "("}),
        odd(params_schema={"minLength": -1}),
        odd(params_schema={"$ref": "#/$defs/Nothing"}),
        odd(params_schema={"$schema": "http://127.0.0.1:9/unknown"}),
        odd(result_schema={"type": "nothing"}),
        odd()[:-1],
        b'{"name":"odd"}',
        b"[" * 10_000,
        b"\xff",
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_left_out_of_the_catalog_and_told_once(advertised: bytes) -> None:
    catalog, good = Catalog(), SHOUT.model_dump_json().encode()
    assert len(catalog.update([advertised, good])) == 1
    assert catalog.update([good, advertised]) == []
    assert list(catalog.entries) == ["shout"]
    catalog.find("shout").check({"n": 1})
    assert catalog.update([good, odd()]) == []
    assert list(catalog.entries) == ["odd", "shout"]
    assert len(catalog.update([advertised])) == 1, "it was right in between"


def test_no_schema_makes_the_api_fetch_anything() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/schema.json"
        server.setblocking(False)
        for schema in ({"$ref": url}, {"$id": url, "$ref": "other.json"}, {"$ref": "file:///dev/zero"}):
            [wrong] = Catalog().update([odd(params_schema=schema)])
            assert "may refer only to what is in it" in wrong
        with pytest.raises(BlockingIOError):
            server.accept()


def test_an_entry_that_did_not_change_is_not_read_again() -> None:
    catalog = Catalog()
    catalog.update([odd()])
    entry = catalog.find("odd")
    catalog.update([SHOUT.model_dump_json().encode(), odd()])
    assert catalog.find("odd") is entry
