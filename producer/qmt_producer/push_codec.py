"""Straight from a push's BSON bytes to ``t1``, without a Python dict per tick.

xtquant's BSON decoder is pure Python wherever its C module does not load, and then costs more than
everything else the producer does. All ticks of a push have one layout: the same keys, types and
lengths, so the same bytes at the same places but for the values. The layout is learnt from one
tick by walking its BSON; whatever matches it byte for byte is read by numpy in columns, and what
does not is left to the ordinary decoder.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from qmt_protocol.errors import CodecError, EncodeError
from qmt_protocol.numbers import scale_prices
from qmt_protocol.ticks import TICK_FIELDS, encode_ticks, exchange_ms

__all__ = ["Encoded", "PushCodec", "encode_one"]

Encoded = tuple[str, int, bytes | EncodeError]
"""Code, ms that orders the tick, ``t1`` with its flags set, or why there is none."""

_DOUBLE, _DOCUMENT, _ARRAY, _INT32, _INT64 = 0x01, 0x03, 0x04, 0x10, 0x12
_SIZES: Final = {_DOUBLE: 8, _INT32: 4, _INT64: 8}
_FORMATS: Final = {_DOUBLE: "<f8", _INT32: "<i4", _INT64: "<i8"}
_LEVELS: Final = 5
_MAX_LAYOUTS: Final = 64
_int32: Final = struct.Struct("<i").unpack_from
_encode: Final = msgspec.msgpack.Encoder().encode
_NAMES: Final = tuple(name for name, _, _ in TICK_FIELDS)
_KINDS: Final = {name: kind for name, kind, _ in TICK_FIELDS}
_PRICES: Final = [name for name, kind, _ in TICK_FIELDS if kind == "price"]
_BOOKS: Final = [name for name, kind, _ in TICK_FIELDS if kind == "prices"]
_TIME_LIMIT: Final = 2**48

DecodeBson = Callable[[bytes], Mapping[str, Any]]


@dataclass(frozen=True)
class _Layout:
    """Where the values of a tick lie, and every other byte of it."""

    dtype: np.dtype[Any]
    values: npt.NDArray[np.bool_]
    frame: npt.NDArray[np.uint8]

    def matching(self, ticks: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
        same: npt.NDArray[np.bool_] = ((ticks == self.frame) | self.values).all(axis=1)
        return same


class PushCodec:
    """Encodes whole pushes.

    Parameters
    ----------
    decode_bson
        The ordinary decoder, for what has no known layout.
    """

    def __init__(self, decode_bson: DecodeBson) -> None:
        self._decode_bson = decode_bson
        self._layouts: dict[int, _Layout | None] = {}

    def encode(self, push: bytes, received_ms: int) -> list[Encoded]:
        """Encode ``{code: tick}`` in BSON; the order is the push's own.

        Raises
        ------
        ValueError
            When the bytes are not a BSON document of ticks.
        """
        codes, spans = _split(push)
        return self._part(push, codes, spans, received_ms)

    def parts(
        self, push: bytes, received_ms: int, size: int, market_of: Callable[[str], str | None]
    ) -> Iterator[tuple[str, list[Encoded]]]:
        """Encode a push market by market, at most `size` ticks at a time, each in its own order.

        The first part can be published while the next is made. Codes without a market are left
        out.

        Raises
        ------
        ValueError
            As `encode` does, before the first part.
        """
        codes, spans = _split(push)
        by_market: dict[str, list[int]] = {}
        for number, code in enumerate(codes):
            market = market_of(code)
            if market is not None:
                by_market.setdefault(market, []).append(number)
        for market, members in by_market.items():
            for at in range(0, len(members), size):
                some = members[at : at + size]
                part_codes, part_places = [codes[n] for n in some], [spans[n] for n in some]
                yield market, self._part(push, part_codes, part_places, received_ms)

    def _part(
        self, push: bytes, codes: list[str], spans: list[tuple[int, int]], received_ms: int
    ) -> list[Encoded]:
        by_size: dict[int, list[int]] = {}
        for number, (start, end) in enumerate(spans):
            by_size.setdefault(end - start, []).append(number)
        done: list[Encoded | None] = [None] * len(codes)
        left: list[int] = []
        for size, members in by_size.items():
            layout = self._layout(size, push[spans[members[0]][0] : spans[members[0]][1]])
            if layout is None:
                left += members
                continue
            raw = b"".join([push[spans[n][0] : spans[n][1]] for n in members])
            same = layout.matching(np.frombuffer(raw, np.uint8).reshape(-1, size))
            rows = np.frombuffer(raw, layout.dtype)
            if not same.all():
                left += [n for n, one in zip(members, same.tolist(), strict=True) if not one]
                members = [n for n, one in zip(members, same.tolist(), strict=True) if one]
                rows = rows[same]
            for number, (at_ms, t1) in zip(members, _encode_rows(rows), strict=True):
                done[number] = (codes[number], at_ms, t1)
        for number in left:
            start, end = spans[number]
            done[number] = self._ordinary(codes[number], push[start:end], received_ms)
        for number, one in enumerate(done):
            if one is not None and one[1] <= 0:  # no time of its own
                start, end = spans[number]
                done[number] = self._ordinary(codes[number], push[start:end], received_ms)
        return [one for one in done if one is not None]

    def glance(self, push: bytes, received_ms: int) -> list[tuple[str, int]]:
        """Return code and ordering ms of each tick of a push.

        Raises
        ------
        ValueError
            As `encode` does.
        """
        codes, spans = _split(push)
        return [
            (code, self._ordinary(code, push[start:end], received_ms)[1])
            for code, (start, end) in zip(codes, spans, strict=True)
        ]

    def _ordinary(self, code: str, document: bytes, received_ms: int) -> Encoded:
        try:
            tick = self._decode_bson(document)
        except CodecError as error:
            return code, received_ms, EncodeError(error.message)
        return encode_one(code, tick, received_ms)

    def _layout(self, size: int, example: bytes) -> _Layout | None:
        known = self._layouts.get(size)
        if known is None or not known.matching(np.frombuffer(example, np.uint8)[None, :])[0]:
            if len(self._layouts) >= _MAX_LAYOUTS:
                self._layouts.clear()
            try:
                known = _learn(example)
            except (IndexError, ValueError, struct.error):  # damaged: the decoder will say how
                known = None
            self._layouts[size] = known
        return known


def encode_one(code: str, tick: Mapping[str, Any], received_ms: int) -> Encoded:
    """Encode one decoded tick."""
    (t1,) = encode_ticks([tick])
    at_ms, flags = exchange_ms(tick, received_ms)
    if flags and isinstance(t1, bytes):
        t1 = t1[:-1] + bytes([flags])
    return code, int(at_ms), t1  # BSON's own int is no plain one


def _split(push: bytes) -> tuple[list[str], list[tuple[int, int]]]:
    """Return the codes of a push and where their documents begin and end."""
    try:
        return _walk(push)
    except struct.error as error:
        raise ValueError("a push that ends too early") from error


def _walk(push: bytes) -> tuple[list[str], list[tuple[int, int]]]:
    if len(push) < 5 or _int32(push, 0)[0] != len(push) or push[-1] != 0:
        raise ValueError("not a BSON document")
    codes: list[str] = []
    spans: list[tuple[int, int]] = []
    at, last = 4, len(push) - 1
    while at < last:
        if push[at] != _DOCUMENT:
            raise ValueError("not a document of ticks")
        start = push.index(0, at + 1) + 1
        end = start + _int32(push, start)[0]
        if not start + 5 <= end <= last:
            raise ValueError("a tick reaches beyond its push")
        codes.append(push[at + 1 : start - 1].decode())
        spans.append((start, end))
        at = end
    return codes, spans


def _elements(document: bytes) -> Iterator[tuple[str, int, int]]:
    """Yield name, type and value offset of a BSON document's elements of fixed size."""
    at = 4
    while document[at] != 0:
        kind = document[at]
        value = document.index(0, at + 1) + 1
        yield document[at + 1 : value - 1].decode(), kind, value
        if kind == _ARRAY:
            at = value + _int32(document, value)[0]
        elif kind in _SIZES:
            at = value + _SIZES[kind]
        else:
            return


