"""Puts the parts together and runs them until told to stop."""

from __future__ import annotations

import threading
import time
from importlib.metadata import version
from typing import Any, Final

import structlog

from qmt_protocol.status import Heartbeat, new_heartbeat, shortened
from qmt_terminal import Terminal
from qmt_terminal.calendar_file import CalendarFile
from qmt_terminal.programs import TerminalPrograms

from .bar_maker import BarMaker
from .clocks import Clocks
from .figures import Rate
from .hours import TradingHours
from .intake import Intake
from .listener import Listener
from .on_demand import OnDemand
from .publisher import Publisher
from .reporter import Reporter
from .ring import Ring, RingUnwritable
from .settings import ProducerSettings
from .sweeper import Sweeper

__all__ = ["EXIT_BROKEN", "EXIT_RESTART", "Producer"]

log: Final = structlog.get_logger(__name__)

EXIT_RESTART: Final = 3
"""The feed stayed deaf; a supervisor starts the producer again."""
EXIT_BROKEN: Final = 4
"""A part of the producer died; what it held is in the ring or will be named by the next start."""

_LOOK_S: Final = 0.5
_RECONNECT_S: Final = (0.5, 1.0, 2.0, 5.0)
_TIDY_S: Final = 5.0
_DRAIN_S: Final = 5.0
_SHOWN: Final = 50
"""Wants that a heartbeat names."""


