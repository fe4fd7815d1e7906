"""What readers ask for: live data, stored rows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qmt_protocol.cursor.position import Position

if TYPE_CHECKING:
    import pyarrow as pa

    from qmt_protocol.archive import Missing

__all__ = ["LiveRequest", "StoredRequest"]


@dataclass(frozen=True)
class LiveRequest:
    """What a live iteration is to give.

    Attributes
    ----------
    codes : tuple of str or None
        Codes wanted; ``None``: all of the markets.
    markets : tuple of str
        Whole markets wanted.
    period : str
        ``tick``, or the period of the bars wanted.
    place : Place or None
        Where to go on.
    start_ms : int or None
        Begin with the ticks stored since this exchange time.
    snapshot : bool
        Begin with the latest tick of each code.
    conflate : bool
        Of what waits, only the latest of each code.
    """

    codes: tuple[str, ...] | None
    markets: tuple[str, ...] = ()
    period: str = "tick"
    position: Position | None = None
    start_ms: int | None = None
    snapshot: bool = False
    conflate: bool = False


@dataclass(frozen=True)
class StoredRequest:
    """What is to be read.

    Attributes
    ----------
    codes : tuple of str or None
        Codes wanted; ``None``: all of the markets.
    markets : tuple of str
        Whole markets wanted; with no codes either: all that are archived or published.
    period : str
        ``tick``, or the period of the bars wanted.
    start_ms, end_ms : int or None
        First and last ms of entry ids (exchange time; a bar's label), both included.
    columns : tuple of str or None
        Columns wanted beside code and id; ``None``: all.
    """

    codes: tuple[str, ...] | None
    markets: tuple[str, ...] = ()
    period: str = "tick"
    start_ms: int | None = None
    end_ms: int | None = None
    columns: tuple[str, ...] | None = None

    @property
    def schema(self) -> pa.Schema:
        """Schema of what is given."""
        import pyarrow as pa  # here: who only follows ticks needs none

        from qmt_protocol.columns import BAR_COLUMNS, TICK_COLUMNS

        from .stored.ordering import KEYS

        whole = TICK_COLUMNS if self.period == "tick" else BAR_COLUMNS
        if self.columns is None:
            return whole
        requested = {*KEYS, *self.columns}
        return pa.schema([field for field in whole if field.name in requested], whole.metadata)

    def concerns(self, markets: frozenset[str]) -> bool:
        """Whether rows of one of the markets may be in it."""
        named = {*self.markets, *(code.rpartition(".")[2] for code in self.codes or ())}
        return not named.isdisjoint(markets)

    def concerned(self, missing: Iterable[Missing]) -> list[Missing]:
        """Return what of that lies in the range and was not filled, oldest first."""
        markets = set(self.markets) or {code.rpartition(".")[2] for code in self.codes or ()}
        found = [
            one
            for one in missing
            if one.state != "filled"
            and (not one.market or one.market in markets)
            and (not one.codes or self.codes is None or not set(one.codes).isdisjoint(self.codes))
            and (self.start_ms is None or one.to_ms >= self.start_ms)
            and (self.end_ms is None or one.from_ms <= self.end_ms)
        ]
        return sorted(found, key=lambda one: (one.from_ms, one.to_ms, one.market))
