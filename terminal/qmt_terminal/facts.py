"""What a terminal tells of itself, its clock and its trading day."""

from __future__ import annotations

import dataclasses
from typing import Any, Final

from .discovery import broker_of, root_of

__all__ = ["Clock", "Link", "TerminalInfo", "TradingSession", "describe"]

_SAME_MS: Final = 1000


@dataclasses.dataclass(frozen=True)
class TerminalInfo:
    """What a terminal says of itself, and the copy of xtquant that asked it."""

    address: str
    edition: str
    version: str
    xtquant_version: str
    simulated: bool
    broker: str = ""
    """As its folder or the terminal itself names it; ``""`` where neither does."""
    path: str = ""
    """The terminal's folder."""
    data_dir: str = ""
    app_dir: str = ""
    xtquant_path: str = ""

    @property
    def port(self) -> int | None:
        """Where it listens."""
        port = self.address.rpartition(":")[2]
        return int(port) if port.isdigit() else None

    def facts(self) -> dict[str, Any]:
        """Return what a heartbeat's ``terminal`` tells of it."""
        return {
            "address": self.address,
            "edition": self.edition,
            "version": self.version,
            "broker": self.broker,
            "path": self.path,
            "xtquant_version": self.xtquant_version,
            "xtquant_path": self.xtquant_path,
        }


@dataclasses.dataclass(frozen=True)
class TradingSession:
    """One part of an instrument's trading day."""

    status: int
    """2 opening auction, 3 continuous, 8 closing auction, 15 matching (Hong Kong)."""
    start_s: int
    """Seconds from 00:00 of the trading day; negative: the evening before."""
    end_s: int


@dataclasses.dataclass
class Link:
    """One connection's life, as its status callback tells it."""

    lost: bool = False
    drops: int = 0

    def on_status(self, status: dict[str, Any]) -> None:
        """Take what xtdata tells of the connection."""
        self.lost = status.get("status") != "connected"
        self.drops += self.lost


@dataclasses.dataclass(frozen=True)
class Clock:
    """A simulated terminal's market time as a linear function of the wall clock."""

    market_ms: int
    wall_ms: int
    speed: float

    @property
    def is_real(self) -> bool:
        """Whether it goes with the wall clock all the same."""
        return self.speed == 1.0 and abs(self.market_ms - self.wall_ms) < _SAME_MS

    def to_dict(self) -> dict[str, Any]:
        """Return the heartbeat's ``clock``: market_ms + (wall - wall_ms) * speed is now."""
        return {"market_ms": self.market_ms, "wall_ms": self.wall_ms, "speed": self.speed}

    def at(self, wall_ms: int) -> int:
        """Return the market's time at a time of the wall clock."""
        return self.market_ms + int((wall_ms - self.wall_ms) * self.speed)


def describe(
    client: Any, tag: dict[str, Any], *, xtquant_version: str, xtquant_path: str, simulated: bool
) -> TerminalInfo:
    """Ask a connected client what it is connected to.

    Parameters
    ----------
    tag
        Its server tag, decoded; empty where it has none.
    """
    data_dir, app_dir = (_asked(client, name) for name in ("get_data_dir", "get_app_dir"))
    path = root_of(app_dir or data_dir)
    return TerminalInfo(
        address=_asked(client, "get_peer_addr"),
        edition=str(tag.get("edition") or tag.get("tag") or ""),
        version=str(tag.get("version") or ""),
        xtquant_version=xtquant_version,
        simulated=bool(tag.get("simulated")) or simulated,
        broker=str(tag.get("broker") or broker_of(path)),
        path=path,
        data_dir=data_dir,
        app_dir=app_dir,
        xtquant_path=xtquant_path,
    )


def _asked(client: Any, name: str) -> str:
    ask = getattr(client, name, None)  # older natives tell less
    return str(ask() or "") if ask is not None else ""
