"""A simulated day captured live, archived, compacted, replayed at ``max``, and compared.

``scripts/replay-proof`` does so with a whole day of 500 codes. Three witnesses must agree field by
field: the simulator's push log, the archive as DuckDB reads it through the manifest, and the
replay's streams as the msgpack package decodes them. What the replay publishes must also be, byte
by byte and id by id, what was published live.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import msgpack
import numpy as np
import numpy.typing as npt

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from recorded_day import DAY, MARKETS, RecordedDay, by_code, recorded_day  # noqa: E402

# Place in t1, as docs/wire.md says; not taken from the code under test.
PLAIN = {
    **{"time": 0, "lastPrice": 1, "open": 2, "high": 3, "low": 4, "lastClose": 5, "amount": 6},
    **{"volume": 7, "pvolume": 8, "stockStatus": 9, "openInt": 10, "transactionNum": 11},
    **{"lastSettlementPrice": 12, "settlementPrice": 13, "pe": 14},
    **{"volRatio": 19, "speed1Min": 20, "speed5Min": 21},
}
BOOKS = {"askPrice": 15, "bidPrice": 16, "askVol": 17, "bidVol": 18}
FIELDS = {**PLAIN, **BOOKS}
EXTRA, FLAGS = 22, 23
PRICES = {
    *("lastPrice", "open", "high", "low", "lastClose"),
    *("lastSettlementPrice", "settlementPrice", "askPrice", "bidPrice"),
}
LEVELS = range(1, 6)
TO = "proof"
BEGIN = "08:30:00"
"""So long before the first tick that all processes run by then."""
LASTING_S = 6.6 * 3600

Columns = dict[str, npt.NDArray[Any]]
Entries = list[tuple[bytes, dict[bytes, bytes]]]


def prove(folder: Path, codes: int, speed: float) -> tuple[dict[str, Any], Counter[str]]:
    """Capture a whole day, archive, compact, replay and compare.

    Returns
    -------
    tuple
        Figures, and what differs in how many ticks.
    """
    with recorded_day(folder, codes, BEGIN, LASTING_S, speed, flush_s=10) as day:
        day.replay(TO)
        began = time.monotonic()
        differences = compare(day)
        seconds = {**day.seconds, "compare": time.monotonic() - began}
        counts = np.unique(day.log["code"], return_counts=True)[1]
        first_ms, last_ms = int(day.log["time"].min()), int(day.log["time"].max())
        return {
            "day": DAY,
            "speed": speed,
            "codes": len(counts),
            "ticks": len(day.log),
            "ticks_per_code": [int(counts.min()), int(counts.max())],
            "market_s": (last_ms - first_ms) // 1000,
            "archive_bytes": sum(one.stat().st_size for one in day.archive.rglob("*.parquet")),
            "seconds": {name: round(value, 1) for name, value in seconds.items()},
        }, differences


def compare(day: RecordedDay) -> Counter[str]:
    """Return which comparisons failed, and for how many ticks."""
    differences: Counter[str] = Counter()
    fed = _fed(day)
    archived = dict(_archived(day))
    for code, logged in by_code(day.log):
        stored = archived.pop(code, {})
        live, again = (_entries(day, prefix, code) for prefix in ("qmt", TO))
        live = [one for one in live if int(one[0].partition(b"-")[0]) >= logged["time"][0]]
        ids = [entry_id.decode() for entry_id, _ in again]
        differences += _fields_differ(f"archive {code}", logged, stored)
        differences += _fields_differ(f"streams {code}", logged, _decoded(again))
        if again != live:
            differences[f"{code}: ids and bytes, live and replay"] += abs(
                len(again) - len(live)
            ) + sum(a != b for a, b in zip(again, live, strict=False))
        if stored and stored["id"].tolist() != ids:
            differences[f"{code}: ids, archive and replay"] += 1
        if [int(one.partition("-")[0]) for one in ids] != logged["time"].tolist():
            differences[f"{code}: ids and times"] += 1
        if fed.pop(code, []) != ids:
            differences[f"{code}: the replay's feed and its stream"] += 1
    for code in (*archived, *fed):
        differences[f"{code}: was never pushed"] += 1
    return differences


def _entries(day: RecordedDay, prefix: str, code: str) -> Entries:
    market = code.rpartition(".")[2]
    entries: Any = day.streams.xrange(f"{{{prefix}:{market}}}:tick:{code}")
    return list(entries)


def _fed(day: RecordedDay) -> dict[str, list[str]]:
    fed: dict[str, list[str]] = defaultdict(list)
    for market in MARKETS:
        after = b"-"
        while True:
            entries: Any = day.streams.xrange(f"{{{TO}:{market}}}:feed", after, count=1000)
            for _, fields in entries:
                for code, entry_id, _ in msgpack.unpackb(fields.get(b"b1", b"\x90")):
                    fed[code].append(entry_id)
            if not entries:
                break
            after = b"(" + entries[-1][0]
    return fed


def _decoded(entries: Entries) -> Columns:
    """Decode a stream's ticks with the msgpack package alone."""
    rows = [msgpack.unpackb(fields[b"t1"]) for _, fields in entries]
    columns = {}
    for name, at in FIELDS.items():
        values = [row[at] for row in rows]
        if name in PRICES:
            values = [_yuan(one) for one in values]
        columns[name] = np.array(values, np.float64)
    columns["plain"] = np.array([row[EXTRA] is None and row[FLAGS] == 0 for row in rows])
    return columns


