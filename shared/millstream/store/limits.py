"""What the store accepts and keeps: settings of both tiers, and arguments of the scripts, by the same names. No I/O."""

import math

from pydantic import BaseModel, ConfigDict, Field


class Limits(BaseModel):
    """Times in seconds. A field is a setting (MILLSTREAM_<NAME>); a script that names it as an argument is given it."""

    model_config = ConfigDict(frozen=True)

    queue_depth: int = Field(100_000, ge=1, description="jobs that may wait or run in one queue and priority")
    owner_in_flight: int = Field(10_000, ge=1, description="jobs of one owner that may wait or run")
    owner_bytes: int = Field(
        1024**3,
        ge=1024**2,
        description="bytes of parameters, logs and results that one owner's jobs may hold, ended ones included; beyond "
        "it no more are accepted, and those that have not ended may not log more together",
    )
    owner_listed: int = Field(10_000, ge=1, description="newest jobs of one owner that GET /jobs can list")
    log_events: int = Field(1_000_000, ge=10, description="events in one job's log")
    log_bytes: int = Field(256 * 1024 * 1024, ge=1024, description="bytes of data in one job's log")
    keep_s: float = Field(3600, ge=1, description="how long a job is kept after its end, in seconds")
    life_s: float = Field(86_400, ge=1, description="how long a job may wait, and its log lives, in seconds")
    submit_rate: float = Field(0, ge=0, description="submissions of one owner a second, on average; 0: no limit")
    submit_burst: int = Field(100, ge=1, description="submissions that an owner may make at once, under a rate limit")
    hand_backs: int = Field(
        10, ge=0, description="times that workers that stop may hand a job over before each time uses up an attempt"
    )
    fair_window: int = Field(20, ge=1, description="waiting jobs of one owner that may stand before those of others")

    def arguments(self) -> dict[str, int | float]:
        """By the names that scripts use: a time `x_s` is `x_ms` there, in milliseconds."""
        values = {name: getattr(self, name) for name in Limits.model_fields}
        return {
            f"{name[:-2]}_ms" if name.endswith("_s") else name: round(value * 1000) if name.endswith("_s") else value
            for name, value in values.items()
        }

    def rate_headers(self, tokens: int) -> dict[str, str]:
        """How much more may be submitted (draft-ietf-httpapi-ratelimit-headers); none where there is no limit (-1)."""
        if not self.submit_rate or tokens < 0:
            return {}
        window = math.ceil(self.submit_burst / self.submit_rate)
        return {
            "RateLimit-Policy": f'"submit";q={self.submit_burst};w={window}',
            "RateLimit": f'"submit";r={tokens};t={math.ceil(1 / self.submit_rate)}',
        }
