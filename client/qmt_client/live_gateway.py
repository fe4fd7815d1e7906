"""Following live data through the gateway, by protocol v1, with the same guarantees as over Redis.

The gateway conflates a client that reads too slowly. A reader that did not ask for that comes back
with the position it had before, and gets everything from there at its own pace.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec

from qmt_protocol.cursor.batch import BarRow, Batch, Kind, Row
from qmt_protocol.cursor.cursor import Cursor
from qmt_protocol.cursor.position import EVENTS, Offset, Position, just_before
from qmt_protocol.cursor.scope import Scope
from qmt_protocol.decoding import DECODE_ERRORS, check_plain, printable, reason_of
from qmt_protocol.errors import CodecError, Gap, QMTError, Unavailable, error_from_dict
from qmt_protocol.events import Moment
from qmt_protocol.ids import BEGINNING
from qmt_protocol.live import Subscribe
from qmt_reading.callbacks import OnGap
from qmt_reading.requests import LiveRequest
from qmt_runtime.retry import Retry

from .gateway_answers import Code, EntryId, TickId

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from websockets.asyncio.client import ClientConnection

__all__ = ["GatewayFollower"]

_SILENT_S: Final = 20.0
"""The gateway sends a heartbeat every few seconds: after so long the connection is dead."""
_ERROR_BYTES: Final = 2**20
_MESSAGE_LENGTH: Final = 2_000

# The messages of `qmt_protocol.live`, as far as they are read here, and as they must be.

_Mark = tuple[Annotated[str, msgspec.Meta(max_length=64)], EntryId]
_Position = dict[Annotated[str, msgspec.Meta(max_length=16)], _Mark]


class _FromGateway(msgspec.Struct, tag_field="type"):
    pass


class _Live(_FromGateway, tag="live"):
    """The ticks and bars are left encoded."""

    kind: Kind
    position: _Position
    ticks: list[tuple[Code, TickId, msgspec.Raw]]
    bars: list[tuple[Code, str, TickId, msgspec.Raw]]


class _Subscribed(_FromGateway, tag="subscribed"):
    position: _Position


class _NowLive(_FromGateway, tag="now"):
    position: _Position


class _Heartbeat(_FromGateway, tag="heartbeat"):
    position: _Position


class _Gap(_FromGateway, tag="gap"):
    market: str = ""
    reason: str = ""
    message: str = ""
    after: _Mark | None = None
    from_ms: Moment = 0
    to_ms: Moment = 0
    event: Annotated[str, msgspec.Meta(pattern=r"^([0-9]{1,20}-[0-9]{1,20})?$")] = ""
    ticks: int = 0
    codes: dict[str, list[int | str]] = {}


class _Failure(_FromGateway, tag="error"):
    error: msgspec.Raw


class _Skipped(_FromGateway, tag="skipped"):
    pass


class _Welcome(_FromGateway, tag="welcome"):
    pass


class _Unsubscribed(_FromGateway, tag="unsubscribed"):
    pass


class _Shutdown(_FromGateway, tag="shutdown"):
    pass


_Message = (
    _Live
    | _Welcome
    | _Subscribed
    | _Unsubscribed
    | _NowLive
    | _Gap
    | _Skipped
    | _Heartbeat
    | _Shutdown
    | _Failure
)
_decode: Final = msgspec.msgpack.Decoder(_Message).decode
_decode_error: Final = msgspec.msgpack.Decoder(dict[str, Any]).decode
_encode: Final = msgspec.msgpack.Encoder().encode


class _Behind(Exception):
    """The gateway left ticks out that this reader wants."""


class GatewayFollower:
    """Follows what a request names, over one WebSocket after the other.

    Parameters
    ----------
    connect
        Returns a context manager that gives an open connection.
    away
        Returns the error of a connection that ended.
    codes
        Codes that the request may be about, where it begins with stored ticks.
    give_up_after_s
        How long a lost connection is tried again; ``None``: without limit.
    address
        ``host:port`` for messages.
    """

    def __init__(
        self,
        connect: Callable[[], AbstractAsyncContextManager[ClientConnection]],
        away: Callable[[str], QMTError],
        live_request: LiveRequest,
        on_gap: OnGap,
        *,
        codes: Sequence[str] = (),
        give_up_after_s: float | None = None,
        address: str = "",
    ) -> None:
        self._connect = connect
        self._away = away
        self._address = address
        self._live_request = live_request
        self._on_gap = on_gap
        self._give_up_after_s = give_up_after_s
        position = live_request.position
        if live_request.start_ms is not None:
            position = Position(codes=dict.fromkeys(codes, just_before(live_request.start_ms)))
        periods = () if live_request.period == "tick" else (live_request.period,)
        self._cursor = Cursor(
            Scope.of(live_request.codes, live_request.markets, periods), position, on_gap=on_gap
        )
        self._is_now_reported = False
        self._first: tuple[list[Row], list[BarRow]] = [], []

    async def batches(self) -> AsyncGenerator[Batch, None]:
        """Yield what is wanted, in order.

        Raises
        ------
        GatewayUnavailable
            When the gateway stays away for ``give_up_after_s``.
        AccessDenied, InvalidRequest, Unavailable
            When it refuses.
        CodecError
            When it sends what is no message.
        """
        retry = Retry(self._give_up_after_s)
        while True:
            before = dict(self._cursor.offsets)
            try:
                async with self._connect() as socket:
                    async for batch in self._read(socket):
                        retry.succeeded()
                        yield batch
            except _Behind:
                if self._cursor.offsets != before:
                    continue
                lost: QMTError = self._away("it leaves out all that is wanted")
            except Unavailable as error:
                if error.slug != "gateway-unavailable":
                    raise
                lost = error
            await retry.wait(lost)

    def _request(self) -> Subscribe:
        live_request = self._live_request
        request = Subscribe(
            codes=list(live_request.codes or ()),
            markets=list(live_request.markets),
            period=live_request.period,
            conflate=live_request.conflate,
        )
        cursor = self._cursor
        if live_request.start_ms is not None and not cursor.has_begun:
            request.start_ms = live_request.start_ms
            return request
        if cursor.offsets:
            request.position = dict(cursor.offsets)
        if cursor.has_begun or live_request.position is not None:
            ids = cursor.known_ids
            request.last_ids = None if ids is None else dict(ids)
        return request

    async def _read(self, socket: ClientConnection) -> AsyncGenerator[Batch, None]:
        await socket.send(_encode(self._request()))
        while True:
            try:
                data = await asyncio.wait_for(socket.recv(), _SILENT_S)
            except asyncio.TimeoutError:
                raise self._away(f"it was silent for {_SILENT_S:g} s") from None
            try:
                message = _decode(data if isinstance(data, bytes) else data.encode())
            except DECODE_ERRORS as error:
                raise self._unreadable(error) from error
            for batch in self._take(message):
                yield batch

    def _take(self, message: Any) -> list[Batch]:
        if isinstance(message, _Live):
            return self._take_live(message)
        if isinstance(message, _Subscribed):
            self._cursor.offsets |= message.position
            is_resumed = (
                bool(self._live_request.position) or self._live_request.start_ms is not None
            )
            return self._begin() if is_resumed else []
        if isinstance(message, _Heartbeat):
            return self._moved(message.position)
        if isinstance(message, _NowLive):
            self._cursor.offsets |= message.position
            if self._live_request.start_ms is None or self._is_now_reported:
                return [Batch("live", offsets=message.position)]
            self._is_now_reported = True
            return [Batch("now", offsets=message.position)]
        if isinstance(message, _Gap):
            return self._report_gap(message)
        if isinstance(message, _Skipped) and not self._live_request.conflate:
            raise _Behind
        if isinstance(message, _Failure):
            raise self._failure(message)
        return []

    def _failure(self, message: _Failure) -> QMTError:
        try:
            packed = bytes(message.error)
            if len(packed) > _ERROR_BYTES:
                raise ValueError("an error that is too long")
            document = _decode_error(packed)
            check_plain(document)
        except DECODE_ERRORS as error:
            return self._unreadable(error)
        return error_from_dict(document)

    def _unreadable(self, error: Exception) -> CodecError:
        return CodecError(
            f"What the gateway at {self._address} sent is no message of protocol v1: "
            f"{reason_of(error)}.",
            hint="Check that a gateway of this version listens there.",
            address=self._address,
        )

    def _moved(self, position: dict[str, Offset]) -> list[Batch]:
        if not self._cursor.has_begun:
            return []
        self._cursor.offsets |= position
        return [Batch("live", offsets=position)]

    def _take_live(self, frame: _Live) -> list[Batch]:
        if frame.kind == "snapshot":
            return self._take_snapshot(frame)
        return [self._cursor.receive(frame.kind, frame.ticks, frame.bars, frame.position)]

    def _take_snapshot(self, frame: _Live) -> list[Batch]:
        """Learn where every code stands; the last frame of a snapshot has the position."""
        cursor, (ticks, bars) = self._cursor, self._first
        ticks += cursor.scope.ticks_among(frame.ticks)
        bars += [row for row in frame.bars if cursor.scope.takes_bars(row[0], row[1])]
        if not frame.position:
            return []
        cursor.learn(ticks, bars)
        cursor.offsets |= frame.position
        self._first = [], []
        if cursor.has_begun:
            return []
        if self._live_request.period == "tick":
            for code in self._live_request.codes or ():
                cursor.last_ids.setdefault(code, BEGINNING)
        begin = self._begin()
        return [*begin, Batch("snapshot", ticks, bars)] if self._live_request.snapshot else begin

    def _begin(self) -> list[Batch]:
        return [] if self._cursor.has_begun else [self._cursor.opening()]

    def _report_gap(self, notice: _Gap) -> list[Batch]:
        facts = msgspec.to_builtins(notice)
        for unused in ("type", "event"):
            facts.pop(unused)
        message = printable(facts.pop("message"), _MESSAGE_LENGTH)
        message = message or f"Data of {printable(notice.market)} can no longer be had."
        self._on_gap(Gap(message, hint="Read them as history.", **facts))
        return self._moved({EVENTS: ("", notice.event)}) if notice.event else []
