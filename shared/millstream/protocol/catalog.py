"""The analyses that workers advertise, as the API knows them. No I/O."""

from dataclasses import dataclass
from typing import Any

import jsonschema_rs
from pydantic_core import from_json

from millstream.protocol.errors import Problem, pointer, sentence


@dataclass(frozen=True, slots=True)
class Entry:
    """One advertised analysis. `max_attempts` is None where its author did not ask for failures to be tried again."""

    name: str
    description: str
    params_schema: dict[str, Any]
    result_schema: dict[str, Any]
    timeout_s: float
    max_attempts: int | None
    queue: str
    validator: Any

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
        names = ("name", "description", "params_schema", "result_schema", "timeout_s", "queue")
        return {name: getattr(self, name) for name in names}


class Catalog:
    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}

    def update(self, advertised: dict[str, bytes]) -> None:
        """Take over what the store holds: JSON by name."""
        self.entries = {name: _entry(from_json(value)) for name, value in sorted(advertised.items())}

    def find(self, name: str) -> Entry:
        """Raises Problem: unknown_analysis, or no_workers where nothing was ever advertised."""
        if entry := self.entries.get(name):
            return entry
        if not self.entries:
            detail = "No worker has said yet which analyses there are. Start one: millstream worker."
            raise Problem("no_workers", detail, retry_after_s=2)
        known = ", ".join(self.entries)
        raise Problem("unknown_analysis", f"There is no analysis {name[:80]!r}. There are: {known[:500]}.")


def _entry(document: dict[str, Any]) -> Entry:
    validator = jsonschema_rs.validator_for(document["params_schema"])
    return Entry(**document, validator=validator)
