"""Puts the parts together and keeps the terminal's subscription alive."""

from __future__ import annotations

import threading
import time
from importlib.metadata import version
from typing import Any, Final

import structlog

from qmt_protocol.errors import QMTError, TerminalNotConnected
from qmt_protocol.status import Heartbeat, new_heartbeat
from qmt_terminal import Terminal

from .bar_maker import BarMaker
from .figures import Rate
from .intake import Intake
from .publisher import Publisher
from .reporter import Reporter
from .ring import Ring
from .settings import ProducerSettings

__all__ = ["Producer"]

log: Final = structlog.get_logger(__name__)

_LOOK_S: Final = 0.5
_RECONNECT_S: Final = (0.5, 1.0, 2.0, 5.0)
_TIDY_S: Final = 5.0
_DRAIN_S: Final = 5.0


class Producer:
    """One terminal's whole-market ticks into Redis, until told to stop."""

    def __init__(self, settings: ProducerSettings) -> None:
        self._settings = settings
        self._terminal = Terminal(settings)
        self._ring = Ring(settings.ring, settings.ring_max_mb * 1_000_000)
        self._started_ms = time.time_ns() // 1_000_000
        self._bars = BarMaker(self._terminal.now_ms, int(settings.bar_grace_s * 1000))
        self._intake = Intake(
            self._ring,
            settings.markets,
            bars=self._bars,
            batch_ticks=settings.batch_ticks,
            queue_bytes=settings.queue_mb * 1_000_000,
            decode_bson=self._terminal.decode_push,
        )
        self._reporter = Reporter(
            self._ring, keys=settings.keys, url=settings.streams_url, heartbeat=self._heartbeat
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
            listening=lambda: self._subscribed,
            on_event=self._reporter.event,
        )
        self._intake.is_ours = lambda market: market not in self._publisher.figures.standby
        self._intake.on_stored = self._publisher.more
        self._stopping = threading.Event()
        self._reason = "not tried yet"
        self._since_ms = self._started_ms
        self._silent_since_ms = self._ring.last_received_ms
        self._subscribed = False
        self._rate = Rate()

    def stop(self) -> None:
        """Ask `run` to end; safe from any thread and from a signal handler."""
        self._stopping.set()

    def run(self) -> None:
        """Publish until `stop`; the terminal and Redis may come and go."""
        threads = (self._intake, self._publisher, self._reporter)
        for part in threads:
            part.thread.start()
        failures = 0
        next_tidy = time.monotonic() + _TIDY_S
        try:
            while not self._stopping.is_set():
                if self._keep_subscribed():
                    failures = 0
                    self._stopping.wait(_LOOK_S)
                else:
                    self._stopping.wait(_RECONNECT_S[min(failures, len(_RECONNECT_S) - 1)])
                    failures += 1
                self._tell_losses()
                if time.monotonic() >= next_tidy:
                    next_tidy = time.monotonic() + _TIDY_S
                    keep_ms = self._settings.ring_keep_s * 1000
                    before_ms = time.time_ns() // 1_000_000 - keep_ms
                    self._ring.tidy(self._publisher.cursors, before_ms)
        finally:
            self._terminal.close()
            self._intake.stop()
            self._publisher.stop(_DRAIN_S)
            self._tell_losses()
            self._reporter.stop()
            self._ring.close()

    def _keep_subscribed(self) -> bool:
        if self._subscribed and self._terminal.connected:
            return True
        if self._subscribed:
            self._lost("the terminal closed the connection")
        try:
            info = self._terminal.connect()
            self._terminal.subscribe_pushes(self._settings.markets, self._intake.put)
        except TerminalNotConnected as error:
            self._reason = error.message
            return False
        except QMTError as error:
            log.error("the subscription failed", error=str(error))
            self._reason = error.message
            return False
        self._reason = ""
        self._since_ms = time.time_ns() // 1_000_000
        if self._silent_since_ms:
            self._silence(self._silent_since_ms, self._since_ms)
        self._subscribed = True
        log.info("subscribed", markets=self._settings.markets, terminal=info.address)
        self._reporter.event(
            {"kind": "connected", "terminal": info.address, "markets": self._settings.markets}
        )
        return True

    def _silence(self, from_ms: int, to_ms: int) -> None:
        """Note the time in which nothing could be heard; the holder of a lease names it."""
        self._silent_since_ms = 0
        self._ring.add_silence(from_ms, to_ms)
        ours = [m for m in self._settings.markets if self._publisher.holds(m)]
        if ours:
            self._reporter.event(
                {
                    "kind": "gap",
                    "reason": "the terminal was away",
                    "from_ms": from_ms,
                    "to_ms": to_ms,
                    "markets": ours,
                }
            )

    def _lost(self, reason: str) -> None:
        self._subscribed = False
        self._silent_since_ms = time.time_ns() // 1_000_000
        self._reason = reason
        self._since_ms = time.time_ns() // 1_000_000
        log.warning("the terminal is gone", reason=reason)
        self._reporter.event({"kind": "lost", "reason": reason})

    def _tell_losses(self) -> None:
        for gap in self._intake.losses.take():
            log.error("ticks were lost", reason=gap["reason"], ticks=gap["ticks"])
            self._reporter.event(gap)

    def _heartbeat(self) -> Heartbeat:
        figures = self._publisher.figures
        info = self._terminal.info
        terminal: dict[str, Any] = {
            "state": "ok" if self._subscribed and self._terminal.connected else "not_connected",
            "reason": self._reason,
            "since_ms": self._since_ms,
        }
        if info is not None:
            terminal.update(address=info.address, edition=info.edition, version=info.version)
        return new_heartbeat(
            "producer",
            self._started_ms,
            version=version("qmt-redis-bridge"),
            simulated=bool(info and info.simulated),
            markets=self._settings.markets,
            terminal=terminal,
            rates={"ticks_per_s": self._rate.of(figures.published)},
            figures={
                "received": self._intake.received_ticks,
                "published": figures.published,
                "repeated": figures.repeated,
                "late": figures.late,
                "clamped": figures.clamped,
                "rejected": figures.rejected,
                "lost": self._intake.losses.total_ticks,
                "waiting_bytes": self._intake.waiting_bytes,
                "waiting_batches": self._publisher.waiting_batches,
                "redis_away": figures.redis_away,
                "standby": figures.standby,
            },
        )
