"""What a client would rather have: the weighted lists of Accept and Accept-Encoding. No I/O."""

from collections.abc import Sequence
from contextlib import suppress

MAX_ITEMS = 100  # of a header, and parameters of an item: parsing thousands would hold up other requests


def weights(header: str | None) -> dict[str, float]:
    """The weight of each item of the header, by its name in lower case (RFC 9110 §12.4.2); 0: not wanted. Only the
    first MAX_ITEMS count.
    """
    found: dict[str, float] = {}
    for item in (header or "").split(",", MAX_ITEMS)[:MAX_ITEMS]:
        name, *parameters = [part.strip().lower() for part in item.split(";", MAX_ITEMS)[:MAX_ITEMS]]
        weight = 1.0
        for parameter in parameters:
            if parameter.startswith("q="):
                weight = 0.0
                with suppress(ValueError):
                    weight = float(parameter[2:])
                if not 0 <= weight <= 1:  # nor is it a number, where it is "nan"
                    weight = 0.0
        if name:
            found[name] = weight
    return found


def most_wanted(header: str | None, offered: Sequence[str]) -> str:
    """Which of the media types offered (the server's favourite first) the header wants most; "": none of them.

    Each counts with the weight of the most specific range that it falls under (RFC 9110 §12.5.1). Of several, the one
    that the header names itself comes first, then the first in the header, then the favourite.
    """
    wanted = weights(header)
    places = {name: place for place, name in enumerate(wanted)}

    def rank(media_type: str) -> tuple[float, bool, int]:
        ranges = (media_type, media_type.partition("/")[0] + "/*", "*/*")
        found = next((each for each in ranges if each in wanted), "")
        return wanted.get(found, 0), found == media_type, -places.get(found, 0)

    best = max(offered, key=rank)
    return best if rank(best)[0] > 0 else ""
