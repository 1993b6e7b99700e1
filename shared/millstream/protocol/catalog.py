"""The analyses that workers advertise, as the API knows them. No I/O."""

from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import islice
from typing import Any

import jsonschema_rs

from millstream.protocol.errors import Problem, pointer, sentence
from millstream.protocol.fleet import Advertisement, AnalysisInfo

EXPLAINED = 500  # values; a long string or number counts as several


class Entry(Advertisement):
    """One advertised analysis, whose parameters can be checked."""

    @cached_property
    def validator(self) -> Any:
        """Made when it is first needed, so that an invalid schema affects its own analysis only."""
        return jsonschema_rs.validator_for(self.params_schema)

    def check(self, params: dict[str, Any]) -> None:
        """Raises Problem invalid_params, which names each member that is wrong and what was expected."""
        if self.validator.is_valid(params):
            return
        found = self._explain(params) if is_small(params) else self._name_members(params)
        errors = [{"pointer": pointer(["params", *path]), "detail": detail} for path, detail in found]
        raise Problem("invalid_params", f"{self.name}: {sentence(errors)}.", errors[:50])

    def _explain(self, params: dict[str, Any]) -> list[tuple[Sequence[str | int], str]]:
        """Each error. It takes some 10 µs for each value that is wrong, and quotes the values."""
        return [(error.instance_path, error.message[:300]) for error in self.validator.iter_errors(params)]

    def _name_members(self, params: dict[str, Any]) -> list[tuple[Sequence[str | int], str]]:
        """Which members are wrong by themselves, or that all are wrong together: for parameters that are large."""
        by_itself = jsonschema_rs.validator_for({**self.params_schema, "required": []})
        members = islice(params.items(), EXPLAINED)
        wrong = [name for name, value in members if not by_itself.is_valid({name: value})]
        detail = f"It is not what the schema of {self.name} expects here, and too large to say more"
        return [([name[:200]], detail) for name in wrong] or [([], detail)]

    def as_dict(self) -> dict[str, Any]:
        """As `analysis.list` shows it."""
        return {name: getattr(self, name) for name in AnalysisInfo.model_fields}


def is_small(params: Any) -> bool:
    """Are there so few values and characters that each error can be explained?"""
    room, pending = EXPLAINED, [params]
    while pending and room > 0:
        item = pending.pop()
        room -= 1
        if isinstance(item, str):
            room -= len(item) // 32
        elif isinstance(item, int):
            room -= item.bit_length() // 128
        elif isinstance(item, dict):
            pending += [*item, *item.values()]
        elif isinstance(item, list):
            pending += item
    return room > 0


class Catalog:
    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}

    def update(self, advertised: Iterable[Advertisement]) -> None:
        """Take over what the store holds."""
        found = sorted(advertised, key=lambda item: item.name)
        self.entries = {item.name: Entry(**dict(item)) for item in found}

    def find(self, name: str) -> Entry:
        """Raises Problem: unknown_analysis, or no_workers where nothing was ever advertised."""
        if entry := self.entries.get(name):
            return entry
        if not self.entries:
            detail = "No worker has advertised its analyses yet. Start one: millstream worker."
            raise Problem("no_workers", detail, retry_after_s=2)
        known = ", ".join(self.entries)
        raise Problem("unknown_analysis", f"There is no analysis {name[:80]!r}. There are: {known[:500]}.")
