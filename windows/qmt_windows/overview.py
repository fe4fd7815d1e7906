"""``qmt-windows status``: how things are, in words."""

from __future__ import annotations

from typing import Any

import redis

from qmt_protocol.status import Heartbeat
from qmt_protocol.times import to_datetime
from qmt_runtime.connections import connect

from .console import say
from .home import Home
from .settings import WindowsSettings
from .single import holder
from .watch import TIMEOUT_S, read_beats
from .words import CALENDAR_TODO, TODO, calendar_words, child_words, terminal_words

__all__ = ["show_status"]


def show_status(home: Home, settings: WindowsSettings) -> int:
    """Print the state; returns 0 when all is well, else 1."""
    lines: list[str] = []
    well = True
    held = holder(home)
    if held is None:
        lines.append("qmt-windows 未运行 · is not running")
        well = False
    else:
        lines.append(f"qmt-windows 运行中 · is running: {held.get('pid') or '?'}")
    try:
        with connect(settings.streams_url, timeout_s=TIMEOUT_S) as server:
            beats = read_beats(server, settings.keys)
    except redis.RedisError as error:
        say("\n".join([*lines, f"Redis 无响应 · does not answer: {type(error).__name__}"]))
        return 1
    for beat in sorted(beats.values(), key=lambda one: one.role):
        described, fine = _of(beat)
        lines += described
        well = well and fine
    say("\n".join(lines))
    return 0 if well else 1


def _of(beat: Heartbeat) -> tuple[list[str], bool]:
    if beat.role == "windows":
        return _children(beat)
    if beat.role not in ("producer", "worker"):
        return [], True
    terminal = beat.terminal
    state = str(terminal.get("state", "unknown"))
    name = f"{beat.role} {','.join(beat.queues)}".strip()
    mark = " [模拟 SIMULATED]" if beat.simulated else ""
    facts = [
        f"{key} {terminal[key]}"
        for key in ("broker", "edition", "version", "address", "path")
        if terminal.get(key)
    ]
    lines = [f"{name} ({beat.pid}){mark}: 终端 terminal {terminal_words(state)}"]
    if terminal.get("reason"):
        lines.append(f"    {terminal['reason']}")
    if facts:
        lines.append(f"    {', '.join(facts)}")
    if state in TODO:
        lines.append(f"    {' · '.join(TODO[state])}")
    if beat.dead:
        lines.append(f"    有任务无法执行 · {beat.dead}")
    lines += _calendar(terminal.get("trading_day") or {})
    return lines, state == "ok"


def _calendar(trading_day: dict[str, Any]) -> list[str]:
    lines = [str(trading_day["file_error"])] if trading_day.get("file_error") else []
    if words := calendar_words(trading_day):
        lines += [" · ".join(words), *CALENDAR_TODO]
    return [f"    {line}" for line in lines]


def _children(beat: Heartbeat) -> tuple[list[str], bool]:
    lines = []
    well = True
    for name, child in beat.figures.get("children", {}).items():
        since = f"{to_datetime(int(child['since_ms'])):%m-%d %H:%M:%S}"
        again = f"，重启 restarts {child['restarts']}" if child.get("restarts") else ""
        lines.append(f"{name}: {child_words(child['state'])} ({since}{again})")
        if child.get("trouble"):
            lines.append(f"    {child['trouble']}")
        well = well and child["state"] == "running"
    return lines, well
