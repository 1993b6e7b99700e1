"""What a client would rather have: the weighted lists of Accept and Accept-Encoding. No I/O."""

from collections.abc import Container
from contextlib import suppress


def weights(header: str | None) -> dict[str, float]:
    """The weight of each item of the header, by its name in lower case (RFC 9110 §12.4.2); 0: not wanted."""
    found: dict[str, float] = {}
    for item in (header or "").split(","):
        name, *parameters = [part.strip().lower() for part in item.split(";")]
        weight = 1.0
        for parameter in parameters:
            if parameter.startswith("q="):
                weight = 0.0
                with suppress(ValueError):
                    weight = float(parameter[2:])
        if name:
            found[name] = weight
    return found


def most_wanted(header: str | None, offered: Container[str]) -> str:
    """What the header wants most of what is offered, the first in it of several; "": it names none of it."""
    wanted = {name: weight for name, weight in weights(header).items() if weight > 0 and name in offered}
    return max(wanted, key=wanted.__getitem__, default="")
