"""Settings of the archive."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from pydantic_settings import NoDecode, SettingsConfigDict

from qmt_protocol.settings import RedisSettings

__all__ = ["ArchiveSettings", "RunSettings"]


class ArchiveSettings(RedisSettings):
    """Where the archive lies."""

    model_config = SettingsConfigDict(cli_prog_name="qmt-archive")

    archive_url: str = Field(
        "archive",
        min_length=1,
        repr=False,
        description="folder, or s3://bucket/path?endpoint_override=...",
    )


class RunSettings(ArchiveSettings):
    """Follow the feeds and write ticks and closed bars to Parquet, until Ctrl-C."""

    model_config = SettingsConfigDict(cli_prog_name="qmt-archive run")

    archive_markets: Annotated[list[str], NoDecode] = Field(
        default_factory=list, description="markets to archive; empty: all that are published"
    )
    archive_flush_s: float = Field(
        60.0, gt=0, le=3600, description="seconds between two writes, at most"
    )
    archive_flush_rows: int = Field(
        200_000, ge=1, le=5_000_000, description="rows that wait for a write, at most"
    )
    archive_compact_after_s: float = Field(
        600.0, ge=0, description="silence after 15:30 after which a day is compacted"
    )
    exit_with_stdin: bool = Field(False, description="end when standard input is closed")
