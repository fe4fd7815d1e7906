"""What the account compares: the simulator's push log, raw Redis by msgpack, readers' files.

Nothing here uses the code under test: positions and kinds in ``t1`` are written out as docs/wire
has them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgpack
import numpy as np
import numpy.typing as npt
import redis
from crash_accounting import CountedGap, Pushed, Stored, WindowGap

from qmt_simulator.oracle import read_push_log

__all__ = [
    "fed_ids",
    "gaps_of",
    "latest_ids",
    "pushed_by_code",
    "pushed_view",
    "read_notes",
    "reader_view",
    "stored_by_code",
    "stored_ids",
    "tick_content",
]

PRICES: Final = (
    *("lastPrice", "open", "high", "low", "lastClose"),
    *("lastSettlementPrice", "settlementPrice"),
)
NUMBERS: Final = (
    *("time", "amount", "volume", "pvolume", "stockStatus", "openInt", "transactionNum"),
    *("pe", "volRatio", "speed1Min", "speed5Min"),
)
DEPTH_PRICES: Final = ("askPrice", "bidPrice")
DEPTH_VOLUMES: Final = ("askVol", "bidVol")
PLACE: Final = {
    name: store
    for store, name in enumerate(
        (
            *("time", "lastPrice", "open", "high", "low", "lastClose", "amount", "volume"),
            *("pvolume", "stockStatus", "openInt", "transactionNum", "lastSettlementPrice"),
            *("settlementPrice", "pe", "askPrice", "bidPrice", "askVol", "bidVol"),
            *("volRatio", "speed1Min", "speed5Min", "extra", "flags"),
        )
    )
}
_SCALE: Final = 10_000
_TOLERANCE: Final = 1.1e-10 * _SCALE
_CHUNK: Final = 400
_REJECTED: Final = re.compile(r"(\S+\.\w+) (\d+)-\d+: ")

Floats = npt.NDArray[np.float64]


def _contents(columns: Sequence[Floats]) -> list[bytes]:
    """Return one comparable value per tick: all its numbers, prices in 1/10000 yuan."""
    matrix = np.column_stack(columns)
    matrix += 0.0  # negative zero is zero
    return [row.tobytes() for row in matrix]


def _rounded(prices: Floats) -> Floats:
    whole = np.rint(prices)
    near = np.abs(prices - whole) <= _TOLERANCE
    return np.where(near, whole, prices)


def pushed_by_code(logs: Iterable[Path]) -> dict[str, list[Pushed]]:
    """Return what terminals pushed, per code in the order pushed, the logs one behind another."""
    found: dict[str, list[Pushed]] = {}
    for number, path in enumerate(logs):
        log = read_push_log(path)
        columns = [np.asarray(log[name], dtype=np.float64) for name in NUMBERS]
        columns += [_rounded(log[name] * _SCALE) for name in PRICES]
        columns += [_rounded(log[name] * _SCALE) for name in DEPTH_PRICES]
        columns += [np.asarray(log[name], dtype=np.float64) for name in DEPTH_VOLUMES]
        contents = _contents(columns)
        rows = zip(
            log["code"].tolist(),
            contents,
            log["time"].tolist(),
            log["wall_ms"].tolist(),
            (log["subscription"] + 1_000_000 * number).tolist(),
            strict=True,
        )
        for code, *tick in rows:
            found.setdefault(code.decode(), []).append(Pushed(*tick))
    return found


def _scaled(values: list[Any]) -> Floats:
    if all(type(value) is int for value in values):
        return np.array(values, dtype=np.float64)
    return np.array([value if type(value) is int else float(value) * _SCALE for value in values])


def _stored(entries: list[tuple[bytes, dict[bytes, bytes]]]) -> list[Stored]:
    rows = [msgpack.unpackb(fields[b"t1"]) for _, fields in entries]

    def column(name: str) -> list[Any]:
        return [row[PLACE[name]] for row in rows]

    columns: list[Floats] = [np.array(column(name), dtype=np.float64) for name in NUMBERS]
    columns += [_scaled(column(name)) for name in PRICES]
    for name in DEPTH_PRICES:
        flat = [value for levels in column(name) for value in levels]
        columns.append(_scaled(flat).reshape(-1, 5))
    columns += [np.array(column(name), dtype=np.float64) for name in DEPTH_VOLUMES]
    return [
        Stored(content, int(row[0] or 0), int(entry_id.split(b"-")[0]), row[PLACE["flags"]])
        for content, row, (entry_id, _) in zip(_contents(columns), rows, entries, strict=True)
    ]


def stored_by_code(streams: redis.Redis) -> dict[str, list[Stored]]:
    """Return what the tick streams hold, per code in stored order."""
    return {code: _stored(entries) for code, entries in _streams(streams, "{qmt:*}:tick:*")}


def fed_ids(streams: redis.Redis) -> dict[str, list[str]]:
    """Return the ids of ticks in the feeds, per code in the order published."""
    found: dict[str, list[str]] = {}
    for key in streams.scan_iter(match="{qmt:*}:feed", count=2000):
        for _, fields in streams.xrange(key):
            for code, entry_id, _ in msgpack.unpackb(fields.get(b"b1", b"\x90")):
                found.setdefault(code, []).append(entry_id)
    return found


def stored_ids(streams: redis.Redis) -> dict[str, list[tuple[str, int]]]:
    """Return the ids in the tick streams with the ticks' flags, per code."""
    return {
        code: [(one.decode(), msgpack.unpackb(fields[b"t1"])[-1]) for one, fields in entries]
        for code, entries in _streams(streams, "{qmt:*}:tick:*")
    }


