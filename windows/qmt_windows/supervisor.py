"""Puts it together: starts producer and worker, watches them and the terminal, asks for help."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import structlog

from qmt_protocol.errors import ConfigurationError
from qmt_protocol.jobs import DOWNLOAD_QUEUE, QUERY_QUEUE
from qmt_protocol.status import Heartbeat, new_heartbeat
from qmt_protocol.times import day_of, to_datetime

from .alerts import Alerts, parse_webhook
from .child import Child, Ending, is_native_abort, stop_children
from .home import Home
from .logs import LineLog, Masker
from .settings import WindowsSettings, read_settings
from .single import write_record
from .troubles import Alert, Seen, Troubles
from .watch import Heard, Watch
from .words import child_words, terminal_words

__all__ = ["Supervisor"]

_LOOK_S: Final = 0.1
_CONFIG_EVERY_S: Final = 1.0
_DIFFER_FOR_S: Final = 5.0
_SLEPT_S: Final = 30.0
_ALERTS_SHOWN: Final = 10
_CHINA_TZ: Final = "CST-8"
"""China Standard Time as both POSIX and Windows understand it."""
_CONNECTED: Final = frozenset({"ok", "quote_server_down", "deaf"})
_NOT_FOR_CHILDREN: Final = ("QMT_ALERT_", "QMT_WORKER_STREAMS_URL", "QMT_HOME")

_log: Final = structlog.get_logger(__name__)


class Supervisor:
    """Everything that runs beside the terminal, until told to stop.

    Parameters
    ----------
    home
        Where its files lie.
    settings
        What was read from them.
    told
        Receives one line for each thing that people should see.
    """

    def __init__(self, home: Home, settings: WindowsSettings, say: Callable[[str], None]) -> None:
        self._home = home
        self._settings = settings
        self._show_line = say
        self._masker = make_masker(settings)
        self._stopping = threading.Event()
        self._started_ms = time.time_ns() // 1_000_000
        self._alerts = Alerts(
            [parse_webhook(one) for one in settings.alert_urls],
            secret=settings.alert_secret.get_secret_value(),
        )
        self._troubles = Troubles(settings.alert_seconds)
        self._shown: list[dict[str, Any]] = []
        self._watch = Watch(settings.streams_url, settings.keys, self._heartbeat)
        self._producer = self._child("producer", "-m", "qmt_producer")
        self._workers = [
            self._child("worker-query", "-m", "qmt_worker", "--queue", QUERY_QUEUE),
            self._child("worker-download", "-m", "qmt_worker", "--queue", DOWNLOAD_QUEUE),
        ]
        self._children = [self._producer, *self._workers]
        self._clock: dict[str, Any] = {}
        self._terminal = ""
        self._simulated = False
        self._differ_since_s: float | None = None
        self._differ = ""
        self._calendar_error = ""
        self._producer_place = ("", "")
        self._config_stamp = self._stamp_config()
        self._config_at_s = 0.0

    def stop(self) -> None:
        """Ask `run` to end; safe from any thread and from a signal handler."""
        self._stopping.set()

    def run(self) -> int:
        """Supervise until `stop`; returns the exit code."""
        self._watch.start()
        self._alerts.start()
        looked_s = time.monotonic()
        try:
            while not self._stopping.is_set():
                self._start_what_is_due()
                for child in self._children:
                    ending = child.look()
                    if ending is not None:
                        self._note_ending(child, ending)
                heard = self._watch.heard
                self._compare_terminals(heard)
                for alert in self._troubles.assess(self._see(heard)):
                    self._alert(alert)
                self._look_at_config()
                self._stopping.wait(_LOOK_S)
                now_s = time.monotonic()
                if now_s - looked_s > _SLEPT_S:
                    self._note_sleep(now_s - looked_s)
                looked_s = now_s
        except Exception:
            _log.exception("a fault of the supervisor itself")
            raise
        finally:
            _log.info("stopping")
            stop_children(self._children)
            self._watch.stop()
            self._alerts.stop()
            for child in self._children:
                child.log.close()
        return 0

    # -- children ---------------------------------------------------------------------------------

    def _child(self, name: str, *arguments: str) -> Child:
        log = LineLog(
            self._home.logs / f"{name}.log",
            max_mb=self._settings.log_max_mb,
            files=self._settings.log_files,
            masker=self._masker,
        )
        arguments = (*arguments, "--exit-with-stdin")
        return Child(name, arguments, cwd=self._home.folder, log=log)

    def _environment(self, child: Child) -> dict[str, str]:
        settings = self._settings
        streams_url = settings.streams_url
        if child is not self._producer:
            streams_url = settings.worker_streams_url or streams_url
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.upper().startswith(_NOT_FOR_CHILDREN)
        }
        return {
            **kept,
            "TZ": _CHINA_TZ,
            "PYTHONUTF8": "1",
            "PYTHONUNBUFFERED": "1",
            # Says in the log where a native library aborted.
            "PYTHONFAULTHANDLER": "1",
            "QMT_CONFIG": str(self._home.config),
            "QMT_STREAMS_URL": streams_url,
            "QMT_JOBS_URL": settings.jobs_url,
            "QMT_PREFIX": settings.prefix,
            "QMT_RING": str(settings.ring or self._home.ring),
            "QMT_FUNCTIONS_FILE": str(settings.functions_file or self._home.functions),
            "QMT_SUSPENSIONS_FILE": str(self._home.suspensions),
            "QMT_CALENDAR_FILE": str(self._home.calendar_of(settings.calendar_file)),
        }

    def _start_what_is_due(self) -> None:
        started = False
        for child in self._children:
            if child.due:
                child.start(self._environment(child))
                started = True
                again = f" ({child.restarts})" if child.restarts else ""
                self._say_line(f"{child.name} {child_words(child.state)}{again}")
                _log.info("started", child=child.name, pid=child.pid, restarts=child.restarts)
        if started:
            pids = {child.name: child.pid for child in self._children if child.pid is not None}
            write_record(self._home, pids)

    def _note_ending(self, child: Child, ending: Ending) -> None:
        _log.warning(
            "ended",
            child=child.name,
            code=ending.code,
            reason=ending.reason,
            native_abort=is_native_abort(ending.code),
            after_s=round(ending.after_s, 1),
            again_in_s=ending.again_in_s,
        )
        what = child_words(child.state)
        when = "" if ending.again_in_s is None else f" {ending.again_in_s:.0f} s"
        self._say_line(f"{child.name}: {ending.reason} → {what}{when}")

    def _child_troubles(self) -> dict[str, tuple[str, str]]:
        """Return the children's troubles; both worker processes have one in common."""
        found: dict[str, tuple[str, str]] = {}
        for child in reversed(self._children):
            if not child.trouble:
                continue
            state = child.trouble_kind
            kind = child.name.partition("-")[0]
            # A crash that turns into another kind of crash is still the same trouble.
            say = self._troubles.open.get(kind)
            if say is not None and "misconfigured" not in (say, state):
                state = say
            found[kind] = (state, f"{child.name}: {child.trouble}")
        if self._differ:
            found["terminals"] = ("differ", self._differ)
        if self._calendar_error:
            found["calendar"] = ("wrong", self._calendar_error)
        return found

    # -- what is seen -----------------------------------------------------------------------------

    def _beat_of(self, child: Child, heard: Heard) -> Heartbeat | None:
        role = child.name.partition("-")[0]
        return heard.beats.get((role, child.pid or 0))

    def _see(self, heard: Heard) -> Seen:
        now_s = time.monotonic()
        beat = self._beat_of(self._producer, heard)
        terminal = beat.terminal if beat is not None else {}
        if beat is not None:
            self._simulated = beat.simulated or bool(self._clock)
        if terminal.get("clock"):
            self._clock = terminal["clock"]
        if terminal:
            self._calendar_error = str((terminal.get("trading_day") or {}).get("file_error") or "")
        state = str(terminal.get("state", ""))
        if state and state != self._terminal:
            self._terminal = state
            reason = f": {terminal['reason']}" if terminal.get("reason") else ""
            self._say_line(f"terminal 终端: {terminal_words(state)}{reason}")
        market_ms = self._market_ms()
        away_s = heard.away_since_s
        return Seen(
            market_ms=market_ms,
            now_s=now_s,
            terminal="" if away_s is not None else state,
            reason=str(terminal.get("reason", "")),
            trades=_trades(terminal, market_ms),
            redis_away_s=0.0 if away_s is None else now_s - away_s,
            others=self._child_troubles(),
            simulated=self._simulated,
        )

    def _market_ms(self) -> int:
        """Return market time: the wall clock, or the simulator's as the producer tells it."""
        wall_ms = time.time_ns() // 1_000_000
        clock = self._clock
        if not clock:
            return wall_ms
        return int(clock["market_ms"] + (wall_ms - clock["wall_ms"]) * clock["speed"])

    def _compare_terminals(self, heard: Heard) -> None:
        """Stop the worker while it sits on another terminal than the producer."""
        differ = self._differing(heard)
        if not differ:
            self._differ_since_s = None
            held = [child for child in self._workers if child.state == "held"]
            if self._differ and self._moved(heard):
                self._differ = ""
                for child in held:
                    child.release()
            return
        if self._differ_since_s is None:
            self._differ_since_s = time.monotonic()
        if time.monotonic() - self._differ_since_s < _DIFFER_FOR_S:
            return
        self._differ_since_s = None
        self._differ = differ
        self._producer_place = self._place(self._beat_of(self._producer, heard))
        _log.error("producer and worker sit on different terminals", reason=differ)
        self._say_line(f"producer/worker: {differ} → {child_words('held')}")
        for child in self._workers:
            child.hold()

    def _differing(self, heard: Heard) -> str:
        ours = self._place(self._beat_of(self._producer, heard))
        for child in self._workers:
            theirs = self._place(self._beat_of(child, heard))
            for mine, other in zip(ours, theirs, strict=True):
                if mine and other:
                    if mine != other:
                        return f"producer {mine}, {child.name} {other}"
                    break  # the same folder is the same terminal
        return ""

    def _moved(self, heard: Heard) -> bool:
        """Whether the producer sits on another terminal than when the worker was stopped."""
        place = self._place(self._beat_of(self._producer, heard))
        return any(place) and place != self._producer_place

    @staticmethod
    def _place(beat: Heartbeat | None) -> tuple[str, str]:
        """Return path and address of the terminal that a process is connected to."""
        if beat is None or beat.terminal.get("state") not in _CONNECTED:
            return "", ""
        path = str(beat.terminal.get("path") or "")
        return os.path.normcase(os.path.normpath(path)) if path else "", str(
            beat.terminal.get("address") or ""
        )

    # -- the rest ---------------------------------------------------------------------------------

    def _alert(self, alert: Alert) -> None:
        self._alerts.send(alert)
        self._shown = [*self._shown[1 - _ALERTS_SHOWN :], alert.to_dict()]
        at = f"{to_datetime(alert.at_ms):%H:%M:%S}"
        self._say_line(f"ALERT 告警 {at} {alert.kind} {alert.state} {alert.reason}".rstrip())

    def _look_at_config(self) -> None:
        now_s = time.monotonic()
        if now_s - self._config_at_s < _CONFIG_EVERY_S:
            return
        self._config_at_s = now_s
        stamp = self._stamp_config()
        if stamp == self._config_stamp:
            return
        self._config_stamp = stamp
        try:
            self._settings = read_settings(self._home)
        except ConfigurationError as error:
            _log.error("settings are wrong", error=str(error))
            self._say_line(f"qmt.toml: {error}")
            return
        _log.info("settings were read again")
        self._differ = ""
        self._differ_since_s = None
        for child in self._children:
            child.release()
        self._say_line(
            "qmt.toml: read again 已重新读取 (running processes keep theirs 运行中的不变)"
        )

    def _stamp_config(self) -> tuple[int, int]:
        try:
            stat = Path(self._home.config).stat()
            return stat.st_mtime_ns, stat.st_size
        except OSError:
            return 0, 0

    def _note_sleep(self, slept_s: float) -> None:
        _log.warning("the machine slept, or this process was frozen", for_s=round(slept_s))
        self._say_line(f"slept or frozen 睡眠或冻结: {slept_s:.0f} s")

    def _say_line(self, text: str) -> None:
        self._show_line(self._masker(text))

    def _heartbeat(self) -> Heartbeat:
        """Return our own heartbeat; called in the watch's thread."""
        return new_heartbeat(
            "windows",
            self._started_ms,
            version=version("qmt-redis-bridge"),
            simulated=self._simulated,
            figures={
                "children": {
                    child.name: {
                        "pid": child.pid,
                        "state": child.state,
                        "restarts": child.restarts,
                        "since_ms": child.since_ms,
                        "trouble": child.trouble,
                    }
                    for child in self._children
                },
                "alerts": list(self._shown),
                "alerts_sent": self._alerts.sent,
                "alerts_failed": self._alerts.failed,
            },
        )


def make_masker(settings: WindowsSettings) -> Masker:
    """Return what takes the settings' secrets out of text."""
    return Masker(
        [
            settings.streams_url,
            settings.worker_streams_url,
            settings.jobs_url,
            settings.alert_secret.get_secret_value(),
            *(one.partition("://")[2].partition("/")[2] for one in settings.alert_urls),
        ]
    )


def _trades(terminal: dict[str, Any], market_ms: int) -> bool | None:
    """Return whether the market's day is a trading day, ``None`` where nobody knows."""
    say = terminal.get("trading_day") or {}
    if str(say.get("day")) != str(day_of(market_ms)) or say.get("source") == "weekday":
        return None
    return bool(say["trades"])
