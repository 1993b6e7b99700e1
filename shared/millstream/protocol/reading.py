"""JSON from clients: read within a limit of values, and checked against a model. No I/O.

A document of a megabyte may hold half a million values. Reading it would stop the event loop for a tenth of a second,
so values are counted before, by counting characters.
"""

from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from millstream.protocol.errors import Problem, sentence, validation_errors

MANY = 100  # parameters that are looked at one by one; no method has as many

Model = TypeVar("Model", bound=BaseModel)


def read_json(text: str | bytes, max_values: int, *, what: str) -> Any:
    """Read a document; `what` says which. Raises Problem: parse_error, or payload_too_large for too many values."""
    try:
        decoded = text if isinstance(text, str) else text.decode()
        if has_more_values(decoded, max_values):
            detail = f"The {what} holds more than {max_values} JSON values. Send fewer, or refer to a file."
            raise Problem("payload_too_large", detail)
        return from_json(decoded, allow_inf_nan=False)
    except ValueError as error:
        raise Problem("parse_error", f"The {what} is not JSON: {error}.") from None


def has_more_values(text: str, limit: int) -> bool:
    """Does a JSON document hold more values than `limit`? Exact unless an empty array or object has blanks in it."""
    if len(text) <= limit or _values(text) <= limit:  # where a comma in a string counts, too
        return False
    bare = text.replace("\\\\", "").replace('\\"', "")
    if bare.count('"') > 4 * limit:  # a value has two quotes at most, and so has its name
        return True
    return _values("_".join(bare.split('"')[::2])) > limit  # without the content of strings


def _values(text: str) -> int:
    """The whole document is a value, and so is what follows a comma or an opening bracket."""
    return 1 + sum(map(text.count, (",", "[", "{"))) - text.count("[]") - text.count("{}")


def read_params(model: type[Model], params: Any, what: str) -> Model:
    """Check the parameters of `what`. Raises Problem invalid_params, which names each member that is wrong."""
    if isinstance(params, dict) and len(params) > MANY:
        known = ", ".join(model.model_fields) or "none"
        raise Problem("invalid_params", f"{what}: {len(params)} parameters were sent; those there are: {known}.")
    try:
        return model.model_validate(params)
    except ValidationError as error:
        errors = validation_errors(error.errors(include_url=False, include_context=False, include_input=False))
        raise Problem("invalid_params", f"{what}: {sentence(errors)}.", errors) from None
