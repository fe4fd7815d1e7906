"""The standing subscription: made, kept alive, watched for silence, and its silences named."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final, Literal

import structlog

from qmt_protocol.errors import QMTError, TerminalNotConnected
from qmt_terminal import Terminal

from .hours import TradingHours

__all__ = ["Listener"]

log: Final = structlog.get_logger(__name__)

_PULSES: Final = {"SH": "000001.SH", "SZ": "399001.SZ", "BJ": "899050.BJ"}
"""Per market an index that moves all the time; a feed is deaf when these trade and it is silent."""
_STEPS: Final = ("resubscribed", "reconnected", "restart")
_SNAPSHOT_MS: Final = 2000
"""A new subscription begins with a snapshot even where nothing follows: no sign of life."""


class Listener:
    """Keeps the whole-market subscription of one terminal; `look` is called again and again.

    A connection that is up and silent in trading hours is deaf. It is subscribed again, after as
    long again connected anew, and after as long again `must_restart` is set. The silence from the
    last push before it to the first one behind it is named.

    Parameters
    ----------
    put
        Takes the pushes.
    last_push_ms
        Tells when the last one came, by the wall clock.
    deaf_after_s
        Length of a silence that is suspicious.
    on_silent
        Called with the begin (wall ms) and the reason of a silence before the subscription that
        may end it; again before each further try.
    on_heard
        Called with the end (wall ms) when it is over.
    on_event
        Called with an event document when something is to be told.
    silent_since_ms
        Since when nothing was heard before the start; 0: never was anything.
    """

    def __init__(
        self,
        terminal: Terminal,
        markets: list[str],
        hours: TradingHours,
        *,
        put: Callable[[bytes], None],
        last_push_ms: Callable[[], int],
        deaf_after_s: float,
        on_silent: Callable[[int, str], None],
        on_heard: Callable[[int], None],
        on_event: Callable[[dict[str, Any]], None],
        silent_since_ms: int,
    ) -> None:
        self._terminal = terminal
        self._markets = markets
        self._hours = hours
        self._put = put
        self._last_push_ms = last_push_ms
        self._deaf_after_ms = int(deaf_after_s * 1000)
        self._on_silent = on_silent
        self._on_heard = on_heard
        self._on_event = on_event
        self._pulse = next((_PULSES[market] for market in markets if market in _PULSES), "")
        self._silent_since_ms: int | None = silent_since_ms
        self._why_silent = "no producer was listening"
        self._subscribed = False
        self._number = -1
        self._generation = terminal.generation
        self._subscribed_ms = 0
        self._alive_ms = 0
        self._market_ms = 0
        self._steps_done = 0
        self.state: Literal["ok", "not_connected", "deaf"] = "not_connected"
        self.reason = "not tried yet"
        self.since_ms = _now_ms()
        self.subscriptions = 0
        """How often it has subscribed: whatever else was subscribed before is gone or stale."""
        self.must_restart = False

    @property
    def listening(self) -> bool:
        """Whether the terminal pushes, as far as can be known."""
        return self.state == "ok"

    def look(self) -> bool:
        """Do what the subscription needs now; return whether it stands."""
        if self._subscribed and not self._terminal.connected:
            self._lost("the terminal closed the connection")
        if not self._subscribed:
            return self._connect()
        if self._terminal.generation != self._generation:
            return self._renew_after_drop()
        self._listen()
        self._alive_ms = _now_ms()
        return True

    # -- subscribing --------------------------------------------------------------------------

    def _connect(self) -> bool:
        try:
            info = self._terminal.connect()
            self._subscribe()
        except TerminalNotConnected as error:
            self.reason = error.message
            return False
        except QMTError as error:
            log.error("the subscription failed", error=str(error))
            self.reason = error.message
            return False
        log.info("subscribed", markets=self._markets, terminal=info.address)
        self._on_event({"kind": "connected", "terminal": info.address, "markets": self._markets})
        if self._steps_done:
            self._set("deaf", self.reason)
            return True
        self._end_silence(self._subscribed_ms)
        self._set("ok", "")
        return True

    def _subscribe(self) -> None:
        """Subscribe, once: an older subscription of this connection would push everything twice."""
        if self._silent_since_ms is not None:
            self._on_silent(self._silent_since_ms, self._why_silent)
        generation = self._terminal.generation
        if self._number >= 0 and generation[0] == self._generation[0]:
            self._terminal.unsubscribe(self._number)
        self._number = self._terminal.subscribe_pushes(self._markets, self._put)
        self._generation = generation
        self._subscribed = True
        self._subscribed_ms = self._alive_ms = _now_ms()
        self.subscriptions += 1

    def _renew_after_drop(self) -> bool:
        """The connection broke and came back by itself: its subscriptions may be gone."""
        self._go_silent(self._heard_ms(), "the terminal was away")
        try:
            self._subscribe()
        except QMTError as error:
            self._lost(error.message)
            return False
        log.warning("the connection broke and came back")
        self._on_event({"kind": "resubscribed", "reason": "the connection broke and came back"})
        if not self._steps_done:
            self._end_silence(self._subscribed_ms)
        return True

    def _heard_ms(self) -> int:
        """Return until when certainly nothing was missed: the last push, or sign of life."""
        return max(self._last_push_ms(), self._alive_ms)

    def _lost(self, reason: str) -> None:
        self._subscribed = False
        self._go_silent(self._heard_ms(), "the terminal was away")
        self._set("not_connected", reason)
        log.warning("the terminal is gone", reason=reason)
        self._on_event({"kind": "lost", "reason": reason})

    def _go_silent(self, from_ms: int, reason: str) -> None:
        if self._silent_since_ms is None:
            self._silent_since_ms, self._why_silent = from_ms, reason

    def _end_silence(self, at_ms: int) -> None:
        if self._silent_since_ms is not None:
            self._silent_since_ms = None
            self._on_heard(at_ms)

    def _set(self, state: Literal["ok", "not_connected", "deaf"], reason: str) -> None:
        self.state, self.reason, self.since_ms = state, reason, _now_ms()

    # -- alive but deaf -----------------------------------------------------------------------

    def _listen(self) -> None:
        heard_ms, now_ms = self._last_push_ms(), _now_ms()
        market_ms = self._terminal.now_ms()
        moves = market_ms > self._market_ms  # a simulated clock can stand
        self._market_ms = market_ms
        settle_ms = min(_SNAPSHOT_MS, self._deaf_after_ms // 2)
        if self._steps_done and heard_ms > self._subscribed_ms + settle_ms:
            self._recovered("pushes came again", heard_ms)
            return
        since_ms = self._subscribed_ms if self._steps_done else max(heard_ms, self._subscribed_ms)
        if now_ms - since_ms < self._deaf_after_ms:
            return
        try:
            trades = moves and self._pulse
            open_for_ms = self._hours.open_for_ms(self._pulse) if trades else 0
        except QMTError as error:  # the next look finds the connection gone
            log.warning("trading hours are not known", error=error.message)
            return
        if self._steps_done and open_for_ms == 0:
            self._recovered("the market closed", now_ms)
        elif open_for_ms >= self._deaf_after_ms:
            self._help(heard_ms, now_ms)

    def _help(self, heard_ms: int, now_ms: int) -> None:
        """Take the next step against a silence."""
        if not self._steps_done:
            self._go_silent(heard_ms or self._subscribed_ms, "the terminal was silent")
        silent_s = self._silent_s(now_ms)
        step = _STEPS[min(self._steps_done, len(_STEPS) - 1)]
        self._steps_done += 1
        reason = f"connected, but nothing came for {silent_s} s of trading"
        self._set("deaf", reason)
        log.error("the feed is deaf", silent_s=silent_s, step=step)
        self._on_event({"kind": "deaf", "done": step, "silent_s": silent_s})
        if step == "restart":
            self.must_restart = True
            return
        try:
            if step == "reconnected":
                self._terminal.close()
                self._number = -1
                self._terminal.connect()
            self._subscribe()
        except QMTError as error:
            self._lost(error.message)

    def _recovered(self, done: str, at_ms: int) -> None:
        self._steps_done = 0
        log.info("the feed is no longer deaf", why=done)
        self._on_event({"kind": "deaf", "done": done, "silent_s": self._silent_s(at_ms)})
        self._end_silence(at_ms)
        self._set("ok", "")

    def _silent_s(self, at_ms: int) -> float:
        since_ms = at_ms if self._silent_since_ms is None else self._silent_since_ms
        return round((at_ms - since_ms) / 1000, 1)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
