"""What is true: bars, ticks and the log of pushes, past every code under test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qmt_simulator.control import Control
from qmt_simulator.tickrows import LOG_DTYPE

__all__ = ["Oracle", "read_push_log"]

Columns = dict[str, npt.NDArray[Any]]


def read_push_log(path: str | Path) -> npt.NDArray[Any]:
    """Return the push log as a structured array (`tickrows.LOG_DTYPE`), oldest first.

    A record that is just being written is left out.
    """
    raw = Path(path).read_bytes()
    whole = len(raw) - len(raw) % LOG_DTYPE.itemsize
    return np.frombuffer(raw[:whole], dtype=LOG_DTYPE)


class Oracle:
    """Asks a running terminal's market core.

    Parameters
    ----------
    port : int
        The terminal's port.
    """

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self.control = Control(port, host)

    def close(self) -> None:
        """Close the channel."""
        self.control.close()

    def codes(self) -> list[str]:
        """Return every instrument."""
        return list(self.control.call("oracle.codes"))

    def bars(
        self,
        code: str,
        period: str,
        start_ms: int = 0,
        end_ms: int | None = None,
        adjust: str = "none",
        *,
        at_ms: int | None = None,
    ) -> Columns:
        """Return bars by column as a terminal with everything in its cache would have them.

        Parameters
        ----------
        start_ms, end_ms : int
            Labels, both inclusive; the end defaults to the forming bar.
        adjust : str
            'none', 'front', 'back', 'front_ratio' or 'back_ratio'.
        at_ms : int, optional
            The market time from which to look; default now.
        """
        end_ms = (1 << 52) if end_ms is None else end_ms
        return _columns(
            self.control.call("oracle.bars", code, period, start_ms, end_ms, adjust, at_ms)
        )

    def ticks(self, code: str, day: int | None = None, *, at_ms: int | None = None) -> Columns:
        """Return a day's ticks by column up to `at_ms`; day (YYYYMMDD) and time default to now."""
        return _columns(self.control.call("oracle.ticks", code, day, at_ms))

    def trading_days(self, start: int, end: int) -> list[int]:
        """Return trading days YYYYMMDD, both ends inclusive, up to now."""
        return list(self.control.call("oracle.trading_days", start, end))

    def pushed(self) -> npt.NDArray[Any]:
        """Return every tick pushed so far; needs a terminal started with `--push-log`."""
        path = self.control.status()["push_log"]
        if path is None:
            raise ValueError("this terminal writes no push log: start it with --push-log")
        return read_push_log(path)


def _columns(answer: list[Any]) -> Columns:
    result: Columns = {}
    for name, kind, raw in answer:
        values = np.frombuffer(raw, kind)
        result[name] = values.reshape(-1, 5) if name in _DEPTH else values
    return result


_DEPTH = frozenset({"askPrice", "bidPrice", "askVol", "bidVol"})
