"""The settings that both tiers have, and the table of settings that --help prints.

Every setting is an environment variable `MILLSTREAM_<NAME>`, or a line of a `.env` file.
"""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from millstream.store.limits import Limits


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="MILLSTREAM_", env_file=".env", extra="ignore", frozen=True)

    redis_url: str = Field("redis://127.0.0.1:6379/0", description="the store: redis://, rediss:// or unix://")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="what is logged")
    data_dir: Path = Field(Path("data"), description="the directory of files that are served, and that analyses read")
    store_patience_s: float = Field(
        10, gt=0, description="how long a call waits through an outage of the store before it fails, in seconds"
    )
    queue_depth: int = Field(100_000, ge=1, description="jobs that may wait or run in one queue and priority")
    owner_in_flight: int = Field(10_000, ge=1, description="jobs of one owner that may wait or run")
    log_events: int = Field(1_000_000, ge=10, description="events in one job's log")
    log_bytes: int = Field(256 * 1024 * 1024, ge=1024, description="bytes of data in one job's log")
    event_bytes: int = Field(1024 * 1024, ge=1024, description="bytes of data in one event, a result included")
    keep_s: float = Field(3600, ge=1, description="how long a job is kept after its end, in seconds")
    life_s: float = Field(86_400, ge=1, description="how long a job may wait, and its log lives, in seconds")
    submit_rate: float = Field(0, ge=0, description="submissions of one owner a second, on average; 0: no limit")
    submit_burst: int = Field(100, ge=1, description="submissions that an owner may make at once, under a rate limit")
    fair_window: int = Field(20, ge=1, description="waiting jobs of one owner that may stand before those of others")

    @property
    def limits(self) -> Limits:
        return Limits(**{field: getattr(self, field) for field in Limits.__dataclass_fields__})


def settings_table(settings: type[Settings]) -> str:
    """Every setting with its default and meaning, as lines for --help."""
    rows = [
        (f"MILLSTREAM_{name.upper()}", _shown_default(field.default), field.description or "")
        for name, field in settings.model_fields.items()
    ]
    width = max(len(name) for name, _, _ in rows)
    return "\n".join(f"{name:<{width}}  {text} [{default}]" for name, default, text in rows)


def _shown_default(value: Any) -> str:
    return "not set" if value in (None, "", ()) else str(value)


def explain(error: ValidationError) -> str:
    """A line for each setting that is wrong: its variable, what it was, what is expected."""
    return "\n".join(
        f"MILLSTREAM_{'_'.join(map(str, item['loc'])).upper()}={item['input']}: {item['msg']}"
        for item in error.errors()
    )
