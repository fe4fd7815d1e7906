"""What every benchmark is made of: sizes, turns, rows of samples, sections."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

__all__ = ["SIZES", "Aim", "Context", "Row", "Section", "Side", "Size", "in_turns", "quantile"]

Size = Literal["full", "quick", "smoke"]
SIZES: Final[tuple[Size, ...]] = ("full", "quick", "smoke")
_T = TypeVar("_T")


@dataclass
class Context:
    """One run: how big, where files go, whom to tell."""

    size: Size
    directory: Path
    """Scratch folder on a disk, removed at the end."""
    say: Callable[[str], None]
    incumbent: bool = True
    """Whether the incumbent is measured beside ours."""

    def pick(self, *, full: _T, quick: _T, smoke: _T) -> _T:
        """Return the value of this run's size."""
        return {"full": full, "quick": quick, "smoke": smoke}[self.size]


@dataclass(frozen=True)
class Aim:
    """What a row should reach: at least where more is better, at most where less is."""

    value: float
    of: str = "value"
    """``value``, or ``ratio`` where it is meant against the section's reference."""


@dataclass
class Row:
    """Samples of one side for one question."""

    what: str
    side: str
    unit: str
    samples: list[float]
    more_is_better: bool = True
    aims: tuple[Aim, ...] = ()
    note: str = ""

    @property
    def median(self) -> float:
        """The middle sample; NaN when there is none."""
        return statistics.median(self.samples) if self.samples else float("nan")

    @property
    def spread(self) -> tuple[float, float]:
        """Lower and upper quartile."""
        return quantile(self.samples, 0.25), quantile(self.samples, 0.75)


@dataclass
class Section:
    """One benchmark's result."""

    name: str
    question: str
    rows: list[Row] = field(default_factory=list)
    references: tuple[str, ...] = ()
    """Sides against which ratios are given: the first that has a row of the same `Row.what`."""
    notes: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    """Sizes and settings of this run, as they stand in the report."""
    failed: str = ""

    def row(self, what: str, side: str) -> Row | None:
        """Return the row of a side, or ``None``."""
        return next((one for one in self.rows if (one.what, one.side) == (what, side)), None)

    def ratio(self, row: Row) -> float | None:
        """Return a row's median over that of the reference side, where there is one."""
        found = (self.row(row.what, side) for side in self.references)
        base = next((one for one in found if one is not None), None)
        return None if base is None or base is row or not base.median else row.median / base.median


@dataclass(frozen=True)
class Side:
    """One of the things compared: called once per turn, it returns one sample per `Row.what`."""

    name: str
    run: Callable[[], Mapping[str, float]]


def in_turns(
    sides: Sequence[Side], repeats: int, *, warm_up: int = 1
) -> dict[str, dict[str, list[float]]]:
    """Run all sides in turns, so that what disturbs the machine hits all of them alike.

    The order is turned round by one place in each repeat. Warm-up rounds are thrown away.

    Returns
    -------
    dict
        Side to what to samples.
    """
    samples: dict[str, dict[str, list[float]]] = {side.name: {} for side in sides}
    for turn in range(-warm_up, repeats):
        first = turn % len(sides)
        for side in (*sides[first:], *sides[:first]):
            with _no_garbage():
                measured = side.run()
            if turn >= 0:
                for what, value in measured.items():
                    samples[side.name].setdefault(what, []).append(value)
    return samples


@contextmanager
def _no_garbage() -> Iterator[None]:
    # The benchmark's own big lists must not be collected on a side's time.
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def quantile(samples: Sequence[float], at: float) -> float:
    """Return a quantile with linear interpolation; NaN of nothing."""
    if not samples:
        return float("nan")
    ordered = sorted(samples)
    store = at * (len(ordered) - 1)
    low = int(store)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (store - low)
