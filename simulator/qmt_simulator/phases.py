"""The terminal's day: until when nobody has logged in, and when its quote server is away."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from qmt_simulator.clock import Clock
    from qmt_simulator.faults import Faults

NO_QUOTE_SERVER: Final = "行情服务器未连接"
"""What a download fails with; the real words are not known."""
DOWNLOADS: Final = frozenset(
    {
        "down_cb_data",
        "down_history_contracts",
        "down_index_weight",
        "downloadhisstdata",
        "downloadholidaydata",
        "downloadmetadata",
    }
)
"""Calls that ask the quote server, beside the downloads of history."""


class Phases:
    """What the terminal can do at its present time.

    Parameters
    ----------
    login_at_ms, quotes_at_ms : int
        Market times before which nobody has logged in and no quote server answers; 0: always.
    """

    def __init__(
        self, clock: Clock, faults: Faults, *, login_at_ms: int = 0, quotes_at_ms: int = 0
    ) -> None:
        self._clock = clock
        self._faults = faults
        self._login_at_ms = login_at_ms
        self._quotes_at_ms = quotes_at_ms
        self._away_since_ms: int | None = None
        self._reported_up = self.quotes_up

    @property
    def logged_in(self) -> bool:
        """Whether native clients are let in."""
        late = self._clock.now_ms() < self._login_at_ms
        return not late and "not_logged_in" not in self._faults.phases

    @property
    def quotes_up(self) -> bool:
        """Whether a quote server sends."""
        now_ms = self._clock.now_ms()
        up = now_ms >= self._quotes_at_ms and "quote_server_down" not in self._faults.phases
        if up:
            self._away_since_ms = None
        elif self._away_since_ms is None:
            self._away_since_ms = now_ms
        return up

    def now_ms(self) -> int:
        """Return until when the terminal knows the market: quotes stand while none come."""
        now_ms = self._clock.now_ms()
        if self.quotes_up:
            return now_ms
        since_ms = self._away_since_ms
        return now_ms if since_ms is None else min(now_ms, since_ms)

    def news(self) -> str:
        """Return what became of the quote server since the last call: 'connected' and so on."""
        up = self.quotes_up
        if up == self._reported_up:
            return ""
        self._reported_up = up
        return "connected" if up else "disconnected"
