"""Which of xtdata's functions the loaded copy has, and which the terminal refused to know.

Brokers ship terminals and copies of xtquant of many ages. What is missing is learnt once for each
pair of them, from the first call, and kept in a file: it is not asked for again, and is told with
the function's name and the version.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any, Final

import structlog

from qmt_protocol.errors import TerminalUnsupported

__all__ = ["USED", "Functions"]

log: Final = structlog.get_logger(__name__)

USED: Final = (
    "connect",
    "disconnect",
    "download_history_data",
    "download_history_data2",
    "download_holiday_data",
    "get_client",
    "get_full_tick",
    "get_holidays",
    "get_instrument_detail",
    "get_market_data_ex",
    "get_sector_list",
    "get_stock_list_in_sector",
    "get_trading_dates",
    "get_trading_period",
    "reconnect",
    "show_quote_server_status",
    "subscribe_quote",
    "subscribe_whole_quote",
    "unsubscribe_quote",
    "watch_quote_server_status",
    "watch_xtquant_status",
)
"""What the bridge calls; a copy that lacks some still serves the rest."""
_NEVER_GIVEN_UP: Final = frozenset(
    {
        "download_history_data",
        "download_history_data2",
        "get_full_tick",
        "get_instrument_detail",
        "get_market_data_ex",
        "subscribe_quote",
        "subscribe_whole_quote",
        "unsubscribe_quote",
    }
)
"""Every terminal has these: a refusal is worth asking again."""
_ASK_AGAIN_MS: Final = 7 * 86_400_000
_FORMAT: Final = 1


class Functions:
    """The table of one loaded copy of xtquant.

    Parameters
    ----------
    xtdata
        The loaded module.
    xtquant_version, xtquant_path
        What it calls itself, and where it lies.
    file
        Where refusals are kept; ``None``: nowhere.
    """

    def __init__(
        self, xtdata: Any, *, xtquant_version: str, xtquant_path: str, file: Path | None
    ) -> None:
        self._xtdata = xtdata
        self._version = xtquant_version
        self._path = xtquant_path
        self._file = file
        self._key = ""
        self._refused: dict[str, int] = {}

    def of_terminal(self, version: str, edition: str) -> None:
        """Take up what is known of a terminal; call it when one has connected."""
        key = f"xtquant {self._version or self._path} | {edition or '?'} {version or '?'}"
        if key == self._key:
            return
        self._key = key
        kept = self._read().get(key, {}).get("refused", {})
        self._refused = {
            str(name): at_ms
            for name, at_ms in (kept.items() if isinstance(kept, dict) else ())
            if isinstance(at_ms, int)
        }
        self._write()

    @property
    def table(self) -> dict[str, str]:
        """Return function to ``has``, ``missing`` (this copy lacks it) or ``refused``."""
        return {
            name: "missing"
            if not hasattr(self._xtdata, name)
            else "refused"
            if self._is_refused(name)
            else "has"
            for name in USED
        }

    def check(self, call: str) -> None:
        """Refuse a call of which it is known that it cannot succeed.

        Raises
        ------
        TerminalUnsupported
            When this copy lacks the function, or the terminal refused it lately.
        """
        if not hasattr(self._xtdata, call):
            raise self.missing(call)
        if self._is_refused(call):
            raise TerminalUnsupported(
                f"This terminal does not know {call}: it said so before.",
                hint="Update the terminal, or use an edition that has the function. It is asked "
                "again after a week, or at once when the file that QMT_FUNCTIONS_FILE names is "
                "removed and this process started again.",
                call=call,
            )

    def missing(self, name: str) -> TerminalUnsupported:
        """Return the error of a function that this copy of xtquant lacks."""
        return TerminalUnsupported(
            f"xtquant {self._version or 'of unknown version'} in {self._path} has no {name}.",
            hint="It is older than the bridge expects: update the terminal that ships it, or leave "
            "QMT_XTQUANT_PATH empty to use the copy that pip installed.",
            call=name,
            xtquant_version=self._version,
        )

    def note_refused(self, call: str) -> None:
        """Remember that the terminal does not know a function."""
        if call in _NEVER_GIVEN_UP:
            return
        self._refused[call] = _now_ms()
        log.info("the terminal lacks a function", call=call, terminal=self._key)
        self._write()

    def lacks(self, error: AttributeError) -> str:
        """Return what this copy or its native module lacks, ``""`` for another fault."""
        owner = error.obj
        of_xtquant = str(getattr(owner, "__name__", "")).startswith("xtquant")
        native = type(owner).__name__ == "IPythonApiClient"
        return str(error.name) if error.name and (of_xtquant or native) else ""

    def _is_refused(self, call: str) -> bool:
        at_ms = self._refused.get(call)
        return at_ms is not None and 0 <= _now_ms() - at_ms < _ASK_AGAIN_MS

    # -- the file -----------------------------------------------------------------------------

    def _read(self) -> dict[str, Any]:
        if self._file is None:
            return {}
        try:
            kept: Any = json.loads(self._file.read_text("utf-8"))
        except (OSError, ValueError):  # none yet, or damaged: learnt anew
            return {}
        known = kept.get("terminals") if isinstance(kept, dict) else None
        if not isinstance(known, dict) or kept.get("format") != _FORMAT:
            return {}
        return {key: one for key, one in known.items() if isinstance(one, dict)}

    def _write(self) -> None:
        if self._file is None or not self._key:
            return
        known = self._read()
        missing = [name for name in USED if not hasattr(self._xtdata, name)]
        entry = {"missing": missing, "refused": self._refused}
        if known.get(self._key) == entry:
            return
        known[self._key] = entry
        document = {"format": _FORMAT, "terminals": known}
        # Producer and worker share the file: each puts a whole one in its place.
        written = self._file.with_name(f"{self._file.name}.{os.getpid()}")
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            written.write_text(json.dumps(document, ensure_ascii=False, indent=1), "utf-8")
            written.replace(self._file)
        except OSError as error:
            log.warning("the table of functions is not kept", error=str(error))
            with contextlib.suppress(OSError):
                written.unlink()


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
