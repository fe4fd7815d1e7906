"""How the hub's rows and messages become WebSocket frames; each frame is made once for all."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Protocol, overload

import msgspec

from qmt_protocol.bars import decode_bar
from qmt_protocol.cursor.batch import BarRow
from qmt_protocol.cursor.batch import Row as TickRow
from qmt_protocol.errors import CodecError
from qmt_protocol.keys import series_of
from qmt_protocol.live import CloseCode, FromGateway, GapNotice, Live, Skipped, Subscribed
from qmt_protocol.ticks import TickFlag, decode_tick

__all__ = [
    "FRAGMENT_BYTES",
    "JSON",
    "MSGPACK",
    "QUOTE",
    "REALTIME",
    "REALTIME_NOTICES",
    "Row",
    "Rows",
    "Wire",
    "rows_of",
]

FRAGMENT_BYTES: Final = 65_536
"""Size of all fragments of a long message but the last."""
_FRAGMENT: Final = FRAGMENT_BYTES - 4
_END: Final = 0x80
_MORE, _TEXT, _BINARY = 0x0, 0x1, 0x2
"""Opcodes."""
_LATE: Final = int(TickFlag.LATE)
_json: Final = msgspec.json.Encoder().encode
_pack: Final = msgspec.msgpack.Encoder().encode
_NONE: Final = b"\x90"
_Marks = Mapping[str, tuple[str, str]]


class Row:
    """One tick or bar on its way to the clients; each of its encodings is made once."""

    __slots__ = ("_dict", "_packed", "code", "data", "id", "key", "period")

    def __init__(self, code: str, period: str, entry_id: str, data: Any) -> None:
        self.code = code
        self.period = period
        self.id = entry_id
        self.data = data
        self.key = series_of(period, code) if period else code
        self._packed = b""
        self._dict: bytes | None = None

    @property
    def flags(self) -> int:
        """The tick's offsets: the last byte of its encoding."""
        return int(memoryview(self.data)[-1])

    @property
    def at_ms(self) -> int:
        """Exchange time."""
        return int(self.id.partition("-")[0])

    def packed(self) -> bytes:
        """Return ``[code, id, t1]`` or ``[code, period, id, k1]`` as msgpack."""
        if not self._packed:
            if self.period:
                head = b"\x94" + _pack(self.code) + _pack(self.period)
            else:
                head = b"\x93" + _pack(self.code)
            self._packed = b"".join((head, _pack(self.id), bytes(self.data)))
        return self._packed

    def as_dict(self) -> bytes:
        """Return xtquant's dict as JSON; empty where the bytes cannot be read."""
        if self._dict is None:
            try:
                if self.period:
                    self._dict = _json(decode_bar(bytes(self.data)))
                else:
                    self._dict = _json(decode_tick(bytes(self.data), self.code))
            except CodecError:
                self._dict = b""
        return self._dict


class Rows(Sequence[Row]):
    """A batch's ticks as rows, made only if somebody asks: whole markets pass as bytes."""

    def __init__(self, ticks: Sequence[TickRow]) -> None:
        self._ticks = ticks
        self._made: list[Row] | None = None

    def made(self) -> list[Row]:
        """Return all of them."""
        if self._made is None:
            self._made = rows_of(self._ticks)
        return self._made

    def newest(self) -> dict[str, Row | TickRow]:
        """Return the newest tick of each code, as far as made; late ones are never the newest."""
        ticks = self._ticks
        if self._made is None:
            return {tick[0]: tick for tick in ticks if not memoryview(tick[2])[-1] & _LATE}
        return {row.code: row for row in self._made if not memoryview(row.data)[-1] & _LATE}

    def __len__(self) -> int:
        return len(self._ticks)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.made())

    @overload
    def __getitem__(self, at: int) -> Row: ...

    @overload
    def __getitem__(self, at: slice) -> Sequence[Row]: ...

    def __getitem__(self, at: int | slice) -> Row | Sequence[Row]:
        return self.made()[at]


def rows_of(ticks: Sequence[TickRow], bars: Sequence[BarRow] = ()) -> list[Row]:
    """Return a batch's rows."""
    made = [Row(code, "", entry_id, t1) for code, entry_id, t1 in ticks]
    made += [Row(code, period, entry_id, k1) for code, period, entry_id, k1 in bars]
    return made


def _framed(opcode: int, payload: bytes) -> bytes:
    """Return a message as one frame, or as fragments of `FRAGMENT_BYTES`, the last one shorter.

    Between fragments a connection may stop: a ping or a close may stand there.
    """
    if len(payload) <= _FRAGMENT:
        return _head(opcode | _END, len(payload)) + payload
    parts: list[bytes] = []
    for start in range(0, len(payload), _FRAGMENT):
        part = payload[start : start + _FRAGMENT]
        end = _END if start + _FRAGMENT >= len(payload) else 0
        parts += (_head((opcode if not start else _MORE) | end, len(part)), part)
    return b"".join(parts)


def _head(first: int, size: int) -> bytes:
    return struct.pack("!BB", first, size) if size < 126 else struct.pack("!BBH", first, 126, size)


