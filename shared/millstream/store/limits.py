"""What the store accepts and keeps, and how much of it an owner is told. No I/O."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """What a store accepts and keeps. Times in seconds."""

    queue_depth: int = 100_000
    owner_in_flight: int = 10_000
    log_events: int = 1_000_000
    log_bytes: int = 256 * 1024 * 1024
    keep_s: float = 3600
    life_s: float = 86_400
    submit_rate: float = 0
    submit_burst: int = 100
    fair_window: int = 20

    def rate_headers(self, tokens: int) -> dict[str, str]:
        """How much more may be submitted (draft-ietf-httpapi-ratelimit-headers); none where there is no limit (-1)."""
        if not self.submit_rate or tokens < 0:
            return {}
        window = math.ceil(self.submit_burst / self.submit_rate)
        return {
            "RateLimit-Policy": f'"submit";q={self.submit_burst};w={window}',
            "RateLimit": f'"submit";r={tokens};t={math.ceil(1 / self.submit_rate)}',
        }
