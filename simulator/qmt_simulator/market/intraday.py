"""Within the day: bars split into smaller bars that add up to them exactly, down to the slots.

Day -> parts (hours) -> columns (minutes) -> slots (ticks). Each step is worked out from its bar
and a key alone, so any minute of any day is found without walking through the day.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from qmt_simulator.market.daily import DailyBars
from qmt_simulator.market.hashing import F64, I64, combine, unit, unit16
from qmt_simulator.market.layout import Layout

_CHUNK = 512


@dataclass(slots=True)
class Block:
    """Bars of n instruments by m columns, int64[n, m]: price ticks, lots and whole yuan."""

    open: I64
    high: I64
    low: I64
    close: I64
    volume: I64
    amount: I64

    @staticmethod
    def join(blocks: list[Block]) -> Block:
        """Columns of several blocks side by side."""
        return Block(
            *(np.concatenate([getattr(b, f.name) for b in blocks], axis=1) for f in fields(Block))
        )

    def column(self, at: int) -> Block:
        """One column, as vectors."""
        return Block(*(getattr(self, f.name)[:, at] for f in fields(Block)))

    @staticmethod
    def flat(price: I64, volume: I64, amount: I64) -> Block:
        """One column in which everything trades at one price."""
        p = price[:, None]
        return Block(p, p, p, p, volume[:, None], amount[:, None])


def split(bar: Block, keys: np.ndarray, minutes: I64, weights: F64) -> Block:
    """Split bars into n smaller bars each, in time order.

    The first opens at the bar's open, the last closes at its close, all stay within high and low,
    both of which are reached; volumes and amounts add up to the bar's.

    Parameters
    ----------
    bar : Block of vectors
        At least one lot for each minute.
    keys : uint64[k]
    minutes : int64[n]
        Minutes in each smaller bar: it gets at least so many lots.
    weights : float64[n]
        Relative volumes.
    """
    n = len(minutes)
    o, h, low, c = (x[:, None] for x in (bar.open, bar.high, bar.low, bar.close))
    word = combine(keys[:, None], np.arange(n, dtype=np.int64))
    u0, u1, u2, u3 = (unit16(word, lane) for lane in range(4))
    span = (h - low).astype(np.float64)
    part = np.arange(1, n + 1) / n
    walk = np.cumsum(u0 - 0.5, axis=1)
    walk -= walk[:, -1:] * part
    close = np.floor(o + (c - o) * part + walk * (span * (1.4 / n**0.5)) + 0.5).astype(np.int64)
    close = np.clip(close, low, h)
    close[:, -1] = bar.close
    opened = np.empty_like(close)
    opened[:, 0] = bar.open
    nudge = (u1[:, 1:] > 0.75).astype(np.int64) - (u1[:, 1:] < 0.25)
    opened[:, 1:] = np.clip(close[:, :-1] + nudge, low, h)
    top, bottom = np.maximum(opened, close), np.minimum(opened, close)
    reach = span * (0.8 / n**0.5)
    high = np.minimum(top + np.floor(u2 * u2 * reach + 0.4).astype(np.int64), h)
    lowest = np.maximum(bottom - np.floor(u3 * u3 * reach + 0.4).astype(np.int64), low)
    row = np.arange(len(close))
    high[row, np.argmax(top, axis=1)] = bar.high
    lowest[row, np.argmin(bottom, axis=1)] = bar.low
    weight = (0.2 + u1 + u2) * weights
    volume = _share(bar.volume - int(minutes.sum()), weight) + minutes
    amount = _share(bar.amount, volume * (opened + high + lowest + close))
    return Block(opened, high, lowest, close, volume, amount)


def _share(total: I64, weight: np.ndarray) -> I64:
    """Whole shares of totals by weight, adding up exactly."""
    upto = np.cumsum(weight, axis=1)
    upto = np.floor(total[:, None] * (upto / upto[:, -1:])).astype(np.int64)
    upto[:, -1] = total
    upto[:, 1:] -= upto[:, :-1].copy()
    return np.asarray(upto)


def day_parts(day: DailyBars, keys: np.ndarray, worth: F64, layout: Layout) -> Block:
    """The parts of days, one column each; `worth` is yuan per lot and price tick.

    Of a standard day the first part is the opening print and the last the closing auction.
    """
    whole = Block(day.open, day.high, day.low, day.close, day.volume, day.amount)
    weights = np.array(layout.weights)
    if not layout.auctions:
        minutes = np.full(len(layout.parts), 60, dtype=np.int64)
        return split(whole, combine(keys, 700), minutes, weights)
    word = combine(keys, 701)
    spare = (day.volume - 1000).astype(np.float64)
    first = 1 + np.floor(spare * (0.002 + 0.010 * unit16(word, 0))).astype(np.int64)
    last = 1 + np.floor(spare * (0.005 + 0.015 * unit16(word, 1))).astype(np.int64)
    first_amount = np.floor(first * (day.open * worth)).astype(np.int64)
    last_amount = np.floor(last * (day.close * worth)).astype(np.int64)
    step = np.floor((unit16(word, 2) - 0.5) * (0.1 * (day.high - day.low)) + 0.5).astype(np.int64)
    before = np.clip(day.close - step, day.low, day.high)
    middle = Block(
        day.open, day.high, day.low, before,
        day.volume - first - last, day.amount - first_amount - last_amount,
    )  # fmt: skip
    minutes = np.array([60, 60, 60, 57], dtype=np.int64)
    hours = split(middle, combine(keys, 702), minutes, weights)
    close = Block(
        before[:, None],
        np.maximum(before, day.close)[:, None],
        np.minimum(before, day.close)[:, None],
        day.close[:, None],
        last[:, None],
        last_amount[:, None],
    )
    return Block.join([Block.flat(day.open, first, first_amount), hours, close])


def part_columns(parts: Block, keys: np.ndarray, layout: Layout, part: int) -> Block:
    """The columns of one part of days."""
    bar = parts.column(part)
    count = layout.parts[part][1]
    if layout.auctions and part == 0:
        return Block.flat(bar.open, bar.volume, bar.amount)
    if layout.auctions and part == len(layout.parts) - 1:
        none = np.zeros_like(bar.volume)
        still = Block.flat(bar.open, none, none)
        return Block.join([still, still, still, Block.flat(bar.close, bar.volume, bar.amount)])
    minutes, weights = np.ones(count, dtype=np.int64), np.ones(count)
    keys = combine(keys, 800 + part)
    chunks = [
        split(Block(*(getattr(bar, f.name)[at : at + _CHUNK] for f in fields(Block))),
              keys[at : at + _CHUNK], minutes, weights)
        for at in range(0, len(keys), _CHUNK)
    ]  # fmt: skip
    if len(chunks) == 1:
        return chunks[0]
    return Block(*(np.concatenate([getattr(b, f.name) for b in chunks]) for f in fields(Block)))


@dataclass(slots=True)
class Columns:
    """Columns of a day (or of one part of it) with what had happened before each of them.

    `first` is the column that stands at 0; `before_*` tell the day's volume, amount, high and low
    up to the column's beginning (low is huge before the first trade).
    """

    first: int
    block: Block
    before_volume: I64
    before_amount: I64
    before_high: I64
    before_low: I64

    @staticmethod
    def of(parts: Block, keys: np.ndarray, layout: Layout, part: int | None) -> Columns:
        """The columns of one part, or of the whole day for None."""
        if part is None:
            block = Block.join(
                [part_columns(parts, keys, layout, at) for at in range(len(layout.parts))]
            )
            begin, first = 0, 0
        else:
            block = part_columns(parts, keys, layout, part)
            begin, first = part, layout.parts[part][0]
        earlier = slice(0, begin)
        volume0 = parts.volume[:, earlier].sum(axis=1, keepdims=True)
        amount0 = parts.amount[:, earlier].sum(axis=1, keepdims=True)
        high0 = parts.high[:, earlier].max(axis=1, keepdims=True, initial=0)
        low0 = parts.low[:, earlier].min(axis=1, keepdims=True, initial=2**40)
        return Columns(
            first,
            block,
            np.cumsum(np.concatenate([volume0, block.volume[:, :-1]], axis=1), axis=1),
            np.cumsum(np.concatenate([amount0, block.amount[:, :-1]], axis=1), axis=1),
            np.maximum.accumulate(np.concatenate([high0, block.high[:, :-1]], axis=1), axis=1),
            np.minimum.accumulate(np.concatenate([low0, block.low[:, :-1]], axis=1), axis=1),
        )


@dataclass(slots=True)
class Moment:
    """A column at one of its slots: its own bar so far, and the day's. int64[n] each."""

    open: I64
    high: I64
    low: I64
    close: I64
    volume: I64
    amount: I64
    day_high: I64
    day_low: I64
    day_volume: I64
    day_amount: I64