class Wire(Protocol):
    """One way to write frames."""

    format: str
    """Subscribers of the same format share their frames."""
    close_codes: Mapping[int, int]
    """Close codes that it has others for."""

    def live(
        self, kind: str, offsets: _Marks, rows: Sequence[Row], ticks: bytes | None = None
    ) -> bytes:
        """Return a frame of rows; ``ticks``: all of them as the feed has them, encoded."""

    def message(self, message: FromGateway) -> bytes:
        """Return the frame of another message; empty where this wire does not tell it."""


class _Msgpack:
    format = "msgpack"
    close_codes: Mapping[int, int] = {}

    def live(
        self, kind: str, offsets: _Marks, rows: Sequence[Row], ticks: bytes | None = None
    ) -> bytes:
        bars = _NONE
        if ticks is None:
            packed = [row.packed() for row in rows if not row.period]
            ticks = _array(packed)
            if len(packed) < len(rows):
                bars = _array([row.packed() for row in rows if row.period])
        return _framed(_BINARY, _pack(_live(kind, offsets, ticks, bars)))

    def message(self, message: FromGateway) -> bytes:
        return _framed(_BINARY, _pack(message))


class _Json:
    format = "json"
    close_codes: Mapping[int, int] = {}

    def live(
        self, kind: str, offsets: _Marks, rows: Sequence[Row], ticks: bytes | None = None
    ) -> bytes:
        document = [row for row in rows if row.as_dict()]
        of_ticks = (
            b'["%b","%b",%d,%b]' % (_name(row.code), row.id.encode(), row.flags, row.as_dict())
            for row in document
            if not row.period
        )
        of_bars = (
            b'["%b","%b","%b",%b]'
            % (_name(row.code), row.period.encode(), row.id.encode(), row.as_dict())
            for row in document
            if row.period
        )
        return _framed(_TEXT, _json(_live(kind, offsets, _list(of_ticks), _list(of_bars))))

    def message(self, message: FromGateway) -> bytes:
        return _framed(_TEXT, _json(message))


class _Realtime:
    """``/ws/realtime``: ``{code: [row, ...]}``; notices where they are wished."""

    format = "realtime"
    close_codes: Mapping[int, int] = {
        CloseCode.UNAVAILABLE: 1013,
        CloseCode.OVERLOADED: 1013,
        CloseCode.GOING_AWAY: 1012,
    }

    def __init__(self, *, notices: bool) -> None:
        self._notices = notices

    def live(
        self, kind: str, offsets: _Marks, rows: Sequence[Row], ticks: bytes | None = None
    ) -> bytes:
        by_code: dict[str, list[bytes]] = {}
        for row in rows:
            if row.as_dict():
                by_code.setdefault(row.code, []).append(row.as_dict())
        parts = (b'"%b":%b' % (_name(code), _list(of)) for code, of in by_code.items())
        return _framed(_TEXT, b"{" + b",".join(parts) + b"}") if by_code else b""

    def message(self, message: FromGateway) -> bytes:
        if not self._notices:
            return b""
        document: dict[str, Any]
        if isinstance(message, GapNotice):
            markets = {code.rpartition(".")[2] for code in message.codes} or {message.market}
            document = {"notice": "gap", "markets": sorted(markets)}
        elif isinstance(message, Skipped):
            document = {"notice": "conflated", "skipped": message.codes}
        elif isinstance(message, Subscribed):
            document = {"notice": "absent", "codes": message.absent}
        else:
            return b""
        return _framed(_TEXT, _json(document))


class _Quote(_Realtime):
    """``/ws/whole_quote``: ``{code: tick}``, the latest of each code."""

    format = "quote"

    def __init__(self) -> None:
        super().__init__(notices=False)

    def live(
        self, kind: str, offsets: _Marks, rows: Sequence[Row], ticks: bytes | None = None
    ) -> bytes:
        newest = {row.code: row for row in rows if row.as_dict()}
        parts = (b'"%b":%b' % (_name(code), row.as_dict()) for code, row in newest.items())
        return _framed(_TEXT, b"{" + b",".join(parts) + b"}") if newest else b""


def _live(kind: str, offsets: _Marks, ticks: bytes, bars: bytes) -> Live:
    raw: Any = msgspec.Raw
    return Live(kind=kind, position=dict(offsets), ticks=raw(ticks), bars=raw(bars))


def _name(code: str) -> bytes:
    return _json(code)[1:-1]


def _list(parts: Iterable[bytes]) -> bytes:
    return b"[" + b",".join(parts) + b"]"


def _array(rows: list[bytes]) -> bytes:
    count = len(rows)
    head = struct.pack("!B", 0x90 + count) if count < 16 else struct.pack("!BI", 0xDD, count)
    return head + b"".join(rows)


MSGPACK: Final[Wire] = _Msgpack()
JSON: Final[Wire] = _Json()
REALTIME: Final[Wire] = _Realtime(notices=False)
REALTIME_NOTICES: Final[Wire] = _Realtime(notices=True)
QUOTE: Final[Wire] = _Quote()
