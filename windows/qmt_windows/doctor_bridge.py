"""What the doctor asks the bridge: both Redis servers with each role's rights, and the clocks."""

from __future__ import annotations

import os
from typing import Any, Final

import redis

from qmt_protocol.errors import ConfigurationError
from qmt_protocol.status import Heartbeat
from qmt_runtime.connections import connect

from .doctor_lines import Level, Line
from .home import Home
from .join import check_servers
from .settings import WindowsSettings, read_settings
from .watch import TIMEOUT_S, read_beats

__all__ = ["look_at_bridge"]

_SLOW_MS: Final = 50.0
_CLOCK_WARN_MS: Final = 2000.0


def look_at_bridge(home: Home) -> list[Line]:
    """Try both servers as producer and worker, and read what they say of their clocks.

    Where no bridge is configured that is all it says.
    """
    if not home.config.exists() and not os.environ.get("QMT_STREAMS_URL"):
        return [
            Line(
                "bridge",
                "warn",
                "本机尚未接入任何 Redis",
                f"no bridge is joined: there is no {home.config.name}",
                (
                    "在 Linux 上运行 docker/join，把输出的一行交给 qmt-windows join",
                    "Run docker/join on Linux and give its line to qmt-windows join",
                ),
            )
        ]
    try:
        settings = read_settings(home)
    except ConfigurationError as error:
        return [
            Line(
                "settings",
                "fail",
                f"设置有误：{error.message}",
                "the settings are wrong",
                ("请改正 qmt.toml", error.hint or "Mend qmt.toml"),
            )
        ]
    return [*_servers(settings), *_clocks(settings)]


def _servers(settings: WindowsSettings) -> list[Line]:
    lines = []
    names = ("streams_as_producer", "streams_as_worker", "jobs_as_worker")
    checks = check_servers(settings, settings.worker_streams_url)
    for name, one in zip(names, checks, strict=True):
        facts = {"latency_ms": round(one.latency_ms, 2)}
        if one.wrong:
            lines.append(Line(name, "fail", one.what, one.wrong))
            continue
        level: Level = "warn" if one.remark or one.latency_ms > _SLOW_MS else "ok"
        text = f"{one.latency_ms:.1f} ms" + (f"; {one.remark}" if one.remark else "")
        lines.append(Line(name, level, one.what, text, facts=facts))
    return lines


def _clocks(settings: WindowsSettings) -> list[Line]:
    """Tell the clocks' differences as the producer of this machine measured them."""
    try:
        with connect(settings.streams_url, timeout_s=TIMEOUT_S) as server:
            beats = read_beats(server, settings.keys)
    except redis.RedisError:
        return []  # told above, in better words
    lines = [_clock(beat) for beat in beats.values() if beat.role == "producer"]
    return [line for line in lines if line is not None]


def _clock(beat: Heartbeat) -> Line | None:
    clocks: dict[str, Any] = beat.figures.get("clocks") or {}
    offs = {
        which: clocks[f"{which}_ms"]
        for which in ("redis", "exchange")
        if isinstance(clocks.get(f"{which}_ms"), (int, float))
    }
    if not offs:
        return None
    far = any(abs(off) > _CLOCK_WARN_MS for off in offs.values())
    names = {"redis": ("Redis", "Redis"), "exchange": ("交易所", "the exchange")}
    chinese = "，".join(f"比{names[one][0]} {off:+.0f} ms" for one, off in offs.items())
    english = ", ".join(f"{off:+.0f} ms to {names[one][1]}" for one, off in offs.items())
    return Line(
        "clocks",
        "warn" if far else "ok",
        f"本机时钟{chinese}",
        f"this machine's clock: {english}",
        ("w32tm /resync 校时", "Synchronise it: w32tm /resync") if far else None,
        dict(clocks),
    )
