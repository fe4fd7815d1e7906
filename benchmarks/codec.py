"""What one tick costs to encode and to decode, and what reading BSON costs before it."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import msgpack
import msgspec

from qmt_producer.push_codec import PushCodec
from qmt_protocol.errors import EncodeError
from qmt_protocol.ticks import TICK_FIELDS, decode_tick, encode_tick, encode_ticks
from qmt_simulator import bson as own_bson

from .measure import Context, Row, Section, Side, in_turns
from .sample import Pushes

__all__ = ["run"]

_NAMES: Final = tuple(name for name, _, _ in TICK_FIELDS)
_Work = Callable[[], Any]


def run(ctx: Context) -> Section:
    """Measure each codec over the ticks of one push, in turns."""
    pushes = Pushes(ctx.pick(full=0, quick=2000, smoke=200))
    push = pushes.push(10)
    ticks = list(pushes.documents(10).values())
    arrays = [_array(tick) for tick in ticks]
    wire = _whole(encode_ticks(ticks))
    unscaled = [msgpack.packb(row) for row in arrays]
    maps = [msgpack.packb(tick) for tick in ticks]
    if [msgpack.unpackb(one)[0] for one in wire] != [tick["time"] for tick in ticks]:
        raise RuntimeError("t1 does not read back")
    rows = msgspec.msgpack.Decoder()
    spec_pack, codec, xtbson = (
        msgspec.msgpack.Encoder().encode,
        PushCodec(own_bson.decode),
        _xtbson(),
    )
    encode: dict[str, _Work] = {
        "t1, a batch (ours)": lambda: encode_ticks(ticks),
        "t1, one by one (ours)": lambda: [encode_tick(tick) for tick in ticks],
        "msgpack package, array of floats": lambda: [msgpack.packb(_array(one)) for one in ticks],
        "msgpack package, map": lambda: [msgpack.packb(one) for one in ticks],
        "msgspec alone, array of floats": lambda: [spec_pack(_array(one)) for one in ticks],
    }
    decode: dict[str, _Work] = {
        "t1 to a Tick (ours)": lambda: [decode_tick(one, "600519.SH") for one in wire],
        "t1, msgspec alone": lambda: [rows.decode(one) for one in wire],
        "t1, msgpack package": lambda: [msgpack.unpackb(one) for one in wire],
        "msgpack package, array of floats": lambda: [msgpack.unpackb(one) for one in unscaled],
        "msgpack package, map": lambda: [msgpack.unpackb(one) for one in maps],
    }
    read: dict[str, _Work] = {
        "push to t1 by columns (ours)": lambda: codec.encode(push, 0),
        "xtquant's BSON in Python": lambda: xtbson.decode(push),
        "xtquant's BSON in Python, then t1": lambda: encode_ticks(
            list(xtbson.decode(push).values())
        ),
    }
    section = Section(
        "codec",
        "What does a tick cost to encode, to decode, and to read from the terminal's BSON?",
        references=("msgpack package, map", "xtquant's BSON in Python"),
        facts={"ticks per turn": len(ticks)}
        | {
            f"bytes, {name}": round(sum(map(len, of)) / len(of))
            for name, of in (("t1", wire), ("array of floats", unscaled), ("map", maps))
        },
        notes=[
            "BSON's C decoder comes with xtquant on Windows up to Python 3.11 and does not load "
            "here; `latency` gives the incumbent another C decoder in its place.",
        ],
    )
    repeats = ctx.pick(full=15, quick=3, smoke=1)
    for what, works in (("encode", encode), ("decode", decode), ("read a push", read)):
        sides = [Side(name, _timed(work, len(ticks), what)) for name, work in works.items()]
        for side, measured in in_turns(sides, repeats).items():
            section.rows.append(Row(what, side, "us/tick", measured[what], more_is_better=False))
    return section


def _timed(work: _Work, ticks: int, what: str) -> Callable[[], Mapping[str, float]]:
    def timed() -> Mapping[str, float]:
        began = time.perf_counter()
        work()
        return {what: (time.perf_counter() - began) * 1e6 / ticks}

    return timed


def _array(tick: dict[str, Any]) -> list[Any]:
    return [tick[name] for name in _NAMES]


def _whole(encoded: list[bytes | EncodeError]) -> list[bytes]:
    whole: list[bytes] = []
    for one in encoded:
        if isinstance(one, EncodeError):
            raise one
        whole.append(one)
    return whole


def _xtbson() -> Any:
    """Return xtquant's BSON class without running the package's own start."""
    spec = find_spec("xtquant")
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError("xtquant is not installed")
    package = ModuleType("xtquant")
    package.__path__ = [str(Path(next(iter(spec.submodule_search_locations))))]
    sys.modules.setdefault("xtquant", package)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from xtquant import xtbson
    return xtbson.BSON