def latest_ids(streams: redis.Redis) -> dict[str, str]:
    """Return the id that `latest` has of each code."""
    return {
        code.decode(): msgpack.unpackb(value)[0]
        for key in streams.scan_iter(match="{qmt:*}:latest", count=2000)
        for code, value in streams.hgetall(key).items()
    }


def _streams(streams: redis.Redis, match: str) -> Iterator[tuple[str, list[Any]]]:
    """Yield the codes of streams with all their entries; empty ones are left out."""
    keys = list(streams.scan_iter(match=match, count=2000))
    for start in range(0, len(keys), _CHUNK):
        some = keys[start : start + _CHUNK]
        pipe = streams.pipeline(transaction=False)
        for key in some:
            pipe.xrange(key)
        for key, entries in zip(some, pipe.execute(), strict=True):
            if entries:
                yield key.decode().split(":tick:", 1)[1], entries


def reader_view(streams: redis.Redis, markets: Iterable[str]) -> dict[str, list[str]]:
    """Return what markets' tick streams hold, each tick as a reader writes it down."""
    return {
        code: [_row_content(msgpack.unpackb(fields[b"t1"])) for _, fields in entries]
        for market in markets
        for code, entries in _streams(streams, f"{{qmt:{market}}}:tick:*")
    }


def pushed_view(log: Path, markets: Iterable[str]) -> dict[str, list[str]]:
    """Return what a terminal pushed of markets, each tick once, as a reader writes it down."""
    found: dict[str, dict[str, None]] = {}
    wanted = set(markets)
    for tick in read_push_log(log):
        code = tick["code"].decode()
        if code.rpartition(".")[2] in wanted:
            found.setdefault(code, {})[tick_content(tick)] = None
    return {code: list(contents) for code, contents in found.items()}


def read_notes(file: Path) -> tuple[dict[str, list[str]], list[dict[str, Any]]]:
    """Return what a reader wrote: contents by code, and the gaps it was told."""
    ticks: dict[str, list[str]] = {}
    gaps: list[dict[str, Any]] = []
    for line in file.read_text("utf-8").splitlines():
        kind, _, rest = line.partition(" ")
        if kind == "T":
            code, content = rest.split(" ", 1)
            ticks.setdefault(code, []).append(content)
        elif kind == "G":
            gaps.append(json.loads(rest))
    return ticks, gaps


def tick_content(tick: Any) -> str:
    """Return what identifies a tick in a reader's file: of a dict with xtquant's names."""
    ask, bid = tick["askPrice"], tick["bidPrice"]
    last, first_ask, first_bid = tick["lastPrice"], ask[0], bid[0]
    numbers = (tick["volume"], tick["amount"], last, first_ask, first_bid)
    return " ".join([str(int(tick["time"])), *map(_shown, numbers)])


def _row_content(row: Sequence[Any]) -> str:
    prices = (row[PLACE["lastPrice"]], row[PLACE["askPrice"]][0], row[PLACE["bidPrice"]][0])
    numbers = (row[PLACE["volume"]], row[PLACE["amount"]], *map(_yuan, prices))
    return " ".join([str(row[0]), *map(_shown, numbers)])


def _yuan(price: Any) -> float:
    return price / _SCALE if type(price) is int else float(price)


def _shown(value: Any) -> str:
    return f"{value + 0.0:.4f}"


def gaps_of(events: Iterable[dict[str, Any]]) -> list[CountedGap | WindowGap]:
    """Return the gaps among events."""
    found: list[CountedGap | WindowGap] = []
    for event in events:
        if event["kind"] != "gap":
            continue
        if "codes" in event:
            found.append(CountedGap({c: (t[0], t[1], t[2]) for c, t in event["codes"].items()}))
        elif "ticks" in event:
            found.append(_rejected(event["reason"]))
        elif "bars" not in event:
            markets = event.get("markets") or [event["market"]]
            found.append(WindowGap(frozenset(markets), event["from_ms"], event["to_ms"]))
    return found


def _rejected(words: str) -> CountedGap:
    """Return what the words on refused ticks name: each by its code and id."""
    codes: dict[str, tuple[int, int, int]] = {}
    for code, text in _REJECTED.findall(words):
        first_ms, last_ms, ticks = codes.get(code, (int(text), int(text), 0))
        codes[code] = min(first_ms, int(text)), max(last_ms, int(text)), ticks + 1
    return CountedGap(codes)
