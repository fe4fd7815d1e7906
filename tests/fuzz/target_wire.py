"""What lies in Redis: ticks, bars, batches, heartbeats, events, progress, manifests."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import msgpack
import msgspec
from fuzz_changes import changed, changed_document, encoded
from fuzz_children import Report, in_children
from fuzz_run import ROOT, Target

from qmt_gateway.hub import notice_of
from qmt_gateway.wires import Row
from qmt_protocol.archive import ArchivedFile, Missing, encode_manifest
from qmt_protocol.archive import Manifest as ArchiveManifest
from qmt_protocol.archive import decode_manifest as decode_archive
from qmt_protocol.bars import BAR_FIELDS, decode_bar
from qmt_protocol.columns import bars_from, bars_table, rows_from, ticks_table
from qmt_protocol.cursor.gaps import gap_of_event
from qmt_protocol.cursor.position import Position
from qmt_protocol.decoding import decode_document
from qmt_protocol.demand import decode_refusal
from qmt_protocol.errors import QMTError, error_from_dict
from qmt_protocol.events import decode_event
from qmt_protocol.feed import decode_latest, decode_rows, readable, split_bar_batch, split_batch
from qmt_protocol.jobs import Manifest, Progress, decode_manifest, decode_progress
from qmt_protocol.status import Heartbeat, decode_heartbeat, encode_heartbeat
from qmt_protocol.ticks import TICK_FIELDS, decode_row, decode_tick
from qmt_reading.processes import Status

CODE: Final = "600519.SH"
ID: Final = "1763688600000-3"
NOW_MS: Final = 1_763_700_000_000

Judge = Callable[[bytes], None]


class Kind:
    """One kind of bytes: valid ones, and what reads them."""

    def __init__(
        self, valid: list[bytes], judge: Judge, documents: list[Any] | None = None
    ) -> None:
        self.valid = valid
        self.judge = judge
        self.documents = documents


class WireCases:
    """See `fuzz_children.Cases`."""

    def __init__(self) -> None:
        vectors = json.loads((ROOT / "docs/wire/vectors.json").read_text("utf-8"))["vectors"]
        self._t1 = [bytes.fromhex(one["bytes"]) for one in vectors if one["schema"] == "t1"]
        self._k1 = [bytes.fromhex(one["bytes"]) for one in vectors if one["schema"] == "k1"]
        self._kinds = list(self._make_kinds())
        self._others = [one for kind in self._kinds for one in kind.valid]
        self._kind = self._kinds[0]

    def input(self, chance: random.Random) -> bytes:
        """Return changed bytes of some kind."""
        self._kind = kind = chance.choice(self._kinds)
        if kind.documents is not None and chance.random() < 0.6:
            return encoded(changed_document(chance, chance.choice(kind.documents)))
        others = kind.valid if chance.random() < 0.8 else self._others
        return changed(chance, chance.choice(kind.valid), others)

    def judge(self, data: bytes, chance: random.Random) -> None:
        """Read it."""
        self._kind.judge(data)

    def _make_kinds(self) -> Iterator[Kind]:
        yield Kind(self._t1, judge_tick)
        yield Kind(self._k1, judge_bar)
        ticks = [[CODE, ID, msgpack.unpackb(one)] for one in self._t1]
        yield Kind([msgpack.packb(ticks[:2]), msgpack.packb(ticks[:7]), b"\x90"], judge_batch)
        bars = [[CODE, "1m", ID, msgpack.unpackb(one)] for one in self._k1]
        yield Kind([msgpack.packb(bars[:1]), msgpack.packb(bars[:5])], judge_bar_batch)
        yield Kind([msgpack.packb(one[1:]) for one in ticks], judge_latest)
        for judge, documents in _documents():
            yield Kind([json.dumps(one).encode() for one in documents], judge, documents)


def _documents() -> Iterator[tuple[Judge, list[Any]]]:
    beat = Heartbeat(
        role="producer",
        host="WIN",
        pid=7,
        started_ms=NOW_MS,
        markets=["SH", "SZ"],
        queues=["qmt-query"],
        terminal={
            "state": "ok",
            "reason": "",
            "since_ms": NOW_MS,
            "trading_day": {"day": 20251121},
        },
        rates={"ticks_per_s": 3.5},
        figures={"published": 7, "clocks": {"redis_ms": 1.5}, "latency_ms": {"p50": 1}},
    )
    yield judge_heartbeat, [json.loads(encode_heartbeat(beat))]
    gap = {"kind": "gap", "at_ms": NOW_MS, "reason": "ring full", "market": "SH"}
    yield (
        judge_event,
        [
            {**gap, "codes": {CODE: [NOW_MS, NOW_MS + 9, 3], f"1m|{CODE}": [1, 2, 3]}},
            {**gap, "from_ms": NOW_MS, "to_ms": NOW_MS + 1_000, "ticks": 4},
            {"kind": "late", "market": "SH", "ticks": 1, "at_ms": NOW_MS},
        ],
    )
    error = {
        "error": "instrument-not-found",
        "message": "No such.",
        "hint": "Check it.",
        "data": {"codes": [CODE], "last_seen_ms": NOW_MS},
    }
    yield (
        judge_progress,
        [
            Progress(state="running", finished=1, total=2, message="x").model_dump(mode="json"),
            Progress(state="failed", error=error).model_dump(mode="json"),
        ],
    )
    meta = {"simulated": True, "source": {"edition": "x"}, "absent": {CODE: "no"}, "market_ms": 5}
    made: list[tuple[str, Any]] = [
        ("full_tick", {CODE: {"time": 1, "lastPrice": 1.5, "askPrice": [1.0]}}),
        ("sector_stocks", [CODE, "000001.SZ"]),
        ("instrument_detail", {CODE: {"InstrumentName": "茅台", "PriceTick": 0.01}, "1.SH": None}),
        ("download", {CODE: {"rows": 3, "first_ms": 1, "last_ms": 2, "days": 1}}),
    ]
    table = Manifest(job="history", kind="table", chunks=2, rows=9, meta=meta)
    documents = [
        Manifest(job=name, kind="document", document=one, meta=meta).model_dump(mode="json")
        for name, one in made
    ]
    yield judge_manifest, [table.model_dump(mode="json"), *documents]
    yield judge_refusal, [{"reason": "All 50 single subscriptions are in use.", "at_ms": NOW_MS}]
    yield judge_position, [{"SH": ["epoch", "1-2"], "codes": {CODE: ID}, "seen": {CODE: ID}}]
    file = ArchivedFile(
        path="ticks/a.parquet",
        kind="tick",
        market="SH",
        day=20251121,
        rows=1,
        size_bytes=2,
        first_ms=3,
        last_ms=4,
    )
    missing = Missing(market="SH", from_ms=1, to_ms=2, codes=[CODE], reason="x")
    archive = ArchiveManifest(files=[file], missing=[missing])
    yield judge_archive, [json.loads(encode_manifest(archive))]


# -- msgpack --------------------------------------------------------------------------------------


def _unpacked(data: bytes, errors: str = "strict") -> Any:
    def other(code: int, content: bytes) -> tuple[int, bytes]:
        return code, content

    return msgpack.unpackb(
        data,
        strict_map_key=False,
        unicode_errors=errors,
        ext_hook=other,
        object_pairs_hook=_mapping,
    )


def _mapping(pairs: list[tuple[Any, Any]]) -> Any:
    """Return a map, or what it consists of where a key is one that Python's cannot have."""
    try:
        return dict(pairs)
    except TypeError:
        return pairs


