"""What a client would rather have: the weighted lists of Accept and Accept-Encoding. No I/O."""

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
