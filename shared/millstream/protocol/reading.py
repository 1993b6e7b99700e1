"""JSON from clients, read within limits and checked against a model; and JSON for them, such that they can read it. No
I/O.

A document of a megabyte may hold half a million values, or numbers of thousands of digits. Reading it would stop the
event loop for a tenth of a second, so these are counted before, by looking at characters.
"""

from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json, to_json

from millstream.protocol.errors import Problem, sentence, validation_errors

DIGITS = 400  # of a number; a float has 309 at most
ALIKE = bytes.maketrans(b"123456789", b"0" * 9)
WRITTEN_DIGITS = 4300  # of a number that is written for others; Python reads no more
WRITTEN_LEVELS = 190  # of what is written; with what stands around it on its way, there are at most 200
PAIRS = bytes.maketrans(b"[{]}", b"(())")
NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
MANY = 25  # parameters that are looked at one by one; no method has as many

Model = TypeVar("Model", bound=BaseModel)


def read_json(text: str | bytes, max_values: int, *, what: str) -> Any:
    """Read a document; `what` says which. Raises Problem: parse_error, or payload_too_large for too many values."""
    try:
        decoded = text if isinstance(text, str) else text.decode()
        if has_more_values(decoded, max_values):
            detail = f"The {what} holds more than {max_values} JSON values and names. Send fewer, or refer to a file."
            raise Problem("payload_too_large", detail)
        if has_long_number(decoded):
            raise ValueError(f"a number has {DIGITS} digits or more")
        return from_json(decoded, allow_inf_nan=False)
    except ValueError as error:
        raise Problem("parse_error", f"The {what} is not JSON: {error}.") from None


def has_more_values(text: str, limit: int) -> bool:
    """Does a JSON document hold more values than `limit`, names of members included?

    Exact unless an empty array or object has blanks in it.
    """
    if len(text) <= limit or _values(text) <= limit:  # where a comma in a string counts, too
        return False
    bare = _without_escapes(text)
    return bare.count('"') > 2 * limit or _values(_outside_strings(bare)) > limit


def _values(text: str) -> int:
    """The whole document is a value, and so is what follows a comma, a colon or an opening bracket."""
    return 1 + sum(map(text.count, (",", ":", "[", "{"))) - text.count("[]") - text.count("{}")


def has_long_number(text: str) -> bool:
    """Does a JSON document hold a number that takes long to read? That grows with the square of its digits."""
    return _has_digits(text, DIGITS)


def _has_digits(text: str, digits: int) -> bool:
    return _has_run(text, digits) and _has_run(_outside_strings(_without_escapes(text)), digits)


def _has_run(text: str, digits: int) -> bool:
    return b"0" * digits in text.encode(errors="replace").translate(ALIKE)


def _without_escapes(text: str) -> str:
    """Every quote that is left begins or ends a string."""
    return text.replace("\\\\", "").replace('\\"', "")


def _outside_strings(bare: str) -> str:
    return "_".join(bare.split('"')[::2])


def readable(written: bytes) -> bytes:
    """A JSON document that was written here, such that every reader can read it: NaN and infinity, which are not JSON,
    become null. Raises ValueError for what a reader could not read.
    """
    if written.count(b"[") + written.count(b"{") > WRITTEN_LEVELS and _has_more_levels(written.decode()):
        raise ValueError(f"it is nested deeper than {WRITTEN_LEVELS} levels")
    if len(written) > WRITTEN_DIGITS and _has_digits(written.decode(), WRITTEN_DIGITS + 1):
        raise ValueError(f"a number in it has more than {WRITTEN_DIGITS} digits")
    if b"NaN" in written or b"Infinity" in written:
        return to_json(from_json(written), inf_nan_mode="null")
    return written


def _has_more_levels(text: str) -> bool:
    """Counted by taking out the innermost pairs, level by level: far faster than to read it."""
    brackets = _outside_strings(_without_escapes(text)).encode().translate(PAIRS, NOT_BRACKETS)
    for _ in range(WRITTEN_LEVELS):
        brackets = brackets.replace(b"()", b"")
    return bool(brackets)


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
