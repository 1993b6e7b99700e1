"""JSON Schemas of parameters and results. No I/O: what a schema refers to must be in it, and is never fetched."""

from typing import Any, NoReturn

import jsonschema_rs


def validator_for(schema: dict[str, Any]) -> Any:
    """Checks values against a schema. Raises ValueError for what is not a JSON Schema, or refers to another document.

    Those of JSON Schema itself are known.
    """
    return jsonschema_rs.validator_for(schema, retriever=_never_fetched)


def _never_fetched(uri: str) -> NoReturn:
    raise ValueError("a schema may refer only to what is in it")
