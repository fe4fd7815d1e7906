"""When to ask for help: what is seen goes in, alerts come out. No clock and no I/O of its own.

One alert for a trouble until it changes, one 'well again' when it is over. A terminal that is not
ready is told of at set times before the open, and within a minute while the exchanges trade: at
night it is closed every day, and nobody wants to be woken by that. On a new trading day the same
trouble is a new one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from qmt_protocol.times import DAY_MS, day_of, day_start_ms, is_weekday

__all__ = ["Alert", "Seen", "Troubles"]

_OPEN_S: Final = 9 * 3600 + 15 * 60
_CLOSE_S: Final = 15 * 3600
_BAD_FOR_MS: Final = 60_000
"""How long, by the market's clock, a terminal is away in trading hours before it is told."""
_SURE_MS: Final = 5_000
"""A state that has not lasted so long may be a passing one: a process that has just begun."""
_REDIS_AWAY_S: Final = 60.0
_UNHEARD_S: Final = 60.0
_LATEST_MS: Final = 600_000
"""A set time that was slept through is let go after so long."""


@dataclass(frozen=True)
class Alert:
    """One message to people."""

    kind: str
    """``terminal``, ``redis``, ``terminals`` (they differ), ``producer``, ``worker`` or
    ``calendar`` (its file is wrong)."""
    state: str
    """The trouble, or ``ok``."""
    reason: str
    at_ms: int
    """Market time."""
    simulated: bool = False

    @property
    def well(self) -> bool:
        """Whether it says that a trouble is over."""
        return self.state == "ok"

    def to_dict(self) -> dict[str, Any]:
        """Return it ready for JSON."""
        return {
            "kind": self.kind,
            "state": self.state,
            "reason": self.reason,
            "at_ms": self.at_ms,
            "simulated": self.simulated,
        }


@dataclass(frozen=True)
class Seen:
    """What is seen at one moment.

    Attributes
    ----------
    market_ms : int
        Market time, ms since the epoch.
    now_s : float
        Seconds of a clock that only goes forward.
    terminal, reason : str
        The terminal's state by the producer; ``""``: the producer is not heard of.
    trades : bool or None
        Whether the market's day is a trading day, ``None`` where nobody knows.
    redis_away_s : float
        For how long the streams server has been away; 0: it answers.
    others : mapping of str to (str, str)
        Troubles that are told at once: kind to state and reason.
    """

    market_ms: int
    now_s: float
    terminal: str = ""
    reason: str = ""
    trades: bool | None = None
    redis_away_s: float = 0.0
    others: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    simulated: bool = False


class Troubles:
    """Remembers what was told.

    Parameters
    ----------
    alert_at
        Set times, seconds from 00:00 China time.
    """

    def __init__(self, alert_at: Sequence[int]) -> None:
        self._alert_at = sorted(alert_at)
        self._alerted: dict[str, str] = {}
        self._alerted_day = 0
        self._last_ms: int | None = None
        self._due_ms: int | None = None
        self._terminal = ""
        self._terminal_since_ms = 0
        self._unheard_since_s: float | None = None

    @property
    def open(self) -> dict[str, str]:
        """Troubles that were told and are not over: kind to state."""
        return dict(self._alerted)

    def assess(self, seen: Seen) -> list[Alert]:
        """Return what is to be told now."""
        alerts = self._at_once(seen)
        state = self._state(seen)
        if state != self._terminal:
            self._terminal, self._terminal_since_ms = state, seen.market_ms
        self._note_set_time(seen.market_ms)
        alerts += self._of_terminal(state, seen)
        self._last_ms = seen.market_ms
        return alerts

    def _at_once(self, seen: Seen) -> list[Alert]:
        now = dict(seen.others)
        if seen.redis_away_s > _REDIS_AWAY_S:
            now["redis"] = ("away", f"no answer for {seen.redis_away_s:.0f} s")
        alerts = []
        for kind, (state, reason) in now.items():
            if self._alerted.get(kind) != state:
                self._alerted[kind] = state
                alerts.append(self._alert(kind, state, reason, seen))
        for kind in [one for one in self._alerted if one != "terminal" and one not in now]:
            if kind == "redis" and seen.redis_away_s > 0:
                continue
            del self._alerted[kind]
            alerts.append(self._alert(kind, "ok", "", seen))
        return alerts

    def _state(self, seen: Seen) -> str:
        """Return the terminal's state; ``""`` as long as it may still be told."""
        if seen.terminal:
            self._unheard_since_s = None
            return seen.terminal
        if self._unheard_since_s is None:
            self._unheard_since_s = seen.now_s
        known = seen.redis_away_s > 0 or "producer" in seen.others
        if known or seen.now_s - self._unheard_since_s < _UNHEARD_S:
            return ""
        return "unknown"

    def _note_set_time(self, market_ms: int) -> None:
        if self._due_ms is not None and market_ms - self._due_ms > _LATEST_MS:
            self._due_ms = None
        last_ms = self._last_ms
        if last_ms is None or market_ms <= last_ms:
            return
        for day_ms in {day_start_ms(day_of(last_ms)), day_start_ms(day_of(market_ms))}:
            for second in self._alert_at:
                at_ms = day_ms + second * 1000
                if last_ms < at_ms <= market_ms and market_ms - at_ms <= _LATEST_MS:
                    self._due_ms = at_ms

    def _of_terminal(self, state: str, seen: Seen) -> list[Alert]:
        since_ms = seen.market_ms - self._terminal_since_ms
        if not state or since_ms < _SURE_MS:
            return []
        if state == "ok":
            self._due_ms = None
            if "terminal" not in self._alerted:
                return []
            del self._alerted["terminal"]
            return [self._alert("terminal", "ok", "", seen)]
        today = day_of(seen.market_ms)
        trades = is_weekday(today) if seen.trades is None else seen.trades
        due, self._due_ms = self._due_ms is not None, None
        if not trades:
            return []
        second = (seen.market_ms - day_start_ms(today)) % DAY_MS // 1000
        in_hours = _OPEN_S <= second < _CLOSE_S and since_ms >= _BAD_FOR_MS
        is_alerted = self._alerted.get("terminal") == state and self._alerted_day == today
        if is_alerted or not (due or in_hours):
            return []
        self._alerted["terminal"], self._alerted_day = state, today
        return [self._alert("terminal", state, seen.reason, seen)]

    @staticmethod
    def _alert(kind: str, state: str, reason: str, seen: Seen) -> Alert:
        return Alert(kind, state, reason, seen.market_ms, seen.simulated)
