"""Settings of `qmt-standalone`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from qmt_protocol.settings import PathOrNone, RoleSettings

__all__ = ["StandaloneSettings"]


class StandaloneSettings(RoleSettings):
    """Run QMT Bridge whole on this machine: Redis servers, a simulated market, all roles."""

    model_config = SettingsConfigDict(
        cli_prog_name="qmt-standalone",
        cli_shortcuts={"for-s": "for", "bridge-port": "http-port"},
    )

    for_s: float | None = Field(
        None,
        gt=0,
        description="end by itself so many seconds after everything is up",
    )
    data_dir: PathOrNone = Field(
        None, description="folder for data and logs, kept; without it a temporary one is removed"
    )
    bridge_port: int = Field(
        8000,
        ge=1,
        le=65535,
        description="port of the gateway; another one is taken, and told, when it is in use",
    )
    redis_server: str = Field(
        "", description="redis-server or valkey-server 7+ to run; empty: PATH, then the wheel's"
    )
    streams_memory_mb: int = Field(
        4096, ge=64, description="memory limit of the streams server; beyond it ticks wait"
    )
    markets: str = Field("SH,SZ,BJ", description="markets to publish, comma-separated")
    terminal: bool = Field(
        False, description="use the QMT terminal on this Windows machine, not the simulator"
    )
    calendar_file: PathOrNone = Field(
        None, description="holidays and trading days by your own word (TOML); empty: there are none"
    )
    profile: Literal["research", "broker", "old"] = Field(
        "research", description="which terminal the simulator plays"
    )
    seed: int = Field(20260101, ge=0, description="seed of the simulated market")
    start: str = Field(
        "", description="simulated market time to start at, 'YYYY-MM-DD HH:MM:SS'; empty: now"
    )
    speed: float = Field(1.0, ge=0, description="market seconds per second, with --start")
    interval_ms: int = Field(
        3000, ge=20, le=15_000, description="time between two ticks of a code; divides a minute"
    )
    start_timeout_s: float = Field(
        90.0, gt=0, description="how long one part may take until it is healthy"
    )
