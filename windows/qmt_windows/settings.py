"""Settings of `qmt-windows`; producer and worker read the same ``qmt.toml``."""

from __future__ import annotations

import os
import re
from typing import Annotated, Final

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import NoDecode

from qmt_protocol.errors import ConfigurationError
from qmt_protocol.settings import PathOrNone, RedisSettings, load_settings
from qmt_protocol.urls import OptionalRedisUrl

from .home import Home

__all__ = ["WindowsSettings", "read_settings"]

_TIME: Final = re.compile(r"([01]\d|2[0-3]):([0-5]\d)", re.ASCII)


class WindowsSettings(RedisSettings):
    """Run everything that belongs beside the terminal, and say when it is not well."""

    worker_streams_url: OptionalRedisUrl = Field(
        "", repr=False, description="streams Redis with the worker's user; empty: streams_url"
    )
    ring: PathOrNone = Field(None, description="the producer's ring; empty: in the home folder")
    functions_file: PathOrNone = Field(
        None, description="table of the terminals' functions; empty: in the home folder"
    )
    calendar_file: PathOrNone = Field(
        None,
        description="holidays and trading days by your own word; empty: calendar.toml in the home "
        "folder",
    )
    alert_at: Annotated[list[str], NoDecode] = Field(
        ["08:30", "09:00", "09:10", "09:20"],
        description="China times of trading days at which a terminal that is not ready is told of",
    )
    alert_urls: Annotated[list[str], NoDecode] = Field(
        [],
        repr=False,
        description="webhooks; wecom:, dingtalk:, bark: or post: before a URL says which kind",
    )
    alert_secret: SecretStr = Field(
        SecretStr(""), description="signing secret of DingTalk's webhook"
    )
    log_max_mb: int = Field(20, ge=1, description="size at which a log file is changed")
    log_files: int = Field(10, ge=1, description="older files kept of each log")
    exit_with_stdin: bool = Field(False, description="end when standard input closes")

    @field_validator("alert_at", "alert_urls", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return [part for part in re.split(r"[,\s]+", value) if part]
        return value

    @field_validator("alert_at")
    @classmethod
    def _are_times(cls, value: list[str]) -> list[str]:
        for one in value:
            if not _TIME.fullmatch(one):
                raise ValueError(f"{one!r} is no time such as 08:30")
        return sorted(set(value))

    @property
    def alert_seconds(self) -> list[int]:
        """The times of `alert_at`, in seconds from 00:00."""
        return [int(one[:2]) * 3600 + int(one[3:]) * 60 for one in self.alert_at]


def read_settings(home: Home) -> WindowsSettings:
    """Read the settings of a home folder.

    Raises
    ------
    ConfigurationError
        When a value is not allowed, or the file cannot be read.
    """
    os.environ["QMT_CONFIG"] = str(home.config)
    try:
        return load_settings(WindowsSettings, [])
    except (ValueError, OSError) as error:
        raise ConfigurationError(
            f"{home.config} cannot be read: {error}.",
            hint="It must be TOML in UTF-8; `qmt-windows join` writes one.",
        ) from error
