"""What the doctor looks at on this machine: system, Python, clock, code page, disk, programs."""

from __future__ import annotations

import locale
import platform
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from qmt_protocol.errors import QMTError, WrongTimezone
from qmt_protocol.settings import TerminalSettings, load_settings
from qmt_terminal.discovery import instances
from qmt_terminal.loading import check_timezone
from qmt_terminal.programs import TerminalPrograms

from .doctor_lines import Line
from .home import Home

__all__ = ["load_terminal_settings", "look_at_machine", "look_for_terminals"]

_GIB: Final = 1 << 30
_LITTLE_ROOM_GIB: Final = 5.0
_NO_ROOM_GIB: Final = 1.0
_ADVISED: Final = ((3, 10), (3, 11))
_POWERCFG_S: Final = 10.0


def look_at_machine(home: Home) -> list[Line]:
    """Look at everything that needs neither terminal nor Redis."""
    looks: tuple[Callable[[], Line], ...] = (
        _system,
        _python,
        _timezone,
        _code_page,
        lambda: _room(home),
        _sleep,
        _quick_edit,
    )
    return [look() for look in looks]


def _system() -> Line:
    windows = sys.platform == "win32"
    bits = struct.calcsize("P") * 8
    facts = {"system": platform.platform(), "bits": bits}
    if not windows:
        return Line(
            "system",
            "warn",
            f"{platform.system()}：真实的 xtquant 只能在 Windows 上运行，这里只能用模拟器",
            f"{platform.system()}: the real xtquant runs on Windows alone, the simulator here too",
            facts=facts,
        )
    if bits != 64:
        return Line(
            "system",
            "fail",
            f"Python 是 {bits} 位，xtquant 只有 64 位",
            f"this Python has {bits} bits, xtquant only comes with 64",
            ("请安装 64 位 Python 3.11", "Install a 64-bit Python 3.11"),
            facts,
        )
    return Line("system", "ok", f"{platform.platform()}，64 位", "64 bits", facts=facts)


def _python() -> Line:
    version = platform.python_version()
    facts = {"python": version, "executable": Path(sys.executable).name}
    if sys.version_info[:2] in _ADVISED:
        return Line(
            "python", "ok", f"Python {version}", "an advised version of Python", facts=facts
        )
    return Line(
        "python",
        "warn",
        f"Python {version}：只在 3.10 和 3.11 上测试过，xtquant 的编译部分也不全",
        f"Python {version}: 3.10 and 3.11 are what is tested; xtquant lacks compiled parts above",
        ("建议用 Python 3.11（或 3.10）", "Better use Python 3.11 (or 3.10)"),
        facts,
    )


def _timezone() -> Line:
    try:
        check_timezone()
    except WrongTimezone as error:
        # Producer and worker are started with TZ=CST-8, so it harms nobody but other scripts.
        return Line(
            "timezone",
            "warn",
            "本机不是北京时间；qmt-windows 会自行为采集和历史进程设定",
            "this machine is not on Beijing time; qmt-windows sets it for its processes",
            (
                "建议在系统设置中改为 (UTC+08:00) 北京；单独运行时请设 TZ=CST-8",
                "Set (UTC+08:00) Beijing in Windows, or TZ=CST-8 for what you start yourself",
            ),
            {"timezone": list(error.data.get("timezone", []))},
        )
    return Line("timezone", "ok", "北京时间 (UTC+8)", "China Standard Time")


def _code_page() -> Line:
    shown = getattr(sys.stdout, "encoding", None) or ""
    default = locale.getpreferredencoding(False)
    facts = {"stdout": shown, "default": default, "utf8_mode": sys.flags.utf8_mode}
    try:
        "终端".encode(shown or "ascii")
    except (LookupError, UnicodeEncodeError):
        return Line(
            "code_page",
            "warn",
            f"控制台编码 {shown} 显示不了中文",
            f"the console's encoding {shown} has no Chinese; question marks are shown for it",
            ("设环境变量 PYTHONUTF8=1，或 chcp 65001", "Set PYTHONUTF8=1, or run chcp 65001"),
            facts,
        )
    return Line("code_page", "ok", f"控制台编码 {shown}", "the console shows Chinese", facts=facts)


def _room(home: Home) -> Line:
    folder = home.folder
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        free = shutil.disk_usage(folder).free / _GIB
    except OSError as error:
        return Line("disk", "warn", "磁盘空间未知", f"disk room is unknown: {error.strerror}")
    facts = {"free_gib": round(free, 1)}
    if free >= _LITTLE_ROOM_GIB:
        return Line(
            "disk", "ok", f"磁盘剩余 {free:.0f} GiB", f"{free:.0f} GiB of disk room", facts=facts
        )
    return Line(
        "disk",
        "fail" if free < _NO_ROOM_GIB else "warn",
        f"磁盘只剩 {free:.1f} GiB：Redis 断线时行情暂存于此",
        f"only {free:.1f} GiB of disk: ticks are kept here while Redis is away",
        ("请清理磁盘，或用 QMT_HOME 换盘", "Free some, or set QMT_HOME to another drive"),
        facts,
    )


