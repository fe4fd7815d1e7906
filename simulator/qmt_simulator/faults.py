"""Faults on demand: what the control channel switches on and the terminal obeys."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from qmt_simulator.tickrows import FLAG_FAULT, FLAG_NO_TIME, Rows

PHASES: Final = ("not_logged_in", "quote_server_down")
TIME_KINDS: Final = ("missing", "zero", "repeated", "backward", "future")
BACKWARD_MS: Final = 60_000
FUTURE_MS: Final = 3_600_000


class FaultError(ValueError):
    """No such fault, or its parameters make no sense."""


@dataclasses.dataclass
class _TimeFault:
    kind: str
    mask: npt.NDArray[np.bool_]
    shift_ms: int
    first_ms: npt.NDArray[np.int64]


class Faults:
    """The faults now active.

    Lasting faults: `deaf` (role, pid), `stuck_download`, `empty_failure_download`,
    `failed_download` (message), `not_realized` (func), `latency` (func, s), `tick_time` (kind,
    codes, shift_ms), `auction_zero` (codes), `not_logged_in`, `quote_server_down`. `codes` left
    out means every instrument.
    """

    def __init__(self, index: dict[str, int]) -> None:
        self._index = index
        self.deaf: list[dict[str, Any]] = []
        self.download: dict[str, str] = {}
        self.not_realized: set[str] = set()
        self.latency_s: dict[str, float] = {}
        self.phases: set[str] = set()
        """Of `PHASES`, those that hold."""
        self._times: list[_TimeFault] = []
        self._zero: npt.NDArray[np.bool_] | None = None

    def set(self, name: str, params: dict[str, Any]) -> None:
        """Switch a lasting fault on; `FaultError` where it is not known."""
        try:
            if name == "deaf":
                self.deaf.append({"role": params.get("role"), "pid": params.get("pid")})
            elif name in ("stuck_download", "empty_failure_download"):
                self.download[name] = ""
            elif name == "failed_download":
                self.download[name] = str(params["message"])
            elif name == "not_realized":
                self.not_realized.add(str(params["func"]))
            elif name == "latency":
                self.latency_s[str(params["func"])] = float(params["s"])
            elif name in PHASES:
                self.phases.add(name)
            elif name == "tick_time":
                self._times.append(self._time_fault(**params))
            elif name == "auction_zero":
                mask = self._mask(params.get("codes"))
                self._zero = mask if self._zero is None else self._zero | mask
            else:
                raise FaultError(f"unknown fault: {name}")
        except (KeyError, TypeError) as error:
            raise FaultError(f"{name}: bad parameters: {error}") from error

    def clear(self, name: str) -> None:
        """Switch every fault of that name off; '' means all."""
        known: dict[str, Callable[[], object]] = {
            "deaf": self.deaf.clear,
            "not_realized": self.not_realized.clear,
            "latency": self.latency_s.clear,
            "tick_time": self._times.clear,
            "auction_zero": self._end_auction,
            **{
                kind: functools.partial(self.download.pop, kind, None)
                for kind in ("stuck_download", "empty_failure_download", "failed_download")
            },
            **{kind: functools.partial(self.phases.discard, kind) for kind in PHASES},
        }
        if name and name not in known:
            raise FaultError(f"unknown fault: {name}")
        for end in [known[name]] if name else known.values():
            end()

    def is_deaf(self, role: str, pid: int) -> bool:
        """Return whether pushes to this client are withheld."""
        return any(
            item["role"] in (None, role) and item["pid"] in (None, pid) for item in self.deaf
        )

    def apply(self, rows: Rows) -> Rows:
        """Return the rows as the faults make them."""
        if not self._times and self._zero is None:
            return rows
        ticks, flags = rows.ticks.take(slice(None)), rows.flags.copy()
        if self._zero is not None:
            hit = self._zero[ticks.idx]
            for name in ("lastPrice", "open", "high", "low"):
                setattr(ticks, name, np.where(hit, 0.0, getattr(ticks, name)))
            ticks.openInt = np.where(hit, np.int32(12), ticks.openInt)
            flags[hit] |= FLAG_FAULT
        for fault in self._times:
            hit = fault.mask[ticks.idx]
            flags[hit] |= FLAG_FAULT
            if fault.kind == "missing":
                flags[hit] |= FLAG_NO_TIME
            elif fault.kind == "zero":
                ticks.time = np.where(hit, 0, ticks.time)
            elif fault.kind == "repeated":
                first = fault.first_ms[ticks.idx]
                stays = np.where(first > 0, first, ticks.time)
                fault.first_ms[ticks.idx[hit]] = stays[hit]
                ticks.time = np.where(hit, stays, ticks.time)
            else:
                ticks.time = np.where(hit, ticks.time + fault.shift_ms, ticks.time)
        return Rows(ticks, flags)

    def _time_fault(
        self, kind: str, codes: list[str] | None = None, shift_ms: int | None = None
    ) -> _TimeFault:
        if kind not in TIME_KINDS:
            raise FaultError(f"tick_time: kind must be one of {', '.join(TIME_KINDS)}")
        usual_ms = {"backward": -BACKWARD_MS, "future": FUTURE_MS}.get(kind, 0)
        return _TimeFault(
            kind,
            self._mask(codes),
            usual_ms if shift_ms is None else shift_ms,
            np.zeros(len(self._index), dtype=np.int64),
        )

    def _mask(self, codes: list[str] | None) -> npt.NDArray[np.bool_]:
        mask = np.zeros(len(self._index), dtype=bool)
        if codes is None:
            mask[:] = True
        for code in codes or ():
            if code not in self._index:
                raise FaultError(f"no such instrument: {code}")
            mask[self._index[code]] = True
        return mask

    def _end_auction(self) -> None:
        self._zero = None
