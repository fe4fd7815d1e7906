"""A trading day of the archive: its ticks, and what is due beside them."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator
from typing import Any, Final

from qmt_producer.candidates import Entry
from qmt_protocol.bars import encode_bar
from qmt_protocol.codes import market_of, parse_codes
from qmt_protocol.columns import bars_from
from qmt_protocol.errors import ConfigurationError, NotFound
from qmt_protocol.keys import series_of
from qmt_protocol.periods import DAILY_PERIODS
from qmt_protocol.times import day_start_ms
from qmt_reading.requests import StoredRequest
from qmt_reading.stored.archive import ArchiveReader

from .player import Due
from .settings import ReplaySettings

__all__ = ["StoredDay"]

_NIGHT_BEGINS_MS: Final = 18 * 3_600_000


class StoredDay:
    """What the archive holds of a trading day, and what goes with it.

    Raises
    ------
    NotFound
        When it holds no ticks of that day.
    ConfigurationError, ArchiveUnavailable, ArchiveDamaged
    """

    def __init__(self, settings: ReplaySettings) -> None:
        self.day = settings.day_number
        self.codes = tuple(parse_codes(settings.codes)) if settings.codes else None
        if not settings.archive_url:
            raise ConfigurationError(
                "No archive is named.", hint="Set QMT_ARCHIVE_URL, or --archive-url FOLDER."
            )
        self._reader = ArchiveReader(settings.archive_url)
        manifest = self._reader.manifest()
        files = [one for one in manifest.files if one.kind == "tick" and one.day == self.day]
        if self.codes is not None:
            of_codes = {market_of(code) for code in self.codes}
            files = [one for one in files if one.market in of_codes]
        if not files:
            held = manifest.days
            raise NotFound(
                f"The archive holds no ticks of {self.day}"
                + (f" of {', '.join(self.codes[:5])}." if self.codes else "."),
                hint=f"It holds {len(held)} days from {held[0]} to {held[-1]}."
                if held
                else "It is empty.",
            )
        self.markets = sorted({one.market for one in files})
        self.simulated = any(one.simulated for one in files)
        """Whether the simulator invented ticks of it."""
        self.rows = sum(one.rows for one in files) if self.codes is None else None
        # What the archive has not stored yet of the day comes from the streams.
        day_end_ms = day_start_ms(self.day) + _NIGHT_BEGINS_MS - 1
        self.start_ms = min(one.first_ms for one in files)
        self.end_ms = max(day_end_ms, *(one.last_ms for one in files))
        self.request = StoredRequest(
            self.codes,
            () if self.codes else tuple(self.markets),
            "tick",
            self.start_ms,
            self.end_ms,
        )
        """What is to be read of the day's ticks."""
        self._missing = self.request.concerned(manifest.missing)
        self._periods = sorted({one.period for one in manifest.files if one.kind == "bar"})

    def beside(self) -> Iterator[Due]:
        """Return gaps and closed bars in the order in which they are due."""
        kinds = [self._bars(period) for period in self._periods]
        return heapq.merge(self._gaps(), *kinds, key=lambda due: due.at_ms)

    def _gaps(self) -> Iterator[Due]:
        for one in sorted(self._missing, key=lambda one: one.to_ms):
            gap: dict[str, Any] = {"kind": "gap", "reason": one.reason, "market": one.market}
            gap |= {"from_ms": one.from_ms, "to_ms": one.to_ms}
            if one.codes:
                gap["codes"] = {code: [one.from_ms, one.to_ms, 0] for code in one.codes}
            yield Due(min(one.to_ms, self.end_ms), event=gap)

    def _bars(self, period: str) -> Iterator[Due]:
        """Yield bars at their labels; a day's bar, whose label is its midnight, at the end."""
        daily = period in DAILY_PERIODS
        found = self._reader.bars(
            period,
            self.codes,
            day_start_ms(self.day) if daily else self.start_ms,
            self.end_ms,
            markets=self.markets,
        )
        bars = (bar for batch in found for bar in bars_from(batch))
        for label_ms, of_label in itertools.groupby(bars, key=lambda bar: int(bar["time"])):
            by_market: dict[str, list[Entry]] = {}
            for bar in of_label:
                entry = (series_of(period, bar.code), bar.id, encode_bar(bar))
                by_market.setdefault(market_of(bar.code), []).append(entry)
            for market, entries in by_market.items():
                yield Due(self.end_ms if daily else label_ms, market=market, bars=entries)