class Producer:
    """One terminal's ticks and bars into Redis, until told to stop."""

    def __init__(self, settings: ProducerSettings) -> None:
        self._settings = settings
        self._terminal = Terminal(settings)
        self._ring = Ring(settings.ring, settings.ring_max_mb * 1_000_000)
        self._lost_ticks = 0
        self._started_ms = time.time_ns() // 1_000_000
        self._bars = BarMaker(self._now_ms, int(settings.bar_grace_s * 1000), self._subscription)
        self._intake = Intake(
            self._ring,
            settings.markets,
            bars=self._bars,
            batch_ticks=settings.batch_ticks,
            queue_bytes=settings.queue_mb * 1_000_000,
            decode_bson=self._terminal.decode_push,
        )
        self._reporter = Reporter(
            self._ring,
            keys=settings.keys,
            url=settings.streams_url,
            heartbeat=self._heartbeat,
            measure=lambda connection: self._clocks.measure(connection),
        )
        self._hours = hours = TradingHours(
            self._terminal, self._now_ms, CalendarFile(settings.calendar_file)
        )
        self._clocks = Clocks(
            self._intake.exchange_clock,
            in_session_ms=lambda: hours.session_ms,
            warn_ms=settings.clock_warn_ms,
            on_event=self._reporter.event,
        )
        self._listener = Listener(
            self._terminal,
            settings.markets,
            hours,
            TerminalPrograms(settings),
            put=self._intake.put,
            last_push_ms=lambda: self._intake.last_push_ms,
            deaf_after_s=settings.deaf_after_s,
            on_silent=self._ring.begin_silence,
            on_heard=self._ring.end_silence,
            on_event=self._reporter.event,
            silent_since_ms=self._ring.silent_since_ms,
        )
        self._publisher = Publisher(
            self._ring,
            settings.markets,
            keys=settings.keys,
            url=settings.streams_url,
            lease_ms=int(settings.lease_s * 1000),
            feed_keep_ms=settings.feed_keep_s * 1000,
            future_ms=settings.future_ms,
            ring_keep_ms=settings.ring_keep_s * 1000,
            listening=lambda: self._listener.listening,
            on_event=self._reporter.event,
        )
        self._intake.on_stored = self._publisher.more
        self._on_demand = OnDemand(
            self._terminal,
            self._bars,
            hours,
            keys=settings.keys,
            url=settings.streams_url,
            standing=settings.markets,
            limit=settings.demand_max,
            stamp=self._subscription,
            put_rows=self._intake.put_rows,
            is_ours=self._is_ours,
            on_market=self._publisher.add,
            on_event=self._reporter.event,
        )
        self._sweeper = Sweeper(
            keys=settings.keys,
            url=settings.streams_url,
            markets=lambda: self._publisher.markets,
            holder=self._publisher.holder,
            keep_days=settings.keep_days,
            max_memory_share=settings.max_memory_share,
            on_event=self._reporter.event,
        )
        self._stopping = threading.Event()
        self._rates = {"ticks_per_s": Rate(), "bars_per_s": Rate()}

    def stop(self) -> None:
        """Ask `run` to end; safe from any thread and from a signal handler."""
        self._stopping.set()

    def run(self) -> int:
        """Publish until `stop`; the terminal and Redis may come and go.

        Returns
        -------
        int
            The process's exit code: 0, `EXIT_RESTART` or `EXIT_BROKEN`.
        """
        parts = (self._intake, self._publisher, self._reporter, self._on_demand, self._sweeper)
        for part in parts:
            part.thread.start()
        failures = 0
        next_tidy = time.monotonic() + _TIDY_S
        try:
            while not self._stopping.is_set() and not self._listener.must_restart:
                if not all(part.thread.is_alive() for part in parts):
                    log.critical("a thread has ended by a fault of its own; see above")
                    return EXIT_BROKEN
                idle = self._intake.idle
                looked_ms = time.time_ns() // 1_000_000
                try:
                    if self._listener.look():
                        failures = 0
                        self._note_quiet(looked_ms, idle=idle)
                        self._stopping.wait(_LOOK_S)
                    else:
                        self._stopping.wait(_RECONNECT_S[min(failures, len(_RECONNECT_S) - 1)])
                        failures += 1
                    self._hours.look(self._listener.pulse)
                    self._report_losses()
                    if time.monotonic() >= next_tidy:
                        next_tidy = time.monotonic() + _TIDY_S
                        keep_ms = self._settings.ring_keep_s * 1000
                        before_ms = time.time_ns() // 1_000_000 - keep_ms
                        self._ring.tidy(self._publisher.cursors, before_ms)
                except RingUnwritable as error:  # nothing of it is done; it comes again
                    log.error("the disk of the ring is full or broken", error=error.message)
                    self._stopping.wait(_LOOK_S)
        finally:
            self._on_demand.stop()
            self._sweeper.stop()
            self._terminal.close()
            self._intake.stop()
            self._publisher.stop(_DRAIN_S)
            self._report_losses()
            self._reporter.stop()
            self._ring.close()
        return EXIT_RESTART if self._listener.must_restart else 0

    def _now_ms(self) -> int:
        """Return the market's time; by Redis' clock where this one is plainly wrong."""
        clock = self._terminal.clock
        ahead_ms = self._clocks.ahead_ms if clock is None or clock.is_real else 0
        return self._terminal.now_ms() - ahead_ms

    def _subscription(self) -> int | None:
        return self._listener.subscriptions if self._terminal.connected else None

    def _is_ours(self, market: str) -> bool:
        return market not in self._publisher.figures.standby

    def _note_quiet(self, now_ms: int, *, idle: bool) -> None:
        """Note that nothing is missed where nothing comes: outside trading hours.

        A feed that is silent for so long and not called deaf has nothing to say.
        """
        quiet_ms = now_ms - max(self._intake.last_push_ms, self._listener.since_ms)
        if idle and self._listener.listening and quiet_ms > self._settings.deaf_after_s * 2000:
            self._ring.heard(now_ms)

    def _report_losses(self) -> None:
        away = bool(self._publisher.figures.redis_away)
        full = self._ring.take_lost(self._is_ours, hold=away)
        if full:
            self._lost_ticks += full["ticks"]
            log.error("ticks were lost", reason=full["reason"], ticks=full["ticks"])
        if not self._ring.writable:
            return  # they gather, by reason and code, until there is room to write them down
        for gap in self._intake.losses.take():
            log.error("ticks were lost", reason=gap["reason"], ticks=gap["ticks"])
            self._reporter.event(gap)

    def _heartbeat(self) -> Heartbeat:
        figures = self._publisher.figures
        info = self._terminal.info
        terminal: dict[str, Any] = {
            "state": self._listener.state,
            "reason": self._listener.reason,
            "since_ms": self._listener.since_ms,
        }
        if info is not None:
            terminal |= info.facts()
        if self._hours.today:
            terminal["trading_day"] = self._hours.today
        if self._terminal.clock is not None:
            terminal["clock"] = self._terminal.clock.to_dict()
        return new_heartbeat(
            "producer",
            self._started_ms,
            version=version("qmt-redis-bridge"),
            simulated=bool(info and info.simulated),
            markets=self._publisher.markets,
            terminal=terminal,
            rates={
                "ticks_per_s": self._rates["ticks_per_s"].of(figures.published),
                "bars_per_s": self._rates["bars_per_s"].of(figures.bars),
            },
            figures={
                "received": self._intake.received_ticks,
                "received_bars": self._intake.received_bars,
                "published": figures.published,
                "repeated": figures.repeated,
                "late": figures.late,
                "clamped": figures.clamped,
                "rejected": figures.rejected,
                "bars": figures.bars,
                "bars_repeated": figures.bars_repeated,
                "bars_late": figures.bars_late,
                "lost": self._intake.losses.total_ticks + self._lost_ticks,
                "waiting_pushes": self._intake.waiting_pushes,
                "waiting_bytes": self._intake.waiting_bytes,
                "waiting_batches": self._publisher.waiting_batches,
                "ring_bytes": self._ring.size_bytes,
                "latency_ms": figures.latency.summary(),
                "markets": self._publisher.market_figures(),
                "demand": {
                    "served": shortened(self._on_demand.served, _SHOWN),
                    "subscriptions": self._on_demand.subscriptions,
                    "refused": shortened(self._on_demand.refused, _SHOWN),
                },
                "clocks": self._clocks.figures,
                "retention": self._sweeper.figures,
                "redis_away": figures.redis_away,
                "standby": figures.standby,
            },
        )
