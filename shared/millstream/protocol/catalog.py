"""The analyses that workers advertise, as the API knows them. No I/O."""

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import islice
from typing import Any

from millstream.protocol.errors import Problem, pointer, sentence
from millstream.protocol.fleet import Advertisement, AnalysisInfo
from millstream.protocol.schemas import validator_for

Found = tuple[Sequence[str | int], str]  # the path of what is wrong, and what is
EXPLAINED = 100  # values whose errors are explained


class Entry(Advertisement):
    """One advertised analysis, whose parameters can be checked."""

    @cached_property
    def validator(self) -> Any:
        return validator_for(self.params_schema)

    def check(self, params: dict[str, Any]) -> None:
        """Raises Problem invalid_params, which names each member that is wrong and what was expected."""
        if self.validator.is_valid(params):
            return
        found = _explain(self.validator, params) if weight(params) <= EXPLAINED else self._explain_members(params)
        errors = [{"pointer": pointer(["params", *path]), "detail": detail} for path, detail in islice(found, 50)]
        if not errors:  # none of the members is wrong by itself
            errors = [{"pointer": "/params", "detail": f"They do not match the schema of {self.name}"}]
        raise Problem("invalid_params", f"{self.name}: {sentence(errors)}.", errors)

    @cached_property
    def _member_validator(self) -> Any:
        return validator_for({**self.params_schema, "required": []})

    def _explain_members(self, params: dict[str, Any]) -> Iterator[Found]:
        """Of parameters that are large: what is wrong with each member by itself, where that is not too large, too."""
        room = EXPLAINED
        for name, value in islice(params.items(), EXPLAINED):
            member = {name: value}
            if self._member_validator.is_valid(member):
                continue
            room -= weight(member)
            if room >= 0:
                yield from _explain(self._member_validator, member)
            else:
                yield [name[:200]], f"It is not what the schema of {self.name} expects, and too large to say more"
        for name in self.params_schema.get("required", []):
            if name not in params:
                yield [], f'"{name}" is a required property'

    def as_dict(self) -> dict[str, Any]:
        """As `analysis.list` shows it."""
        return {name: getattr(self, name) for name in AnalysisInfo.model_fields}


def _explain(validator: Any, params: dict[str, Any]) -> Iterator[Found]:
    """Each error. It takes some 10 µs for each value that is wrong, and quotes the values."""
    return ((error.instance_path, error.message[:300]) for error in validator.iter_errors(params))


def weight(value: Any) -> int:
    """How many values there are in a value, where long strings and numbers count as several; no more than needed."""
    found, pending = 0, [value]
    while pending and found <= EXPLAINED:
        item = pending.pop()
        found += 1
        if isinstance(item, str):
            found += len(item) // 32
        elif isinstance(item, int):
            found += item.bit_length() // 128
        elif isinstance(item, dict):
            pending += [*item, *item.values()]
        elif isinstance(item, list):
            pending += item
    return found


def _read(text: bytes) -> Entry | str:
    """An advertisement, or why it cannot be used."""
    try:
        entry = Entry.model_validate_json(text)
        validator_for(entry.result_schema)
        entry.validator  # noqa: B018 (made here, where an error concerns this entry only)
    except Exception as error:  # whatever another version of a worker may have written
        return f"{text[:100].decode(errors='replace')}…: {error}"
    return entry


class Catalog:
    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self._read: dict[bytes, Entry | str] = {}

    def update(self, advertised: Iterable[bytes]) -> list[str]:
        """Take over what the store holds, advertisements as JSON. What cannot be used is left out: the others are not
        affected. Returns what was wrong with those that were not there before.
        """
        known, self._read = self._read, {}
        for text in advertised:
            self._read[text] = known.get(text) or _read(text)
        found = [item for item in self._read.values() if isinstance(item, Entry)]
        self.entries = {item.name: item for item in sorted(found, key=lambda item: item.name)}
        return [item for text, item in self._read.items() if isinstance(item, str) and text not in known]

    def find(self, name: str) -> Entry:
        """Raises Problem: unknown_analysis, or no_workers where nothing was ever advertised."""
        if entry := self.entries.get(name):
            return entry
        if not self.entries:
            detail = "No worker has advertised its analyses yet. Start one: millstream worker."
            raise Problem("no_workers", detail, retry_after_s=2)
        known = ", ".join(self.entries)
        raise Problem("unknown_analysis", f"There is no analysis {name[:80]!r}. There are: {known[:500]}.")
