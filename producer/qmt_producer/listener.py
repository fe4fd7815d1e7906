"""The standing subscription: made, kept alive, watched for silence, and its silences named."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

import structlog

from qmt_protocol.errors import QMTError
from qmt_terminal import Terminal
from qmt_terminal.programs import TerminalPrograms
from qmt_terminal.states import Evidence, State, decide

from .hours import TradingHours

__all__ = ["Listener"]

log: Final = structlog.get_logger(__name__)

_PULSES: Final = {"SH": "000001.SH", "SZ": "399001.SZ", "BJ": "899050.BJ"}
"""Per market an index that moves all the time; a feed is deaf when these trade and it is silent."""
_STEPS: Final = ("resubscribed", "reconnected", "restart")
_SNAPSHOT_MS: Final = 2000
"""A new subscription begins with a snapshot even where nothing follows: no sign of life."""
_NO_QUOTES: Final = "the quote server was away"


class Listener:
    """Keeps the whole-market subscription of one terminal; `look` is called again and again.

    A connection that is up and silent in trading hours is deaf. It is subscribed again, after as
    long again connected anew, and after as long again `must_restart` is set; where the day
    may be a holiday for all that is known, it is subscribed again and no more. A terminal without
    a quote server is silent for a reason that nothing here can mend: it is only waited for. The
    silence from the last push before it to the first one behind it is named.

    Parameters
    ----------
    programs
        Tells a terminal that waits for its login from one that does not run.
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
        programs: TerminalPrograms,
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
        self._programs = programs
        self._put = put
        self._last_push_ms = last_push_ms
        self._deaf_after_ms = int(deaf_after_s * 1000)
        self._settle_ms = min(_SNAPSHOT_MS, self._deaf_after_ms // 2)
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
        self._why_not = "not tried yet"
        self._deaf = ""
        self._quotes_up: bool | None = None
        self._quotes_gone_ms = 0
        self._quotes_back_ms = 0
        self._refuted = False  # pushes came though the quote server was said to be away
        self._waits_for_push = False
        self.since_ms = _now_ms()
        self.state: State
        self.state, self.reason = decide(self._evidence())
        self.subscriptions = 0
        """How often it has subscribed: whatever else was subscribed before is gone or stale."""
        self.must_restart = False

    @property
    def listening(self) -> bool:
        """Whether the terminal pushes, as far as can be known."""
        return self.state == "ok"

    @property
    def pulse(self) -> str:
        """The index whose silence counts; ``""`` where none of the markets has one."""
        return self._pulse

    def look(self) -> bool:
        """Do what the subscription needs now; return whether it stands."""
        if self._subscribed and not self._terminal.connected:
            self._lost("the terminal closed the connection")
        if not self._subscribed:
            return self._connect()
        if self._terminal.generation != self._generation:
            return self._renew_after_drop()
        if self._has_quotes():
            self._listen()
        self._alive_ms = _now_ms()
        return True

    # -- what is told -------------------------------------------------------------------------

    def _evidence(self, *, fresh: bool = False) -> Evidence:
        connected = self._terminal.connected
        return Evidence(
            connected=connected,
            why_not=self._why_not,
            sought=self._programs.sought,
            programs=() if connected else self._programs.running(fresh=fresh),
            quote_server_up=self._quotes_up if connected else None,
            pushes_come=self._refuted,
            deaf=self._deaf if self._subscribed else self._why_not,
        )

    def _assess(self, *, fresh: bool = False) -> None:
        state, self.reason = decide(self._evidence(fresh=fresh))
        if state == self.state:
            return
        was, self.state, self.since_ms = self.state, state, _now_ms()
        log.info("the terminal's state has changed", state=state, was=was, reason=self.reason)
        self._on_event(
            {
                "kind": "terminal",
                "state": state,
                "was": was,
                "reason": self.reason,
                "market_ms": self._terminal.now_ms(),
            }
        )

    # -- subscribing --------------------------------------------------------------------------

    def _connect(self) -> bool:
        try:
            info = self._terminal.connect()
            self._subscribe()
        except QMTError as error:
            reason = str(error.data.get("reason") or error.message)
            if reason != self._why_not:  # the same every few seconds is no news
                log.warning("the subscription failed", error=str(error))
            self._why_not = reason
            self._assess()
            return False
        log.info("subscribed", markets=self._markets, terminal=info.address)
        self._on_event({"kind": "connected", "terminal": info.address, "markets": self._markets})
        if not self._steps_done and self._has_quotes():
            self._end_silence(self._subscribed_ms)
        self._assess()
        return True

    def _subscribe(self) -> None:
        """Subscribe, once: an older subscription of this connection would push everything twice."""
        if self._silent_since_ms is not None:
            self._on_silent(self._silent_since_ms, self._why_silent)
        generation = self._terminal.generation
        if not self._subscribed or generation != self._generation:
            self._terminal.watch_quote_server()
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
        if not self._steps_done and self._has_quotes():
            self._end_silence(self._subscribed_ms)
        return True

    def _heard_ms(self) -> int:
        """Return until when certainly nothing was missed: the last push, or sign of life."""
        return max(self._last_push_ms(), self._alive_ms)

    def _lost(self, reason: str) -> None:
        self._subscribed = self._waits_for_push = False
        self._why_not = reason
        self._quotes_up = None
        self._go_silent(self._heard_ms(), "the terminal was away")
        log.warning("the terminal is gone", reason=reason)
        self._on_event({"kind": "lost", "reason": reason})
        self._assess(fresh=True)

    def _go_silent(self, from_ms: int, reason: str) -> None:
        if self._silent_since_ms is None:
            self._silent_since_ms, self._why_silent = from_ms, reason

    def _end_silence(self, at_ms: int) -> None:
        if self._silent_since_ms is not None:
            self._silent_since_ms = None
            self._on_heard(at_ms)

    # -- no quote server ----------------------------------------------------------------------

    def _has_quotes(self) -> bool:
        """Return whether quotes can come; when they cannot, nothing is done but told."""
        try:
            self._quotes_up = self._terminal.quote_server_up()
        except QMTError as error:  # the next look finds the connection gone
            log.warning("the quote server's state is not known", error=error.message)
            self._quotes_up = None
        now_ms, was_down = _now_ms(), self.state == "quote_server_down"
        if self._quotes_up is not False:
            self._quotes_gone_ms, self._refuted = 0, False
        else:
            self._quotes_gone_ms = self._quotes_gone_ms or now_ms
            hushed_ms = max(self._quotes_gone_ms, self._subscribed_ms) + self._settle_ms
            self._refuted = self._refuted or self._last_push_ms() > hushed_ms
        down = self._quotes_up is False and not self._refuted
        if down and not was_down:
            self._stop_helping("the quote server is away", now_ms)
            self._go_silent(self._heard_ms(), _NO_QUOTES)
            self._on_silent(self._silent_since_ms or 0, self._why_silent)
        elif was_down and not down:
            self._quotes_back_ms, self._waits_for_push = now_ms, True
        self._assess()
        return not down

    def _await_push(self, heard_ms: int, now_ms: int) -> None:
        """A terminal may have forgotten its subscriptions with its quote server: help once."""
        if heard_ms > max(self._subscribed_ms, self._quotes_back_ms):
            self._waits_for_push = False
            self._end_silence(heard_ms)
        elif now_ms - self._quotes_back_ms >= self._deaf_after_ms:
            self._waits_for_push = False
            try:
                self._subscribe()
            except QMTError as error:
                self._lost(error.message)
                return
            log.warning("the quote server is back and nothing came: subscribed again")
            reason = "the quote server came back and nothing was pushed"
            self._on_event({"kind": "resubscribed", "reason": reason})
            self._end_silence(self._subscribed_ms)

    # -- alive but deaf -----------------------------------------------------------------------

    def _listen(self) -> None:
        heard_ms, now_ms = self._last_push_ms(), _now_ms()
        if self._waits_for_push:
            self._await_push(heard_ms, now_ms)
            return
        market_ms = self._terminal.now_ms()
        moves = market_ms > self._market_ms  # a simulated clock can stand
        self._market_ms = market_ms
        if self._steps_done and heard_ms > self._subscribed_ms + self._settle_ms:
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
        elif open_for_ms >= self._deaf_after_ms and not (self._steps_done and self._hours.guessed):
            self._help(heard_ms, now_ms)

    def _help(self, heard_ms: int, now_ms: int) -> None:
        """Take the next step against a silence."""
        if not self._steps_done:
            self._go_silent(heard_ms or self._subscribed_ms, "the terminal was silent")
        silent_s = self._silent_s(now_ms)
        step = _STEPS[min(self._steps_done, len(_STEPS) - 1)]
        self._steps_done += 1
        self._deaf = f"connected, but nothing came for {silent_s} s of trading"
        self._assess()
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
        self._stop_helping(done, at_ms)
        self._end_silence(at_ms)
        self._assess()

    def _stop_helping(self, done: str, at_ms: int) -> None:
        if self._steps_done:
            self._steps_done, self._deaf = 0, ""
            log.info("the feed is no longer deaf", why=done)
            self._on_event({"kind": "deaf", "done": done, "silent_s": self._silent_s(at_ms)})

    def _silent_s(self, at_ms: int) -> float:
        since_ms = at_ms if self._silent_since_ms is None else self._silent_since_ms
        return round((at_ms - since_ms) / 1000, 1)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