def at_slot(
    columns: Columns, keys: np.ndarray, row: I64, column: I64, slot: I64, slots: I64
) -> Moment:
    """The state right after slots.

    Within a column the price goes from the open to its high and low (in either order) and to the
    close, in steps that never turn back between them.

    Parameters
    ----------
    columns : Columns
    keys : uint64[n]
        Key of each tick's day.
    row, column : int64[n]
        Where the column stands in `columns`; `column` counts from the day's first.
    slot, slots : int64[n]
        Slot within the column and their number: 1, or at least 4.
    """
    at = column - columns.first
    b = columns.block
    o, h, low, c = (x[row, at] for x in (b.open, b.high, b.low, b.close))
    total_volume, total_amount = b.volume[row, at], b.amount[row, at]
    word = combine(combine(keys, 900), column)
    inner = np.maximum(slots - 2, 2)
    up = 1 + (word & np.uint64(0xFFFF)).astype(np.int64) % inner
    turn = ((word >> np.uint64(16)) & np.uint64(0xFFFF)).astype(np.int64) % (inner - 1)
    down = 1 + (up + turn) % inner
    rises = up < down
    first, second = np.minimum(up, down), np.maximum(up, down)
    first_price, second_price = np.where(rises, h, low), np.where(rises, low, h)
    last = slots - 1
    late, middle = slot >= second, slot >= first
    begin = np.where(late, second, np.where(middle, first, 0))
    end = np.where(late, last, np.where(middle, second, first))
    from_price = np.where(late, second_price, np.where(middle, first_price, o))
    to_price = np.where(late, c, np.where(middle, second_price, first_price))
    length = np.maximum(end - begin, 1)
    price = from_price + (to_price - from_price) * (slot - begin) // length
    done = slot >= last
    price = np.where(done, c, price)
    high = np.where(done | (slot >= up), h, np.maximum(o, price))
    lowest = np.where(done | (slot >= down), low, np.minimum(o, price))
    wait = unit(combine(word, slot)) * 0.9
    share = (slot + 1 - wait) / slots
    volume = np.where(done, total_volume, np.floor(total_volume * share).astype(np.int64))
    part = volume / np.maximum(total_volume, 1)
    amount = np.where(done, total_amount, np.floor(total_amount * part).astype(np.int64))
    return Moment(
        o, high, lowest, price, volume, amount,
        np.maximum(columns.before_high[row, at], high),
        np.minimum(columns.before_low[row, at], lowest),
        columns.before_volume[row, at] + volume,
        columns.before_amount[row, at] + amount,
    )  # fmt: skip
