"""What a reader was given, and what it has to be given next: each once, or a gap with a name.

Per code, entry ids only grow: in the feed, in the code's own stream, in what a gateway sends. So
the last id given says all: whatever comes again (behind a cut connection, in a new epoch, from the
feed behind a reading of the streams) is known by it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from qmt_protocol.errors import CodecError, Gap
from qmt_protocol.feed import split_bar_batch, split_batch, split_latest
from qmt_protocol.ids import BEGINNING, id_key, is_behind
from qmt_protocol.keys import series_of
from qmt_protocol.ticks import decode_row

from . import gaps
from .batch import BarRow, Batch, Kind, Row, Snapshot
from .feed_offset import Break, FeedEntry
from .position import EVENTS, Offset, Position, just_before
from .scope import Scope

__all__ = ["Cursor"]


class Cursor:
    """One reader of the live data in a scope.

    Parameters
    ----------
    scope
        What is wanted.
    place
        Where to go on; markets that it does not name begin where they stand.
    on_gap
        Told what can no longer be had, before anything that lies behind it is given.
    start_ms
        Begin with the ticks stored since this exchange time.

    Attributes
    ----------
    offsets : dict
        Market (and `EVENTS`) to where a reader stands who has taken everything given.
    last_ids : dict
        Code (of bars: series) to the last entry id given, or, where nothing was yet, the one at the
        beginning.
    recovery : dict
        Market whose streams have to be read, to where the feed broke off.
    settling : dict
        Market whose streams were read, to the feed entry up to which its feed may hold what they
        gave already. Until then its position is at `BEGINNING`: only all codes' ids say more.
    """

    def __init__(
        self,
        scope: Scope,
        position: Position | None = None,
        *,
        on_gap: Callable[[Gap], None],
        start_ms: int | None = None,
    ) -> None:
        position = position or Position()
        self.scope = scope
        self.offsets: dict[str, Offset] = dict(position.offsets)
        self.last_ids: dict[str, str] = (position.codes or {}) | position.seen
        self.recovering: dict[str, Offset] = {}
        self.settling: dict[str, str] = {}
        self.has_begun = False
        self._on_gap = on_gap
        self._start_ms = start_ms
        self._knows_all = set(scope.markets).difference(
            () if position.codes is not None else position.offsets
        )
        """Markets of which `last_ids` knows every code."""
        if position.codes is not None and scope.has_ticks:
            offsets = {m: self.offsets[m] for m in scope.markets if m in self.offsets}
            self.recovering |= {m: at for m, at in offsets.items() if at[1] == BEGINNING}
        self._missed_up_to: dict[str, tuple[int, int]] = {}
        self._first: list[Row] = []
        # While streams are read:
        self._feed_from: dict[str, Offset] = {}
        """Where the feeds are read on behind them."""
        self._stored_after: dict[str, str] = {}
        self._newest: dict[str, str] = {}
        self._named: set[str] = set()
        """Codes that a gap was told of."""

    @property
    def known_ids(self) -> dict[str, str] | None:
        """`last_ids`, once every code is in it."""
        return self.last_ids if self._knows_all.issuperset(self.scope.markets) else None

    # The beginning

    def begin(
        self, fresh: Snapshot, filed: Mapping[str, Offset], *, with_snapshot: bool = False
    ) -> None:
        """Take up the position: what is published from here on will be given.

        Parameters
        ----------
        fresh
            The markets that the place does not name, as they are.
        filed
            The others' ends: what lies before them was missed.
        with_snapshot
            Keep the latest ticks for `snapshot`.
        """
        self._missed_up_to = {market: id_key(offset[1]) for market, offset in filed.items()}
        self.offsets |= fresh.offsets
        unreadable = list(fresh.unreadable)
        for market in fresh.offsets:
            for code in self.scope.codes_of(market) or ():
                self.last_ids.setdefault(code, BEGINNING)
        found: dict[str, str] = {}
        for code, data in fresh.latest.items():
            try:
                entry_id, t1 = split_latest(data, code)
                decode_row(t1, code, entry_id)
            except CodecError as error:  # the code's next tick puts it right
                unreadable.append(error)
                continue
            found[code] = entry_id
            if with_snapshot:
                self._first.append((code, entry_id, t1))
        for one in unreadable:
            self._on_gap(gaps.stored_unreadable(one, self.scope))
        self.last_ids |= found
        if self._start_ms is not None:
            bound = just_before(self._start_ms)
            self.last_ids |= {
                code: bound for code in self.last_ids if code.rpartition(".")[2] in fresh.offsets
            }
            self.recovering = {m: (epoch, BEGINNING) for m, (epoch, _) in fresh.offsets.items()}
            self.offsets |= self.recovering
        self.has_begun = True

    def opening(self) -> Batch:
        """Return the batch that comes before all others."""
        self.has_begun = True
        ids = self.known_ids
        return Batch("begin", offsets=dict(self.offsets), ids=None if ids is None else dict(ids))

    def snapshot(self, bars: Sequence[BarRow]) -> Batch:
        """Return the latest ticks, and the last stored bars: those of the feed up to it follow."""
        first, self._first = self._first, []
        self.learn((), bars)
        return Batch("snapshot", first, bars, dict(self.offsets))

    # What comes

    def take(self, entry: FeedEntry, epoch: str) -> Batch:
        """Take what is wanted out of a feed entry that follows on the position."""
        market, offset = entry.market, (epoch, entry.id)
        rows: Sequence[Row] = ()
        bars: Sequence[BarRow] = ()
        data: bytes | None = None
        try:
            if entry.ticks is not None:
                every, unreadable = split_batch(entry.ticks, market)
                of_codes = self.scope.codes is not None  # split_batch gives the market's alone
                rows = self._news(self.scope.ticks_among(every) if of_codes else every)
                if len(rows) == len(every) and not unreadable:
                    data = entry.ticks
            elif entry.bars is not None:
                every_bar, unreadable = split_bar_batch(entry.bars, market)
                bars = self._news_of_bars(every_bar)
            else:
                raise CodecError(f"A feed entry of {market} has neither ticks nor bars.")
        except CodecError as error:
            unreadable = [error]
        for gap in gaps.unreadable_in(entry, unreadable, offset) if unreadable else ():
            self._on_gap(gap)
        limit = self._missed_up_to.get(market)
        if limit is not None and id_key(entry.id) > limit:
            del self._missed_up_to[market]
            limit = None
        if is_behind(self.settling.get(market, BEGINNING), entry.id):
            return Batch("stored", rows, bars, {market: self.offsets[market]}, data)
        self.settling.pop(market, None)
        self.offsets[market] = offset
        offsets = {name: self.offsets[name] for name in (market, EVENTS) if name in self.offsets}
        return Batch("live" if limit is None else "missed", rows, bars, offsets, data)

    def receive(
        self,
        kind: Kind,
        rows: Sequence[Row],
        bars: Sequence[BarRow],
        offsets: Mapping[str, Offset],
    ) -> Batch:
        """Take what is wanted out of what a gateway sent."""
        requested = self.scope.ticks_among(rows)
        self.offsets |= offsets
        return Batch(kind, self._news(requested), self._news_of_bars(bars), offsets)

    def learn(self, rows: Iterable[Row], bars: Iterable[BarRow]) -> None:
        """Note where codes and bars stand that the user is not given."""
        self.last_ids.update((code, entry_id) for code, entry_id, _ in rows)
        self.last_ids.update(
            (series_of(period, code), entry_id) for code, period, entry_id, _ in bars
        )

    def note_event(self, event_id: str, event: Mapping[str, Any]) -> None:
        """Tell the gap that a producer's event names."""
        self.offsets[EVENTS] = ("", event_id)
        gap = gaps.gap_of_event(event, self.scope)
        if gap is not None:
            self._on_gap(gap)

    # Breaks

    def break_off(self, one: Break) -> None:
        """Take note of a break, and tell it.

        The market is in `recovering` behind it where its streams can give what the feed cannot.
        """
        market = one.market
        recovers = market in self._knows_all and self.scope.has_ticks
        self.offsets[market] = one.at
        self.settling.pop(market, None)
        if recovers:
            self.recovering[market] = one.after
            self.offsets[market] = one.after[0], BEGINNING
        # What another history lost the producers name; that it is another one is told at once.
        if one.reason == "epoch" or not recovers:
            self._on_gap(gaps.lost(one))
        elif self.scope.has_bars:
            self._on_gap(gaps.lost(one, only_bars=True))

    def recover(self, snapshot: Snapshot) -> dict[str, str]:
        """Return behind which entry each stream has to be read, of the markets in `recovering`.

        Parameters
        ----------
        snapshot
            These markets, taken before the streams are read: what is published meanwhile is in
            both, and known by its id. It may be handed in again, where reading was cut off.
        """
        self._feed_from = dict(snapshot.offsets)
        self._newest = {}
        for code, data in snapshot.latest.items():
            try:
                self._newest[code] = split_latest(data, code)[0]
            except CodecError:  # its stream has it
                self._newest[code] = BEGINNING
        begin = BEGINNING if self._start_ms is None else just_before(self._start_ms)
        after: dict[str, str] = {}
        for market in snapshot.offsets:
            codes = self.scope.codes_of(market)
            if codes is None:  # one of which nothing is known is new to the market
                codes = sorted(code for code in self._newest if code.endswith(f".{market}"))
            elif self._start_ms is None:
                self._name_unknown(market, codes)
                codes = [code for code in codes if code in self.last_ids]
            after |= {code: self.last_ids.get(code, begin) for code in codes}
        self._stored_after = after
        return after

    def take_stored(self, rows: Sequence[Row]) -> Batch:
        """Take what streams held behind the ids of `recover`."""
        self.last_ids.update((code, entry_id) for code, entry_id, _ in rows)
        return Batch(
            "stored", rows, offsets={market: self.offsets[market] for market in self.recovering}
        )

    def leave_out(self, error: CodecError) -> None:
        """Tell a stored tick that cannot be read."""
        self._named.add(str(error.data.get("code", "")))
        self._on_gap(gaps.stored_unreadable(error, self.scope))

    def trim(self, codes: Mapping[str, tuple[str, str]]) -> None:
        """Tell what streams lost: code to (last id given, first id left)."""
        self._named.update(codes)
        self._on_gap(gaps.trimmed(codes))

    def recovered(self, filed: Mapping[str, Offset]) -> Batch:
        """Note that the streams were read to their ends; return where a reader stands then.

        Parameters
        ----------
        filed
            Up to where the markets were filed behind that.
        """
        after = self._stored_after
        absent = {  # whole streams are unlinked when they are old
            code: (last, self._newest[code])
            for code in after.keys() & self._newest.keys() - self._named
            if id_key(self._newest[code]) > id_key(last := self.last_ids.get(code, after[code]))
        }
        if absent:
            self._on_gap(gaps.trimmed(absent))
        for market, (_, end) in filed.items():
            if is_behind(end, self._feed_from[market][1]):
                self.settling[market] = end
            else:
                self.offsets[market] = self._feed_from[market]
        offsets = {market: self.offsets[market] for market in self.recovering}
        self.recovering.clear()
        self._named.clear()
        self._newest, self._stored_after, self._feed_from = {}, {}, {}
        return Batch("stored" if self.settling else "missed", offsets=offsets)

    def _name_unknown(self, market: str, codes: Sequence[str]) -> None:
        codes = [code for code in codes if code not in self.last_ids.keys() | self._named]
        if codes:
            self._named.update(codes)
            self._on_gap(gaps.not_in_position(market, self.recovering[market], codes))

    # What was given

    def _news(self, rows: Sequence[Row]) -> Sequence[Row]:
        """Leave out what was given, and note the rest as given."""
        last_ids = self.last_ids
        news = []
        for row in rows:
            code, entry_id, _ = row
            last = last_ids.get(code)
            if last is None or is_behind(entry_id, last):
                last_ids[code] = entry_id
                news.append(row)
        return news if len(news) < len(rows) else rows

    def _news_of_bars(self, bars: Iterable[BarRow]) -> list[BarRow]:
        takes = self.scope.takes_bars
        news = []
        for row in bars:
            key = series_of(row[1], row[0])
            if takes(row[0], row[1]) and is_behind(row[2], self.last_ids.get(key, "")):
                self.last_ids[key] = row[2]
                news.append(row)
        return news