def _expected(fields: tuple[tuple[str, str, str], ...], row: list[Any]) -> dict[str, Any]:
    """Read an array by docs/wire.md: integer prices are scaled, floats are the price itself."""
    found: dict[str, Any] = {}
    for (name, kind, _), value in zip(fields, row, strict=False):
        if value is None:
            continue
        if kind == "price":
            found[name] = value / 10_000 if isinstance(value, int) else value
        elif kind == "prices":
            found[name] = [one / 10_000 if isinstance(one, int) else one for one in value]
        else:
            found[name] = float(value) if kind == "float" else value
    return {**found, **(row[len(fields)] or {})}


def judge_tick(data: bytes) -> None:
    tick = decode_tick(data, CODE, ID)
    row = _unpacked(data)
    assert repr(dict(tick)) == repr(_expected(TICK_FIELDS, row))
    assert int(tick.flags) == row[23] & 0x7F
    assert isinstance(tick.phase, str)
    assert 0 < tick.time_ms < 10**14
    encoded = Row(CODE, "", ID, data)
    assert json.loads(encoded.as_dict()).keys() == tick.keys()
    assert _unpacked(encoded.packed())[:2] == [CODE, ID]
    (back,) = rows_from(ticks_table([(CODE, ID, decode_row(data, CODE))]).to_batches()[0])
    assert repr(list(back[2])) == repr(list(decode_row(data, CODE)))


def judge_bar(data: bytes) -> None:
    bar = decode_bar(data, CODE, "1m", ID)
    assert repr(dict(bar)) == repr(_expected(BAR_FIELDS, _unpacked(data)))
    assert json.loads(Row(CODE, "1m", ID, data).as_dict()).keys() == bar.keys()
    (back,) = bars_from(bars_table([bar]).to_batches()[0])
    assert repr(dict(back)) == repr(dict(bar))