def _sleep() -> Line:
    minutes = _sleeps_after_minutes()
    if minutes is None:
        return Line("sleep", "ok", "未能得知睡眠设置", "sleep settings are not known here")
    if minutes == 0:
        return Line("sleep", "ok", "接通电源时不睡眠", "no sleep while plugged in")
    return Line(
        "sleep",
        "warn",
        f"空闲 {minutes} 分钟后睡眠；qmt-windows 运行时会阻止，但合盖等仍会睡眠",
        f"sleeps after {minutes} idle minutes; qmt-windows prevents that while it runs",
        (
            "powercfg /change standby-timeout-ac 0",
            "powercfg /change standby-timeout-ac 0",
        ),
        {"minutes": minutes},
    )


def _quick_edit() -> Line:
    if not _quick_edit_is_on():
        return Line("quick_edit", "ok", "控制台快速编辑未开启", "quick-edit is not on")
    return Line(
        "quick_edit",
        "ok",
        "控制台快速编辑开启：qmt-windows 在自己的窗口中会关闭它，其他窗口点击后会暂停程序",
        "quick-edit is on: qmt-windows switches it off in its own window; elsewhere a click into a "
        "console halts its program",
        facts={"quick_edit": True},
    )


if sys.platform == "win32":
    import winreg

    def _sleeps_after_minutes() -> int | None:
        try:
            shown = subprocess.run(
                ["powercfg", "/query", "SCHEME_CURRENT", "SUB_SLEEP", "STANDBYIDLE"],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_POWERCFG_S,
                check=True,
            ).stdout
        except (OSError, subprocess.SubprocessError):
            return None
        # Its words are in the system's language; the last numbers are on mains and on battery.
        words = [word for word in shown.split() if word.startswith(b"0x")]
        return int(words[-2], 16) // 60 if len(words) > 1 else None

    def _quick_edit_is_on() -> bool:
        try:
            with winreg.OpenKey(winreg.HKEY_CURRENT_USER, "Console") as key:
                return bool(winreg.QueryValueEx(key, "QuickEdit")[0])
        except OSError:
            return True  # Windows' own default

else:

    def _sleeps_after_minutes() -> int | None:
        return None

    def _quick_edit_is_on() -> bool:
        return False


def look_for_terminals(settings: TerminalSettings) -> list[Line]:
    """Look for running terminal programs, and for what terminals left about themselves."""
    return [_programs(settings), _instances(settings)]


def _programs(settings: TerminalSettings) -> Line:
    programs = TerminalPrograms(settings)
    found = programs.running(fresh=True)
    if found:
        return Line(
            "programs",
            "ok",
            f"终端程序运行中：{', '.join(found)}",
            "terminal programs run",
            facts={"programs": list(found)},
        )
    return Line(
        "programs",
        "warn",  # whether it matters is told by whether a terminal answers
        f"没有终端程序在运行（找的是 {programs.sought}）",
        f"no terminal program runs (looked for {programs.sought})",
        (
            "启动 QMT，勾选独立交易（极简模式）并手工登录",
            "Start QMT, tick 独立交易 (miniQMT) and log in by hand",
        ),
    )


def _instances(settings: TerminalSettings) -> Line:
    found = instances()
    facts: dict[str, Any] = {
        "instances": [
            {
                "address": one.address,
                "running": one.running,
                "kind": one.client_type,
                "place": one.place,
            }
            for one in found
        ]
    }
    running = [one for one in found if one.running]
    shown = "；".join(f"{one.place or one.client_type} {one.address}" for one in running)
    several = len(running) > 1 and not (settings.terminal_path or settings.terminal_port)
    if several:
        return Line(
            "instances",
            "fail",
            f"有 {len(running)} 个终端在运行：{shown}",
            f"{len(running)} terminals run, and nothing says which one is meant",
            (
                "用 QMT_TERMINAL_PATH 指定其中一个的文件夹",
                "Set QMT_TERMINAL_PATH to the folder of one of them",
            ),
            facts,
        )
    if not running:
        return Line(
            "instances",
            "ok",
            f"没有发现正在运行的实例（共 {len(found)} 条记录），将试默认端口",
            "no running instance is on record; the usual port is tried",
            facts=facts,
        )
    return Line("instances", "ok", f"终端实例：{shown}", "found on record", facts=facts)


def load_terminal_settings() -> tuple[TerminalSettings | None, list[Line]]:
    """Return the terminal's settings, or the line that says what is wrong with them."""
    try:
        return load_settings(TerminalSettings, []), []
    except QMTError as error:
        return None, [
            Line(
                "settings",
                "fail",
                f"设置有误：{error.message}",
                "the settings are wrong",
                ("请改正 qmt.toml 或 QMT_* 环境变量", error.hint or "Mend qmt.toml or QMT_*"),
            )
        ]
