"""What a person sees: the banner, three things to try, the live line."""

from __future__ import annotations

import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import IO, Final

from .health import Figures
from .parts import Stack

__all__ = ["Console"]

_PLAIN_EVERY_S: Final = 10.0


class Console:
    """Writes to a terminal, or plain lines to a pipe.

    Parameters
    ----------
    stream
        Where to write, standard output as a rule.
    """

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._live = stream.isatty()
        self._line_open = False
        self._plain_at = 0.0

    def say(self, text: str = "") -> None:
        """Write whole lines, below the live line's last state."""
        self._write(("\n" if self._line_open else "") + text + "\n")
        self._line_open = False

    def banner(self, stack: Stack) -> None:
        """Say what is about to start."""
        if stack.simulated:
            self.say("QMT Bridge · SIMULATED market: every number below is invented")
            self.say("QMT Bridge · 模拟行情：以下所有数据均为虚构")
        else:
            self.say("QMT Bridge · market data of the QMT terminal on this machine")
            self.say("QMT Bridge · 数据来自本机 QMT 终端")
        self.say(f"data, logs · 数据与日志： {stack.data_dir}")

    def ready(self, stack: Stack) -> None:
        """Say where to look, and three things to try."""
        if stack.http_port != stack.settings.bridge_port:
            port = stack.settings.bridge_port
            self.say()
            self.say(f"!! port {port} is taken: the gateway listens on {stack.http_port}")
            self.say(f"!! 端口 {port} 已被占用，网关改用 {stack.http_port}")
        url = stack.http_url
        python = shlex.quote(_short(sys.executable))
        snippet = (
            "from qmt_client import QMTClient; "
            f"print(QMTClient('{url}').history('600519.SH', period='1m', count=5))"
        )
        self.say(
            f"""
REST, WebSocket  {url}   (API: {url}/docs)
streams Redis    {stack.streams.url}
jobs Redis       {stack.jobs.url}
archive          {stack.archive_dir}

Three things to try · 试一试
1  curl '{url}/api/history?stock=000001.SZ&period=1d&count=60'
2  {python} -c "{snippet}"
3  {_newest_tick_command(stack, python)}

Ctrl-C stops everything · 按 Ctrl-C 全部停止
"""
        )

    def figures(self, figures: Figures, stack: Stack) -> None:
        """Show the current figures: each time on a terminal, now and then on a pipe."""
        now = time.monotonic()
        if not self._live and now - self._plain_at < _PLAIN_EVERY_S:
            return
        self._plain_at = now
        label = "SIMULATED " if stack.simulated else ""
        text = (
            f"{label}{_number(figures.ticks_per_s)} ticks/s · "
            f"{_number(figures.published)} published · "
            f"newest tick {_seconds(figures.age_ms)} old · "
            f"60 bars in {_number(figures.history_ms)} ms · "
            f"Redis {_number(figures.memory_mb)} of {stack.settings.streams_memory_mb:,} MB · "
            f"{_number(figures.archived)} archived"
        )
        if not self._live:
            self._write(text + "\n")
            return
        width = shutil.get_terminal_size().columns - 1
        self._write("\r" + text[:width].ljust(width))
        self._line_open = True

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


def _newest_tick_command(stack: Stack, python: str) -> str:
    """Return a command that shows the newest tick in its stream, without any code of ours."""
    key = "{qmt:SH}:tick:600519.SH"
    for tool in ("redis-cli", "valkey-cli"):
        if shutil.which(tool):
            read = f"{tool} --no-raw --no-auth-warning -u {stack.streams.url}"
            return f"{read} XREVRANGE '{key}' + - COUNT 1"
    return (
        f'{python} -c "import redis, msgpack; '
        f"r = redis.Redis.from_url('{stack.streams.url}'); "
        f"i, f = r.xrevrange('{key}', count=1)[0]; print(i, msgpack.unpackb(f[b't1']))\""
    )


def _short(path: str) -> str:
    try:
        return str(Path(path).relative_to(Path.cwd()))
    except ValueError:
        return path


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _seconds(value_ms: int | None) -> str:
    return "-" if value_ms is None else f"{value_ms / 1000:.1f} s"