def judge_batch(data: bytes) -> None:
    rows, strange = split_batch(data, "SH")
    told = _unpacked(data, "replace")
    assert len(rows) + len(strange) == len(told)
    decoded, unreadable = decode_rows(rows)
    good, bad = readable(rows)
    assert len(decoded) == len(good) == len(rows) - len(unreadable)
    assert len(bad) == len(unreadable)
    left = iter(told)
    for code, entry_id, row in decoded:  # in their order, and no other
        assert any(repr([code, entry_id, list(row)]) == repr(one) for one in left)
    table = ticks_table(decoded)
    assert len(table) == len(decoded)


def judge_bar_batch(data: bytes) -> None:
    rows, strange = split_bar_batch(data, "SH")
    assert len(rows) + len(strange) == len(_unpacked(data, "replace"))
    good, bad = readable(rows)
    assert len(good) + len(bad) == len(rows)
    bars_table([decode_bar(k1, code, period, at) for code, period, at, k1 in good])


def judge_latest(data: bytes) -> None:
    tick = decode_latest(data, CODE)
    entry_id, row = _unpacked(data)
    assert tick.id == entry_id
    assert repr(dict(tick)) == repr(_expected(TICK_FIELDS, row))


# -- JSON -----------------------------------------------------------------------------------------


def _agrees(ours: Any, told: Any) -> bool:
    """Whether a value is the one that the json module reads, as far as both have it."""
    if isinstance(ours, dict) and isinstance(told, dict):
        return all(key in told and _agrees(value, told[key]) for key, value in ours.items())
    if isinstance(ours, list) and isinstance(told, list):
        return len(ours) == len(told) and all(map(_agrees, ours, told))
    if isinstance(ours, float) and isinstance(told, (int, float)):
        return ours == float(told) or math.isnan(ours)
    return bool(ours == told)


def _encodes(value: Any) -> Any:
    return json.loads(msgspec.json.encode(value))


def judge_heartbeat(data: bytes) -> None:
    beat = decode_heartbeat(data)
    told = json.loads(data)
    assert _agrees(json.loads(encode_heartbeat(beat)), told)
    status = Status.from_redis(
        [(beat.member.encode(), data)], {beat.member.encode(): NOW_MS}, NOW_MS
    )
    again = Status.from_json(msgspec.json.encode(status.to_dict()), "x")
    assert len(again.processes) + len(again.unreadable) == 1
    for call in (
        lambda: status.require_worker("qmt-query"),
        lambda: status.require_producer(["SH"]),
    ):
        try:
            call()
        except QMTError as error:
            assert error.hint  # noqa: PT017


def judge_event(data: bytes) -> None:
    event = decode_event(data, ID)
    assert _agrees(event, json.loads(data))
    gap = gap_of_event(event)
    if gap is not None:
        _encodes(notice_of(gap, "SH"))


def judge_progress(data: bytes) -> None:
    progress = decode_progress(data, "job x")
    assert _agrees(progress.model_dump(mode="json"), {**_defaults(Progress), **json.loads(data)})
    _encodes(progress.model_dump(mode="json"))
    error = error_from_dict(progress.error or {})
    assert _encodes(error.to_dict())["message"] == error.message
    assert str(error)


def judge_manifest(data: bytes) -> None:
    manifest = decode_manifest(data, "job x")
    assert _agrees(manifest.model_dump(mode="python"), {**_defaults(Manifest), **json.loads(data)})
    _encodes(manifest.model_dump(mode="python"))


def _defaults(kind: Any) -> dict[str, Any]:
    return {
        name: field.get_default(call_default_factory=True)
        for name, field in kind.model_fields.items()
        if not field.is_required()
    }


def judge_refusal(data: bytes) -> None:
    assert len(decode_refusal(data).reason) <= 300


def judge_position(data: bytes) -> None:
    document: dict[str, Any] = decode_document(data, dict[str, Any], "A position")
    place = Position.parse(document)
    assert Position.parse(place.to_dict()) == place


def judge_archive(data: bytes) -> None:
    manifest = decode_archive(data)
    assert decode_archive(encode_manifest(manifest)) == manifest


def make_cases() -> WireCases:
    """Return the cases, in a child."""
    return WireCases()


def run(seed: int, count: int, keep: Path | None = None) -> Report:
    """Run the target."""
    return in_children("wire", seed, count, keep)


TARGET: Final = Target(
    "wire",
    "t1, k1, b1, c1, latest, heartbeats, events, progress, manifests of jobs and archive, refusals "
    "and positions, as they lie in Redis",
    1_000_000,
    8_000,
    run,
)
