"""States in words, Chinese and English: what people read in console and alerts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from qmt_protocol.trading_days import days_left, ends_soon, iso_day

__all__ = [
    "CALENDAR_TODO",
    "CHILD_STATES",
    "TERMINAL_STATES",
    "TODO",
    "calendar_words",
    "child_words",
    "terminal_words",
]

TERMINAL_STATES: Final = {
    "ok": ("正常", "well"),
    "not_running": ("未启动", "the terminal is not running"),
    "waiting_for_login": ("等待登录", "the terminal waits for somebody to log in"),
    "quote_server_down": ("行情服务器未连接", "the terminal has no quote server"),
    "deaf": ("已连接但收不到行情", "connected, but no ticks come"),
    "restarting": ("正在重启", "is being restarted"),
    "unknown": ("状态未知：采集进程没有心跳", "unknown: the producer is not heard of"),
}

TODO: Final = {
    "not_running": (
        "请启动 QMT 并以独立交易（极简）模式登录",
        "Start QMT and log in with 独立交易 ticked",
    ),
    "waiting_for_login": (
        "请在 QMT 窗口手工登录（独立交易）",
        "Log in by hand in QMT's window (独立交易)",
    ),
    "quote_server_down": (
        "请在 QMT 里检查行情连接，必要时换行情站点",
        "Look at the quote connection in QMT; choose another quote site if need be",
    ),
    "deaf": (
        "桥会自行重新订阅；若持续，请重启 QMT",
        "The bridge subscribes anew by itself; if it lasts, restart QMT",
    ),
    "unknown": ("请看 logs 文件夹", "See the logs folder"),
}
"""What a person does about a terminal's state."""

CALENDAR_TODO: Final = (
    "在终端下载节假日数据，或更新 exchange-calendars，或写 calendar.toml："
    "见 docs/windows.zh-CN.md“交易日”",
    "Download holidays in the terminal, update exchange-calendars, or write calendar.toml: see "
    "'Trading days' in docs/windows.md",
)
"""What a person does when what is known of trading days ends."""

CHILD_STATES: Final = {
    "running": ("运行中", "running"),
    "waiting": ("等待重启", "waiting to be started again"),
    "misconfigured": ("配置有误，改好 qmt.toml 后自动再试", "configured wrong: mend qmt.toml"),
    "held": ("已停：与采集不在同一终端", "stopped: not on the producer's terminal"),
    "stopped": ("已停止", "stopped"),
}


def terminal_words(state: str) -> str:
    """Return a terminal's state in both languages."""
    chinese, english = TERMINAL_STATES.get(state, (state, state))
    return chinese if chinese == english else f"{chinese} · {english}"


def calendar_words(trading_day: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return in both languages that trading days are not known for long; ``None``: they are."""
    left = days_left(trading_day)
    if left is None or not ends_soon(trading_day):
        return None
    until = iso_day(int(trading_day["known_until"]))
    if left < 0:
        return f"{until} 之后的交易日未知", f"trading days after {until} are not known"
    return (
        f"交易日只知道到 {until}，还有 {left} 天",
        f"trading days are known until {until} only, {left} days from now",
    )


def child_words(state: str) -> str:
    """Return a child's state in both languages."""
    chinese, english = CHILD_STATES.get(state, (state, state))
    return chinese if chinese == english else f"{chinese} · {english}"
