"""What a reader wants: markets whole, some codes, or bars of some."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from qmt_protocol.codes import market_of

from .batch import Row

__all__ = ["Scope"]


@dataclass(frozen=True)
class Scope:
    """What a reader wants.

    Attributes
    ----------
    markets : tuple of str
        Markets whose feeds are read.
    codes : frozenset or None
        Codes whose ticks are wanted; ``None``: all of the markets.
    bars : frozenset or None
        (code, period) of the bars wanted; ``None``: all.
    """

    markets: tuple[str, ...]
    codes: frozenset[str] | None = None
    bars: frozenset[tuple[str, str]] | None = frozenset()

    @classmethod
    def of(
        cls, codes: Iterable[str] | None, markets: Iterable[str] = (), periods: Sequence[str] = ()
    ) -> Scope:
        """Return the scope of ticks of codes or markets; with periods: of these codes' bars."""
        if codes is None:
            return cls(tuple(dict.fromkeys(markets)))
        codes = list(codes)
        of_codes = tuple(dict.fromkeys(market_of(code) for code in codes))
        if periods:
            bars = frozenset((code, period) for code in codes for period in periods)
            return cls(of_codes, frozenset(), bars)
        return cls(of_codes, frozenset(codes))

    @property
    def has_ticks(self) -> bool:
        """Whether ticks of anything are wanted."""
        return self.codes is None or bool(self.codes)

    @property
    def has_bars(self) -> bool:
        """Whether bars of anything are wanted."""
        return self.bars is None or bool(self.bars)

    def holds(self, code: str) -> bool:
        """Whether ticks or bars of a code are wanted."""
        if self.codes is None:
            return code.rpartition(".")[2] in self.markets
        return code in self.codes or any(code == of for of, _ in self.bars or ())

    def ticks_among(self, rows: Sequence[Row]) -> Sequence[Row]:
        """Return the ticks that are wanted."""
        codes, markets = self.codes, self.markets
        if codes is None:
            return [row for row in rows if row[0].rpartition(".")[2] in markets]
        return [row for row in rows if row[0] in codes]

    def takes_bars(self, code: str, period: str) -> bool:
        """Whether bars of a code and period are wanted."""
        return self.bars is None or (code, period) in self.bars

    def codes_of(self, market: str) -> list[str] | None:
        """Return the codes of a market whose ticks are wanted; ``None``: all."""
        if self.codes is None:
            return None
        return sorted(code for code in self.codes if market_of(code) == market)