def _yuan(value: Any) -> Any:
    if isinstance(value, list):
        return [_yuan(one) for one in value]
    return value / 10_000 if isinstance(value, int) else value


def _archived(day: RecordedDay) -> Iterator[tuple[str, Columns]]:
    """Yield each code's ticks, by DuckDB."""
    named = json.loads((day.archive / "manifest.json").read_text("utf-8"))["files"]
    files = [one for one in named if one["kind"] == "tick" and one["day"] == DAY]
    assert all(one["final"] for one in files)
    plain = [f'"{name}"::DOUBLE AS "{name}"' for name in PLAIN if name != "time"]
    books = [f'"{name}{level}"::DOUBLE AS "{name}{level}"' for name in BOOKS for level in LEVELS]
    query = f"""
        SELECT code, id_ms || '-' || id_seq AS id, epoch_ms(time)::DOUBLE AS time,
               extra IS NULL AND odd IS NULL AND flags = 0 AS plain, {", ".join(plain + books)}
        FROM read_parquet($files, hive_partitioning=false) ORDER BY code, id_ms, id_seq"""
    with duckdb.connect() as db:
        paths = [str(day.archive / one["path"]) for one in files]
        found: dict[str, Any] = db.execute(query, {"files": paths}).fetchnumpy()
    columns = {name: _filled(column) for name, column in found.items()}
    for name in BOOKS:
        levels = [columns.pop(f"{name}{level}") for level in LEVELS]
        columns[name] = np.stack(levels, axis=1)
    codes, starts = np.unique(columns.pop("code").astype(str), return_index=True)
    for code, begin, end in zip(codes, starts, [*starts[1:], len(columns["id"])], strict=True):
        yield str(code), {name: column[begin:end] for name, column in columns.items()}


def _filled(column: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return nulls as NaN, which nothing pushed is equal to."""
    if isinstance(column, np.ma.MaskedArray):
        return column.filled(np.nan) if column.dtype.kind == "f" else column.filled()
    return column


def _fields_differ(what: str, logged: npt.NDArray[Any], stored: Columns) -> Counter[str]:
    count = len(stored["time"]) if stored else 0
    if count != len(logged):
        return Counter({f"{what}: pushed {len(logged)}, stored {count}": abs(count - len(logged))})
    found = Counter({f"{what}: extra keys or flags": int((~stored["plain"]).sum())})
    for name in FIELDS:
        within = 1.1e-10 if name in PRICES else 0.0
        same = np.abs(stored[name] - logged[name]) <= within
        found[f"{what}: {name}"] = int((~same).sum())
    return +found


def main() -> int:
    """Prove a whole day and print its figures; return 1 where anything differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--codes", type=int, default=500)
    parser.add_argument("--speed", type=float, default=80, help="market seconds per second")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        figures, differences = prove(Path(work), options.codes, options.speed)
    for what, count in differences.most_common(20):
        print(f"{what}: {count}", file=sys.stderr)
    print(json.dumps({**figures, "differences": differences.total()}))
    return 1 if differences or figures["codes"] < options.codes else 0


if __name__ == "__main__":
    sys.exit(main())
