"""The settings that both tiers have, and the table of settings that --help prints.

Every setting is an environment variable `MILLSTREAM_<NAME>`, or a line of a `.env` file.
"""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from millstream.store.limits import Limits


class ProcessSettings(BaseSettings):
    """What a process is told of its surroundings."""

    redis_url: str = Field("redis://127.0.0.1:6379/0", description="the store: redis://, rediss:// or unix://")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="the lowest level that is logged"
    )
    data_dir: Path = Field(Path("data"), description="the directory of files that are served and that analyses read")
    store_patience_s: float = Field(
        10,
        gt=0,
        description="how long a call waits through an outage of the store before it fails, in seconds; a connection to "
        "the store that is silent for half as long (0.5 to 10 s) is made again",
    )
    event_bytes: int = Field(1024 * 1024, ge=1024, description="bytes of data in one event, a result included")


class Settings(Limits, ProcessSettings):
    """The settings of both tiers: a process', and the limits of the store."""

    model_config = SettingsConfigDict(env_prefix="MILLSTREAM_", env_file=".env", extra="ignore", frozen=True)


def settings_table(settings: type[Settings]) -> str:
    """Every setting with its default and meaning, as lines for --help."""
    rows = [
        (f"MILLSTREAM_{name.upper()}", shown_default(field.default), field.description or "")
        for name, field in settings.model_fields.items()
    ]
    width = max(len(name) for name, _, _ in rows)
    return "\n".join(f"{name:<{width}}  {text} [{default}]" for name, default, text in rows)


def shown_default(value: Any) -> str:
    return "not set" if value in (None, "", ()) else str(value)


def explain(error: ValidationError) -> str:
    """A line for each setting that is wrong: its variable, what it was, what is expected."""
    return "\n".join(
        f"MILLSTREAM_{'_'.join(map(str, item['loc'])).upper()}={item['input']}: {item['msg']}"
        for item in error.errors()
    )
