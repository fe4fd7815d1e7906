"""Imports the real xtdata without its side effects, and only where its results will be right."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import re
import sys
import time
import types
import warnings
from pathlib import Path
from typing import Any, Final

from qmt_protocol.errors import ConfigurationError, WrongTimezone
from qmt_protocol.settings import TerminalSettings

__all__ = ["check_timezone", "load_xtdata", "xtquant_version"]

_CHINA_OFFSET_S: Final = 8 * 3600
_FIRST_YEAR: Final = 1992  # China's last summer time ended in 1991
_YEAR_S: Final = 31_556_952
_VERSION: Final = re.compile(r"""^__version__\s*=\s*["'](?:xtquant_)?([^"']+)""", re.MULTILINE)


def check_timezone() -> None:
    """Check that this process's local time is China Standard Time.

    xtdata turns times into text and back by local time: elsewhere its answers are wrong without
    any error.

    Raises
    ------
    WrongTimezone
        When local time is not UTC+8 in summer and winter of every year since 1992.
    """
    now_s = time.time()
    first_s = (_FIRST_YEAR - 1970) * _YEAR_S
    # Half-year steps meet every summer time, whichever hemisphere's.
    moments = [*range(first_s, int(now_s), _YEAR_S // 2), now_s, now_s + _YEAR_S / 2]
    for at_s in moments:
        offset_s = time.localtime(at_s).tm_gmtoff
        if offset_s != _CHINA_OFFSET_S:
            raise WrongTimezone(
                f"This process's time zone is {'/'.join(time.tzname)} "
                f"(UTC{offset_s / 3600:+g} h), not China Standard Time, which xtquant silently "
                "needs.",
                hint="On Linux and Mac start it with TZ=Asia/Shanghai or TZ=CST-8. On Windows set "
                "the time zone to '(UTC+08:00) Beijing' in Settings > Time & language, or start "
                "it with the variable TZ=CST-8.",
                timezone=list(time.tzname),
                offset_s=offset_s,
            )


def load_xtdata(settings: TerminalSettings) -> Any:
    """Return the module ``xtquant.xtdata``, its greeting switched off.

    The package's own ``__init__`` never runs: it asks a package index for updates, which can
    take ten seconds.

    Raises
    ------
    WrongTimezone
        When the process is not on China Standard Time.
    ConfigurationError
        When xtquant is not found, cannot run here, or another copy is loaded already.
    """
    check_timezone()
    folder = _find(settings)
    package = _register(folder)
    if settings.native_module:
        _replace_native(package, settings.native_module)
    try:
        with warnings.catch_warnings():
            # xtbson calls utcfromtimestamp at import, deprecated since Python 3.12.
            warnings.simplefilter("ignore", DeprecationWarning)
            xtdata: Any = importlib.import_module("xtquant.xtdata")
            if (folder / "xtconn.py").is_file():  # not in copies before 2023
                importlib.import_module("xtquant.xtconn")
    except ImportError as error:
        raise ConfigurationError(
            f"xtquant in {folder} cannot run here: {error}.",
            hint="xtquant needs 64-bit Windows and CPython 3.8 to 3.13; the copy of a terminal "
            "may be for fewer versions of Python. Elsewhere use the simulator: set "
            "QMT_NATIVE_MODULE=qmt_simulator.native.",
        ) from error
    # The greeting is Chinese text: on a console that cannot show it, connecting would fail.
    xtdata.enable_hello = False
    return xtdata


def xtquant_version(xtdata: Any) -> str:
    """Return the version that the loaded copy of xtquant states, ``''`` when it states none."""
    init = Path(xtdata.__file__).with_name("__init__.py")
    try:
        match = _VERSION.search(init.read_text("utf-8", "replace"))
    except OSError:
        return ""
    return match[1] if match else ""


def _find(settings: TerminalSettings) -> Path:
    if settings.xtquant_path is not None:
        given = settings.xtquant_path.expanduser().resolve()
        for folder in (given / "xtquant", given):
            if (folder / "xtdata.py").is_file():
                return folder
        raise ConfigurationError(
            f"{given} holds no xtquant package.",
            hint=r"Set QMT_XTQUANT_PATH to the folder that holds it, in QMT usually "
            r"bin.x64\Lib\site-packages.",
        )
    loaded = sys.modules.get("xtquant")
    if loaded is not None:
        return Path(next(iter(loaded.__path__)))
    spec = importlib.util.find_spec("xtquant")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigurationError(
            "xtquant is not installed.",
            hint="Run: pip install 'qmt-redis-bridge[producer,worker]', or set QMT_XTQUANT_PATH "
            "to the copy that the terminal ships.",
        )
    return Path(next(iter(spec.submodule_search_locations)))


def _register(folder: Path) -> types.ModuleType:
    loaded = sys.modules.get("xtquant")
    if loaded is not None:
        if Path(next(iter(loaded.__path__))).resolve() == folder.resolve():
            return loaded
        raise ConfigurationError(
            f"xtquant is loaded from {next(iter(loaded.__path__))} already; "
            f"{folder} cannot be loaded beside it.",
            hint="Use one copy of xtquant per process.",
        )
    spec = importlib.machinery.ModuleSpec("xtquant", None, is_package=True)
    spec.submodule_search_locations = [str(folder)]
    package = importlib.util.module_from_spec(spec)
    package.__path__ = [str(folder)]
    sys.modules["xtquant"] = package
    return package


def _replace_native(package: types.ModuleType, name: str) -> None:
    try:
        native = importlib.import_module(name)
    except ImportError as error:
        raise ConfigurationError(
            f"The native module {name!r} cannot be imported: {error}.",
            hint="Correct QMT_NATIVE_MODULE, or leave it empty for xtquant's own.",
        ) from error
    loaded = sys.modules.setdefault("xtquant.datacenter", native)
    if loaded is not native:
        raise ConfigurationError(
            f"xtquant runs on {loaded.__name__} already; {name} cannot replace it.",
            hint="Use one native module per process.",
        )
    package.__dict__["datacenter"] = native
