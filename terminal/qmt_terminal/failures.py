"""What xtdata raises, turned into the project's errors.

The native side tells its failures apart by text only, so this is the one place that reads texts.
"""

from __future__ import annotations

import re
from typing import Final

from qmt_protocol.errors import (
    InvalidRequest,
    QMTError,
    TerminalNotConnected,
    TerminalRefused,
    TerminalUnsupported,
    TimedOut,
)

__all__ = ["not_connected", "translate"]

_NATIVE: Final = re.compile(r"func:\s*(?P<func>[^,]*),\s*error:\s*(?P<text>.*)", re.DOTALL)

_UNSUPPORTED: Final = ("function not realize", "未支持此功能")
_NOT_ALLOWED: Final = re.compile(r"没有.{0,12}权限|无.{0,12}权限|需要.{0,6}权限")
_DISCONNECTED: Final = (
    "无法连接xtquant服务",
    "无法连接行情服务",  # copies of 2023 and before
    "行情服务连接断开",
    "not connected",
)
_TIMED_OUT: Final = re.compile(r"\s*(timeout|timed out|请求超时)", re.IGNORECASE)
_LIMIT: Final = ("订阅超过上限", "数量超限")
_BAD_ARGUMENT: Final = "incompatible function arguments"
_DOWNLOAD_FAILED: Final = "下载数据失败："


def not_connected(reason: str = "") -> TerminalNotConnected:
    """Return the error of a terminal that does not answer."""
    return TerminalNotConnected(
        f"No QMT terminal answers{f': {reason}' if reason else '.'}",
        hint="Start QMT and log in with 独立交易 (miniQMT) ticked; set QMT_TERMINAL_PORT when it "
        "listens on another port than 58610.",
        reason=reason or "no answer",
    )


def translate(error: Exception, call: str, *, connected: bool) -> QMTError:
    """Return the project's error for what an xtdata call raised.

    Parameters
    ----------
    error
        What was raised.
    call
        xtdata's function, named in the message.
    connected
        Whether the client was still connected afterwards: a call that broke with its connection
        is told as `TerminalNotConnected`, whatever its text.
    """
    text = str(error)
    match = _NATIVE.search(text)
    reason = (match["text"] if match else text).strip()
    if any(mark in text for mark in _UNSUPPORTED):
        return TerminalUnsupported(
            f"This terminal does not know {match['func'].strip() if match else call}.",
            hint="Update the terminal, or use an edition that has the function.",
            call=call,
            terminal_text=text,
            not_realized=True,
        )
    if _NOT_ALLOWED.search(text):
        return TerminalUnsupported(
            f"The terminal's account may not use {call}: {reason}",
            hint="The function needs a permission that the broker or vendor grants.",
            call=call,
            terminal_text=text,
        )
    if not connected or any(mark in text for mark in _DISCONNECTED):
        return not_connected(f"{call}: {reason}")
    if match and _TIMED_OUT.match(reason):
        return TimedOut(
            f"The terminal did not answer {call} in time.",
            hint="Ask for less at once, or look whether the terminal hangs.",
            call=call,
        )
    if isinstance(error, TypeError) and _BAD_ARGUMENT in text:
        return InvalidRequest(
            f"The terminal does not take these arguments of {call}.",
            hint=text.splitlines()[0],
            call=call,
        )
    if any(mark in text for mark in _LIMIT):
        return TerminalRefused(
            f"The terminal takes no more subscriptions: {reason}",
            hint="Subscribe to whole markets, or to fewer codes.",
            call=call,
            terminal_text=text,
        )
    if _DOWNLOAD_FAILED in text:
        return TerminalRefused(
            f"The terminal could not download: {text.partition(_DOWNLOAD_FAILED)[2]}",
            hint="Look whether the terminal is connected to a quote server.",
            call=call,
            terminal_text=text,
        )
    return TerminalRefused(
        f"The terminal failed in {call}: {reason or type(error).__name__}",
        call=call,
        kind=type(error).__name__,
        terminal_text=text,
    )
