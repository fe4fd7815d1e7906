"""Pushes: which ticks and bars go to which subscription, when, and into the push log."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Protocol

import numpy as np
import numpy.typing as npt

from qmt_simulator import bson, tickrows, wire
from qmt_simulator.clock import DAY_MS, wall_ms
from qmt_simulator.tickrows import FLAG_FAULT, FLAG_SNAPSHOT, Rows, TickEncoder

if TYPE_CHECKING:
    from qmt_simulator.clock import Clock
    from qmt_simulator.faults import Faults
    from qmt_simulator.market import Bars, Market, Ticks
    from qmt_simulator.phases import Phases
    from qmt_simulator.profiles import Profile

_log = logging.getLogger(__name__)

BAR_PUSH_MS: Final = 1000
"""A forming bar is looked at this often, or as often as its instrument ticks."""
BARS_BUDGET_S: Final = 0.1
"""Wall time that bars may take of one window; the rest waits for the next, longest first."""
SLICE_PUSHES: Final = 4
"""After a pause the backlog goes out in slices of so many push windows."""


class Peer(Protocol):
    """A connected native client, as the pushes see it."""

    number: int
    role: str
    pid: int

    def send(self, frame: bytes) -> None: ...


@dataclasses.dataclass(eq=False)
class WholeQuote:
    """A subscribe_whole_quote."""

    number: int
    peer: Peer
    mask: npt.NDArray[np.bool_]


@dataclasses.dataclass(eq=False)
class SingleQuote:
    """A subscribe_quote of one code and period."""

    number: int
    peer: Peer
    code: str
    idx: int
    period: str
    dividend_type: str
    pushes: bool
    last_label_ms: int = 0
    last_row: bytes = b""
    due_wall_ms: int = 0


class PushLog:
    """Numbers delivered ticks and appends them to a file of `LOG_DTYPE` records."""

    def __init__(self, path: Path | None) -> None:
        self._seq = 0
        self._file: BinaryIO | None = None if path is None else path.open("ab", buffering=0)
        self.path = path

    @property
    def last_seq(self) -> int:
        return self._seq

    def write(self, records: npt.NDArray[Any], subscription: int, connection: int) -> None:
        count = len(records)
        if self._file is not None:
            records["seq"] = np.arange(self._seq + 1, self._seq + 1 + count)
            records["wall_ms"] = wall_ms()
            records["subscription"] = subscription
            records["connection"] = connection
            self._file.write(records.tobytes())
        self._seq += count

    @property
    def requested(self) -> bool:
        return self._file is not None

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


class PushEngine:
    """Follows the market's ticks and sends them, while a quote server does.

    Every window of `push_ms` wall time it takes the ticks that became due; an accelerated clock
    gives only the newest tick of a code per window, as a terminal conflates.
    """

    def __init__(
        self,
        market: Market,
        clock: Clock,
        profile: Profile,
        faults: Faults,
        phases: Phases,
        *,
        push_ms: int,
        interval_ms: int,
        log: PushLog,
    ) -> None:
        self._market = market
        self._clock = clock
        self._profile = profile
        self._faults = faults
        self._phases = phases
        self._push_ms = push_ms
        self._interval_ms = interval_ms
        self._encoder = TickEncoder(market.codes)
        self.log = log
        self._numbers = itertools.count(1)
        self.whole: dict[int, WholeQuote] = {}
        self.single: dict[int, SingleQuote] = {}
        self._requested = np.zeros(len(market.codes), dtype=bool)
        self._upto_ms = clock.now_ms()
        self._burst: asyncio.Future[dict[str, int]] | None = None
        markets = np.array([code.rpartition(".")[2] for code in market.codes])
        self._market_masks = {name: markets == name for name in np.unique(markets).tolist()}

    # -- subscriptions ------------------------------------------------------------------------

    def mask_of(self, names: list[str]) -> npt.NDArray[np.bool_]:
        """Return which instruments a list of markets and codes means; unknown ones are none."""
        mask = np.zeros(len(self._market.codes), dtype=bool)
        for name in names:
            whole_market = self._market_masks.get(name)
            if whole_market is not None:
                mask |= whole_market
            elif name in self._market.index:
                mask[self._market.index[name]] = True
        return mask

    def subscribe_whole(self, peer: Peer, names: list[str], *, pushes: bool) -> int:
        number = next(self._numbers)
        if pushes:
            self.whole[number] = WholeQuote(number, peer, self.mask_of(names))
            self._refresh()
        return number

    def subscribe_single(
        self, peer: Peer, code: str, period: str, dividend_type: str, *, pushes: bool
    ) -> int:
        number = next(self._numbers)
        idx = self._market.index[code]
        self.single[number] = SingleQuote(number, peer, code, idx, period, dividend_type, pushes)
        self._refresh()
        return number

    def unsubscribe(self, peer: Peer, number: int) -> SingleQuote | None:
        """End one subscription of `peer`; returns it if it was a single one."""
        single = self.single.get(number)
        if single is not None and single.peer is peer:
            del self.single[number]
            self._refresh()
            return single
        whole = self.whole.get(number)
        if whole is not None and whole.peer is peer:
            del self.whole[number]
            self._refresh()
        return None

    def forget(self, peer: Peer) -> list[SingleQuote]:
        """End all subscriptions of a peer that is gone."""
        self.whole = {n: sub for n, sub in self.whole.items() if sub.peer is not peer}
        gone = [sub for sub in self.single.values() if sub.peer is peer]
        for sub in gone:
            del self.single[sub.number]
        self._refresh()
        return gone

    def first_push(self, number: int) -> None:
        """Send what a new subscription starts with: everything subscribed, as it stands."""
        if not self._phases.quotes_up:
            return
        whole = self.whole.get(number)
        if whole is not None:
            self._send_snapshot([whole], self._upto_ms)
        single = self.single.get(number)
        if single is not None and single.pushes:
            if single.period == "tick":
                snapshot = self._market.snapshot(self._upto_ms)
                rows = self._rows(snapshot.take(snapshot.idx == single.idx))
                self._send_single_ticks(rows, [single])
            else:
                self._send_bars(single)

    def _refresh(self) -> None:
        self._requested[:] = False
        for whole in self.whole.values():
            self._requested |= whole.mask
        for single in self.single.values():
            if single.pushes and single.period == "tick":
                self._requested[single.idx] = True

    # -- the loop -----------------------------------------------------------------------------

    async def run(self) -> None:
        """Push until cancelled."""
        loop = asyncio.get_running_loop()
        due_s = loop.time()
        while True:
            due_s = max(due_s + self._push_ms / 1000, loop.time())
            await asyncio.sleep(due_s - loop.time())
            behind = True
            while behind:
                behind = self.step()
                await asyncio.sleep(0)

    def step(self) -> bool:
        """Send one window; True if there is more to catch up with."""
        now_ms = self._clock.now_ms()
        if not self._phases.quotes_up:
            self._upto_ms = max(self._upto_ms, now_ms)
            return False
        if self._burst is not None:
            if self._clock.speed > 0 and now_ms < self._upto_ms + self._interval_ms:
                return False
            self._step_burst(min(now_ms, self._upto_ms + self._interval_ms))
            return self._upto_ms < now_ms
        if now_ms <= self._upto_ms:
            return False
        upto_ms = now_ms
        if self._clock.speed <= 1:
            upto_ms = min(now_ms, self._upto_ms + SLICE_PUSHES * self._push_ms)
        self._send_window(upto_ms)
        self._send_due_bars()
        return upto_ms < now_ms

    def _send_window(self, upto_ms: int) -> None:
        after_ms, self._upto_ms = self._upto_ms, upto_ms
        if not self._requested.any():
            return
        idx, time_ms = self._market.due(after_ms, upto_ms)
        keep = np.flatnonzero(self._requested[idx])
        if not len(keep):
            return
        if self._clock.speed > 1:
            # The last of each instrument: the first one in the reversed window.
            _codes, place = np.unique(idx[keep][::-1], return_index=True)
            keep = np.sort(keep[::-1][place])
        rows = self._rows(self._market.ticks(idx[keep], time_ms[keep]))
        for turn in tickrows.rounds(rows.ticks.idx):
            part = rows if len(turn) == len(rows) else rows.take(turn)
            self._send_whole(part, list(self.whole.values()))
        ticking = [sub for sub in self.single.values() if sub.pushes and sub.period == "tick"]
        self._send_single_ticks(rows, ticking)

    def _rows(self, ticks: Ticks, flags: int = 0) -> Rows:
        rows = Rows(self._profile.apply(ticks), np.full(len(ticks.idx), flags, dtype=np.uint32))
        return self._faults.apply(rows)

    # -- sending ------------------------------------------------------------------------------

    def _send_snapshot(self, subs: list[WholeQuote], at_ms: int, flags: int = 0) -> int:
        ticks = self._market.snapshot(at_ms)
        return self._send_whole(self._rows(ticks, FLAG_SNAPSHOT | flags), subs)

    def _send_whole(self, rows: Rows, subs: list[WholeQuote]) -> int:
        subs = [sub for sub in subs if not self._faults.is_deaf(sub.peer.role, sub.peer.pid)]
        if not subs or not len(rows):
            return 0
        groups = self._encoder.groups(rows)
        order = np.concatenate([members for members, _matrix in groups])
        records = self._encoder.records(rows, order) if self.log.requested else None
        sent = 0
        for sub in subs:
            chosen = [sub.mask[rows.ticks.idx[members]] for members, _matrix in groups]
            parts = [
                (matrix if hit.all() else matrix[hit]).tobytes()
                for hit, (_members, matrix) in zip(chosen, groups, strict=True)
            ]
            picked = np.concatenate(chosen)
            count = int(picked.sum())
            if not count:
                continue
            numbered = np.empty(count) if records is None else records[picked]
            # Logged first: a tick on the wire that the log lacks would be a lie.
            self.log.write(numbered, sub.number, sub.peer.number)
            sub.peer.send(wire.pack(wire.PUSH, sub.number, tickrows.document(parts)))
            sent += count
        return sent

    def _send_single_ticks(self, rows: Rows, subs: list[SingleQuote]) -> None:
        for sub in subs:
            if self._faults.is_deaf(sub.peer.role, sub.peer.pid):
                continue
            for row in np.flatnonzero(rows.ticks.idx == sub.idx):
                [(_members, matrix)] = self._encoder.groups(rows.take(np.array([row])))
                body = tickrows.list_document(sub.code, matrix[0].tobytes())
                sub.peer.send(wire.pack(wire.PUSH, sub.number, body))

    def _send_due_bars(self) -> None:
        now_wall_ms, end_s = wall_ms(), time.monotonic() + BARS_BUDGET_S
        due = [
            sub
            for sub in self.single.values()
            if sub.pushes and sub.period != "tick" and sub.due_wall_ms <= now_wall_ms
        ]
        for sub in sorted(due, key=lambda item: item.due_wall_ms):
            if time.monotonic() > end_s:
                return
            self._send_bars(sub)

    def _send_bars(self, sub: SingleQuote) -> None:
        now_wall_ms = wall_ms()
        if self._faults.is_deaf(sub.peer.role, sub.peer.pid):
            return
        sub.due_wall_ms = now_wall_ms + max(BAR_PUSH_MS, self._interval_ms)
        upto_ms = self._upto_ms
        for back_ms in (DAY_MS // 24, 15 * DAY_MS, 366 * DAY_MS):
            after_ms = sub.last_label_ms or upto_ms - back_ms
            bars = self._market.bars(sub.code, sub.period, after_ms, upto_ms + DAY_MS, upto_ms)
            if len(bars) or sub.last_label_ms:
                break
        if not len(bars):
            return
        if sub.dividend_type not in ("", "none"):
            bars = self._market.adjusted(sub.code, bars, sub.dividend_type)
        rows = bar_rows(bars)
        if sub.last_label_ms == 0:
            rows = rows[-1:]
        elif rows and rows[0] == sub.last_row:
            rows = rows[1:]
        if not rows:
            return
        sub.last_label_ms, sub.last_row = int(bars.time[-1]), rows[-1]
        body = b"".join(
            b"\x03" + str(number).encode() + b"\0" + row for number, row in enumerate(rows)
        )
        entry = b"\x04" + sub.code.encode() + b"\0" + tickrows.document([body])
        sub.peer.send(wire.pack(wire.PUSH, sub.number, tickrows.document([entry])))

    # -- on demand ----------------------------------------------------------------------------

    def burst(self) -> asyncio.Future[dict[str, int]]:
        """Hold every tick of one interval back, then send the whole market in one push.

        The result names the sequence numbers it got. With no tick due (closed market, frozen
        clock) the snapshot is sent instead.
        """
        if self._burst is None:
            self._burst = asyncio.get_running_loop().create_future()
        return self._burst

    def _step_burst(self, upto_ms: int) -> None:
        waiting, self._burst = self._burst, None
        first_seq, at_wall_ms = self.log.last_seq + 1, wall_ms()
        self._send_window(upto_ms)
        if self.log.last_seq < first_seq:
            self._send_snapshot(list(self.whole.values()), self._upto_ms)
        if waiting is not None and not waiting.done():
            last_seq = self.log.last_seq
            waiting.set_result(
                {"first_seq": first_seq, "last_seq": last_seq, "wall_ms": at_wall_ms}
            )

    def switch_server(self, back_ms: int) -> int:
        """Send an old snapshot and then the present one, as after a change of quote server."""
        subs = list(self.whole.values())
        sent = self._send_snapshot(subs, self._upto_ms - back_ms, FLAG_FAULT)
        return sent + self._send_snapshot(subs, self._upto_ms)


def bar_rows(bars: Bars) -> list[bytes]:
    """Return the BSON documents of bars, as subscribe_quote pushes them."""
    return [
        bson.encode(
            {
                "time": bson.Int64(bars.time[row]),
                "open": float(bars.open[row]),
                "high": float(bars.high[row]),
                "low": float(bars.low[row]),
                "close": float(bars.close[row]),
                "volume": bson.Int64(bars.volume[row]),
                "amount": float(bars.amount[row]),
                "settelementPrice": float(bars.settelementPrice[row]),
                "openInterest": bson.Int64(bars.openInterest[row]),
                "preClose": float(bars.preClose[row]),
                "suspendFlag": int(bars.suspendFlag[row]),
            }
        )
        for row in range(len(bars.time))
    ]
