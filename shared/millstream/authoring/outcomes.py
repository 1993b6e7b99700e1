"""What an analysis raises to say whether another attempt may help."""

MAX_DELAY_S = 10 * 366 * 86_400


class Final(Exception):
    """Raise it for a failure that another attempt cannot mend."""


class Retry(Exception):
    """Raise it to be run again, while attempts are left, after `delay_s` seconds (absent: an increasing random
    delay).
    """

    def __init__(self, message: str = "The analysis asked to be run again.", *, delay_s: float | None = None) -> None:
        super().__init__(message)
        if delay_s is not None and not 0 <= delay_s <= MAX_DELAY_S:
            raise ValueError(f"delay_s must be a number of seconds from 0 to {MAX_DELAY_S}, not {delay_s!r}.")
        self.delay_s = delay_s
