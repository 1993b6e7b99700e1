"""How long to wait before the next try: doubled with each failure, up to a bound."""


def backoff_s(failures: int, *, first_s: float, max_s: float) -> float:
    """Seconds to wait after so many failures in a row (1, 2, …): `first_s` after the first, never more than `max_s`.

    It holds for any number of failures: an outage that lasts for days ends no task by an overflow.
    """
    return min(max_s, first_s * 2.0 ** min(failures - 1, 64))