def _learn(document: bytes) -> _Layout | None:
    """Return the layout of a tick that has exactly the known fields, or ``None``."""
    spans: dict[str, tuple[Any, int]] = {}
    values = np.zeros(len(document), dtype=np.bool_)
    for name, kind, at in _elements(document):
        if kind == _ARRAY:
            found = _learn_levels(document[at:], at)
            if found is None:
                return None
            form, offsets = found
            for level, offset in enumerate(offsets):
                spans[f"{name}{level}"] = (form, offset)
                values[offset : offset + np.dtype(form).itemsize] = True
        elif kind in _SIZES:
            spans[name] = (_FORMATS[kind], at)
            values[at : at + _SIZES[kind]] = True
        else:
            return None
    expected = {
        one
        for name, kind in _KINDS.items()
        for one in ([f"{name}{n}" for n in range(_LEVELS)] if kind.endswith("s") else [name])
    }
    if set(spans) != expected or not _right_types(spans):
        return None
    dtype = np.dtype(
        {
            "names": list(spans),
            "formats": [form for form, _ in spans.values()],
            "offsets": [at for _, at in spans.values()],
            "itemsize": len(document),
        }
    )
    return _Layout(dtype, values, np.frombuffer(document, np.uint8))


def _right_types(spans: dict[str, tuple[Any, int]]) -> bool:
    """Whether every whole-number field is one; what differs goes the ordinary way."""
    for name, kind in _KINDS.items():
        needs_int = kind in ("time", "int", "ints")
        form = np.dtype(spans[f"{name}0" if kind.endswith("s") else name][0])
        if needs_int and form.kind != "i":
            return False
    return True


