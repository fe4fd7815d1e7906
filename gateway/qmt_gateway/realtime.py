"""``/ws/realtime`` and ``/ws/whole_quote``: live data in the shapes of qmt-bridge-pro."""

from __future__ import annotations

import asyncio
from typing import Final

import msgspec
from fastapi import APIRouter
from starlette.types import Message
from starlette.websockets import WebSocket, WebSocketDisconnect

from qmt_protocol.codes import parse_codes, parse_markets
from qmt_protocol.documents import parse_json
from qmt_protocol.errors import InvalidRequest, LimitExceeded, QMTError
from qmt_protocol.keys import series_of
from qmt_protocol.live import CloseCode, Subscribed
from qmt_protocol.periods import parse_period

from .access import admission_of
from .answers import SOURCE_HEADER
from .bridge import source_name
from .frame import Sink
from .hub import Hub
from .parameters import refuse_unknown_of_socket
from .problems import problem
from .subscriber import Subscriber, Subscription
from .websocket_protocol import SINK
from .wires import QUOTE, REALTIME, REALTIME_NOTICES, Wire

__all__ = ["router"]

_FIRST_MESSAGE_S: Final = 5.0
_REALTIME_SHAPE: Final = '{"stocks": ["600519.SH"], "period": "tick"}'
_QUOTE_SHAPE: Final = '{"codes": ["SH", "SZ"]}'

router = APIRouter()


class _Realtime(msgspec.Struct, forbid_unknown_fields=True):
    stocks: list[str]
    period: str = "tick"
    add: bool = False
    notices: bool = False

    def subscription(self, before: Subscription) -> Subscription:
        """Return what the client gets from now on."""
        codes = parse_codes(self.stocks, "stocks")
        period = parse_period(self.period)
        subscription = (
            Subscription(set(before.codes), set(before.bars)) if self.add else Subscription()
        )
        if period == "tick":
            subscription.codes.update(codes)
        else:
            subscription.bars.update(series_of(period, code) for code in codes)
        return subscription


class _Quote(msgspec.Struct, forbid_unknown_fields=True):
    codes: list[str]
    notices: bool = False

    def subscription(self, before: Subscription) -> Subscription:
        """Return what the client gets from now on: whole markets, or codes."""
        markets = set(parse_markets([one for one in self.codes if "." not in one], "codes"))
        codes = [one for one in self.codes if "." in one]
        return Subscription(
            set(parse_codes(codes)) if codes or not markets else set(), set(), markets
        )


@router.websocket("/ws/realtime")
async def realtime(ws: WebSocket) -> None:
    """Serve one client: a message subscribes, frames ``{code: [row, ...]}`` follow."""
    await _serve(ws, _Realtime, REALTIME, _REALTIME_SHAPE)


@router.websocket("/ws/whole_quote")
async def whole_quote(ws: WebSocket) -> None:
    """Serve one client: a message subscribes, frames ``{code: tick}`` follow."""
    await _serve(ws, _Quote, QUOTE, _QUOTE_SHAPE)


async def _serve(ws: WebSocket, kind: type[_Realtime | _Quote], wire: Wire, shape: str) -> None:
    try:
        refuse_unknown_of_socket(ws)
        source = source_name(await ws.app.state.bridge.simulated())
    except QMTError as error:
        await ws.send_denial_response(problem(error))
        return
    await ws.accept(headers=[(SOURCE_HEADER.lower().encode(), source.encode())])
    hub: Hub = ws.app.state.hub
    sink: Sink = ws.scope["extensions"][SINK]
    subscriber = hub.open(Subscriber(sink, wire, hub.max_bytes, hub.budget))
    subscriber.conflate = wire is QUOTE
    await _Client(ws, hub, subscriber, kind, shape).serve()


class _Client:
    def __init__(
        self,
        ws: WebSocket,
        hub: Hub,
        subscriber: Subscriber,
        kind: type[_Realtime | _Quote],
        shape: str,
    ) -> None:
        self._ws = ws
        self._hub = hub
        self._subscriber = subscriber
        self._admission = admission_of(ws)
        self._admission.counts(lambda: subscriber.subscription.count, lambda: subscriber.held_bytes)
        self._kind = kind
        self._shape = shape

    async def serve(self) -> None:
        subscriber = self._subscriber
        try:
            try:
                first = await asyncio.wait_for(self._ws.receive(), _FIRST_MESSAGE_S)
            except asyncio.TimeoutError:
                reason = f"No subscription within {_FIRST_MESSAGE_S:g} s."
                subscriber.close(CloseCode.STALLED, reason)
            else:
                await self._follow(first)
            while True:
                message = await self._ws.receive()
                if not subscriber.closed:
                    await subscriber.drain()  # who does not read may not ask for more
                await self._follow(message)
        except WebSocketDisconnect:
            pass
        finally:
            self._hub.leave(subscriber)

    async def _follow(self, message: Message) -> None:
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(1005)
        subscriber = self._subscriber
        if subscriber.closed:
            return
        try:
            text = message.get("text")
            request = self._read(message["bytes"] if text is None else text)
            await self._subscribe(request)
        except InvalidRequest as error:
            subscriber.close(CloseCode.BAD_MESSAGE, str(error))
        except LimitExceeded as error:
            subscriber.close(CloseCode.LIMIT_EXCEEDED, str(error))
        except QMTError as error:
            subscriber.close(CloseCode.UNAVAILABLE, error.message)

    def _read(self, data: str | bytes) -> _Realtime | _Quote:
        try:
            request: _Realtime | _Quote = msgspec.convert(parse_json(data, "message"), self._kind)
        except (msgspec.ValidationError, InvalidRequest) as error:
            reason = error.message if isinstance(error, InvalidRequest) else str(error)
            raise InvalidRequest(
                f"{reason.rstrip('.')}; expected {self._shape}", field="message"
            ) from None
        return request

    async def _subscribe(self, request: _Realtime | _Quote) -> None:
        hub, subscriber = self._hub, self._subscriber
        has = subscriber.subscription
        subscription = request.subscription(has)
        self._admission.check_codes(subscription.count - has.count)
        if subscriber.wire is not QUOTE:
            subscriber.wire = REALTIME_NOTICES if request.notices else REALTIME
        held = await hub.hold(subscription.names())
        try:
            new = Subscription(
                subscription.codes - has.codes,
                subscription.bars - has.bars,
                subscription.markets - has.markets,
            )
            await hub.load_bars(new.bars)
            hub.part(
                subscriber,
                codes=has.codes - subscription.codes,
                bars=has.bars - subscription.bars,
                markets=has.markets - subscription.markets,
            )
            hub.join(subscriber, codes=new.codes, bars=new.bars, markets=new.markets)
            rows = hub.snapshot(new.codes | new.bars, new.markets)
        finally:
            hub.release(held)
        absent = sorted((new.codes | new.bars) - {row.key for row in rows})
        if absent:
            subscriber.send(Subscribed(id="", position={}, codes=has.count, absent=absent))
        subscriber.send_rows("snapshot", {}, rows)
