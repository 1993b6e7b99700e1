"""The settings that both tiers have, and the table of settings that --help prints.

Every setting is an environment variable `MILLSTREAM_<NAME>`, or a line of a `.env` file.
"""

import os
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import structlog
from dotenv import dotenv_values
from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict
from redis import ConnectionPool

from millstream.store.limits import Limits
from millstream.store.pipeline import shown

log = structlog.get_logger("millstream.settings")

PREFIX, DOTENV = "MILLSTREAM_", ".env"
ALIKE = 0.8  # of two names: a typing error, but not the name of the other tier's setting


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

    @field_validator("redis_url")
    @classmethod
    def _redis_url(cls, url: str) -> str:
        try:
            ConnectionPool.from_url(url).make_connection()  # no I/O
        except (ValueError, TypeError, AttributeError):  # what they say may hold a part of the password
            raise ValueError(
                "a URL is expected, such as redis://:PASSWORD@store:6379/0 or unix:///run/x.sock"
            ) from None
        return url


class Settings(Limits, ProcessSettings):
    """The settings of both tiers: a process', and the limits of the store."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_file=DOTENV, extra="ignore", frozen=True)


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
        f"MILLSTREAM_{'_'.join(map(str, item['loc'])).upper()}={_printable(item['input'])}: {item['msg']}"
        for item in error.errors()
    )


def _printable(value: Any) -> str:
    return shown(value) if isinstance(value, str) and "://" in value else str(value)


def warn_of_mistyped(settings: type[Settings]) -> None:
    """Log each variable that is no setting but reads almost as one does."""
    given = {*os.environ, *dotenv_values(DOTENV)}
    for name, meant in mistyped(settings, given):
        log.warning(f"there is no such setting; did you mean {meant}?", variable=name)


def mistyped(settings: type[Settings], given: Iterable[str]) -> list[tuple[str, str]]:
    """Variables that are no settings, and the ones that are almost the same."""
    known = {name.upper() for name in settings.model_fields}
    odd = {name.upper().removeprefix(PREFIX) for name in given if name.upper().startswith(PREFIX)} - known
    return [
        (PREFIX + name, PREFIX + meant)
        for name in sorted(odd)
        for meant in get_close_matches(name, known, n=1, cutoff=ALIKE)
    ]
