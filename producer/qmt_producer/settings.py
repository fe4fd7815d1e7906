"""Settings of the producer."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator

from qmt_protocol.limits import MAX_BATCH
from qmt_protocol.settings import CommaList, RedisSettings, TerminalSettings

__all__ = ["ProducerSettings"]


class ProducerSettings(RedisSettings, TerminalSettings):
    """Push the terminal's ticks, and wanted bars, into Redis Streams."""

    markets: CommaList = Field(
        ["SH", "SZ", "BJ"], min_length=1, description="markets to publish, comma-separated"
    )
    ring: Path = Field(
        Path("qmt-ring.sqlite"), description="file that keeps ticks until Redis has them"
    )
    ring_max_mb: int = Field(2048, ge=1, description="size at which the ring gives up its oldest")
    ring_keep_s: int = Field(900, ge=0, description="how long published ticks stay in the ring")
    queue_mb: int = Field(256, ge=1, description="most MB of pushes waiting to be encoded")
    batch_ticks: int = Field(
        MAX_BATCH, ge=1, le=MAX_BATCH, description="most ticks in one call to Redis"
    )
    lease_s: float = Field(
        4.0, ge=1, le=60, description="how long the right to publish outlives its use"
    )
    feed_keep_s: int = Field(1800, ge=10, description="how long the live feed reaches back")
    future_ms: int = Field(
        10_000, ge=0, description="how far ahead of Redis time a tick may be before it is clamped"
    )
    deaf_after_s: float = Field(
        60.0, ge=0.5, description="silence in trading hours after which the feed is taken for deaf"
    )
    clock_warn_ms: int = Field(
        2000, ge=1, description="difference from Redis' or the exchange's clock that is told"
    )
    demand_max: int = Field(
        50, ge=0, description="most single codes and bars subscribed because readers want them"
    )
    bar_grace_s: float = Field(
        5.0, ge=0, description="how long after its end a bar may change before it is called closed"
    )
    keep_days: int = Field(3, ge=1, description="trading days that the streams keep")
    max_memory_share: float = Field(
        0.85, gt=0, le=1, description="part of Redis' maxmemory beyond which the oldest goes early"
    )
    exit_with_stdin: bool = Field(False, description="end when standard input closes")

    @model_validator(mode="after")
    def _keep_functions(self) -> ProducerSettings:
        if self.functions_file is None:
            self.functions_file = self.ring.with_name("qmt-functions.json")
        return self
