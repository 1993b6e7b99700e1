"""The analyses that workers advertise, as the API knows them. No I/O."""

from collections.abc import Iterable
from functools import cached_property
from typing import Any

import jsonschema_rs

from millstream.protocol.errors import Problem, pointer, sentence
from millstream.protocol.fleet import Advertisement, AnalysisInfo


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
        errors = [
            {"pointer": pointer(["params", *error.instance_path]), "detail": error.message[:300]}
            for error in self.validator.iter_errors(params)
        ]
        raise Problem("invalid_params", f"{self.name}: {sentence(errors)}.", errors[:50])

    def as_dict(self) -> dict[str, Any]:
        """As `analysis.list` shows it."""
        return {name: getattr(self, name) for name in AnalysisInfo.model_fields}


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
