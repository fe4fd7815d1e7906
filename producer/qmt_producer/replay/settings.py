"""Settings of a replay."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from qmt_protocol.amounts import parse_speed
from qmt_protocol.errors import InvalidRequest
from qmt_protocol.keys import Keys
from qmt_protocol.settings import CommaList, RedisSettings
from qmt_protocol.times import day_of, parse_start

__all__ = ["ReplaySettings"]


class ReplaySettings(RedisSettings):
    """Publish a stored day again, under a prefix of its own, as if it were live."""

    model_config = SettingsConfigDict(cli_prog_name="qmt-producer replay")

    day: str = Field("", description="trading day, such as 2026-11-20")
    speed: str = Field("1", description="market time per wall time: 1, 10, ..., or max")
    codes: CommaList = Field([], description="codes, comma-separated; none: all that is stored")
    to_prefix: str = Field("", description="prefix of the replay; empty: replay-<day>")
    archive_url: str = Field("", repr=False, description="folder or URL of the archive")
    skip_idle_s: float | None = Field(
        1800.0, ge=0, description="pauses of the market longer than this are skipped"
    )
    feed_keep_s: int = Field(1800, ge=10, description="how long the replay's feed reaches back")
    clean: bool = Field(
        False, description="remove the replay of --to-prefix or --day, or, without them, every one"
    )
    exit_with_stdin: bool = Field(False, description="end when standard input closes")

    @property
    def day_number(self) -> int:
        """The day as ``YYYYMMDD``.

        Raises
        ------
        InvalidRequest
            When there is none, or it is no date.
        """
        at_ms = parse_start(self.day)
        if at_ms is None:
            raise InvalidRequest("No day is named.", hint="For example --day 2026-11-20.")
        return day_of(at_ms)

    @property
    def pace(self) -> float | Literal["max"]:
        """The speed as a number, or ``max``.

        Raises
        ------
        InvalidRequest
            When it is neither.
        """
        speed = parse_speed(self.speed)
        return "max" if speed == math.inf else speed

    @property
    def to_keys(self) -> Keys:
        """Keys of the replay.

        Raises
        ------
        InvalidRequest
            When it is the prefix that is read.
        """
        keys = Keys(self.to_prefix or f"replay-{self.day_number}")
        if keys.prefix == self.prefix:
            raise InvalidRequest(
                f"{self.prefix} is the prefix of the live data.",
                hint="Name another one by --to-prefix.",
            )
        return keys