def _learn_levels(array: bytes, at: int) -> tuple[str, list[int]] | None:
    """Return format and offsets of an array of five equal numbers."""
    size = _int32(array, 0)[0]
    cells = list(_elements(array[:size]))
    kinds = {kind for _, kind, _ in cells}
    if len(cells) != _LEVELS or len(kinds) != 1 or not kinds <= set(_SIZES):
        return None
    return _FORMATS[kinds.pop()], [at + offset for _, _, offset in cells]


def _encode_rows(rows: npt.NDArray[Any]) -> list[tuple[int, bytes]]:
    """Encode ticks in columns; a time that cannot order a tick is returned as 0."""
    count = len(rows)
    flat = [rows[name] for name in _PRICES]
    flat += [rows[f"{name}{level}"] for name in _BOOKS for level in range(_LEVELS)]
    scaled = scale_prices(np.stack(flat, axis=1, dtype=np.float64).ravel())
    step = len(flat)
    columns: dict[str, Any] = {}
    for number, name in enumerate(_PRICES):
        columns[name] = scaled[number::step]
    for number, name in enumerate(_BOOKS):
        first = len(_PRICES) + number * _LEVELS
        columns[name] = [
            scaled[at + first : at + first + _LEVELS] for at in range(0, count * step, step)
        ]
    for name, kind in _KINDS.items():
        if kind == "ints":
            columns[name] = np.stack([rows[f"{name}{n}"] for n in range(_LEVELS)], axis=1).tolist()
        elif kind in ("int", "time"):
            columns[name] = rows[name].tolist()
        elif kind == "float":
            columns[name] = _whole_as_int(rows[name])
    nothing, no_flags = [None] * count, [0] * count
    wire = zip(*(columns[name] for name in _NAMES), nothing, no_flags, strict=True)
    times = [at_ms if 0 < at_ms < _TIME_LIMIT else 0 for at_ms in columns["time"]]
    return list(zip(times, map(_encode, wire), strict=True))


def _whole_as_int(column: npt.NDArray[Any]) -> list[int | float]:
    """Return numbers as `encode_number` writes them."""
    if column.dtype.kind == "i":
        return list(column.tolist())
    with np.errstate(invalid="ignore"):
        whole = (np.rint(column) == column) & (np.abs(column) < 2**53)
    if whole.all():
        return list(column.astype(np.int64).tolist())
    mixed = column.tolist()
    for at in np.flatnonzero(whole).tolist():
        mixed[at] = int(mixed[at])
    return list(mixed)
