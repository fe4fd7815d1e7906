"""``/ws/v1``: live ticks and bars by protocol v1; see docs/live.md and docs/asyncapi.yaml."""

from __future__ import annotations

from typing import Any, Final

from fastapi import APIRouter
from starlette.websockets import WebSocket, WebSocketDisconnect

from qmt_protocol.codes import parse_codes, parse_markets
from qmt_protocol.cursor.position import EVENTS, Offset, Position
from qmt_protocol.errors import InvalidRequest, QMTError, RedisUnavailable, Unavailable
from qmt_protocol.keys import series_of
from qmt_protocol.live import (
    MAX_ID,
    MSGPACK_SUBPROTOCOL,
    SUBPROTOCOLS,
    CloseCode,
    Failure,
    NowLive,
    Replay,
    Subscribe,
    Subscribed,
    ToGateway,
    Unsubscribe,
    Unsubscribed,
    Welcome,
    check_bounds,
    read_message,
)
from qmt_protocol.periods import parse_period

from .access import admission_of
from .answers import SOURCE_HEADER
from .bridge import Bridge, source_name
from .catch_up import CatchUp
from .frame import Sink
from .hub import Hub
from .live_state import HEARTBEAT_S
from .parameters import refuse_unknown_of_socket
from .replays import Replays
from .subscriber import Subscriber, Subscription
from .websocket_protocol import SINK
from .wires import JSON, MSGPACK

__all__ = ["router"]

VERSION: Final = 1
_EVERYTHING: Final = "*"

router = APIRouter()


@router.websocket("/ws/v1")
async def live(ws: WebSocket) -> None:
    """Serve one client of protocol v1."""
    offered: list[str] = ws.scope["subprotocols"]
    chosen = next((one for one in SUBPROTOCOLS if one in offered), None)
    source = b""
    refusal: QMTError | None = None
    try:
        refuse_unknown_of_socket(ws)
        source = source_name(await ws.app.state.bridge.simulated()).encode()
    except QMTError as error:
        refusal = error
    # Refused behind the handshake: a browser learns no reason from a failed one.
    await ws.accept(chosen, headers=[(SOURCE_HEADER.lower().encode(), source)])
    sink: Sink = ws.scope["extensions"][SINK]
    hub: Hub = ws.app.state.hub
    wire = MSGPACK if chosen == MSGPACK_SUBPROTOCOL else JSON
    subscriber = Subscriber(sink, wire, hub.max_bytes, hub.budget)
    if refusal is not None:
        is_theirs = isinstance(refusal, InvalidRequest)
        subscriber.close(
            CloseCode.BAD_MESSAGE if is_theirs else CloseCode.UNAVAILABLE, str(refusal)
        )
        await _until_gone(ws)
        return
    await _Session(ws, hub.open(subscriber), source == b"SIMULATED").serve()


async def _until_gone(ws: WebSocket) -> None:
    while (await ws.receive())["type"] != "websocket.disconnect":
        pass


class _Session:
    def __init__(self, ws: WebSocket, subscriber: Subscriber, simulated: bool) -> None:
        self._ws = ws
        self._hub: Hub = ws.app.state.hub
        self._bridge: Bridge = ws.app.state.bridge
        self._settings = ws.app.state.settings
        self._subscriber = subscriber
        self._admission = admission_of(ws)
        self._admission.counts(lambda: subscriber.subscription.count, lambda: subscriber.held_bytes)
        self._simulated = simulated
        self._replays = Replays(
            subscriber,
            self._bridge.readings,
            self._settings.bridge_ws_replays,
            self._hub.budget,
        )

    async def serve(self) -> None:
        subscriber = self._subscriber
        settings = self._settings
        subscriber.send(
            Welcome(
                version=VERSION,
                simulated=self._simulated,
                flush_ms=settings.bridge_ws_flush_ms,
                max_bytes=settings.bridge_ws_queue_bytes,
                stall_s=settings.bridge_ws_stall_s,
                heartbeat_s=HEARTBEAT_S,
            )
        )
        try:
            while not subscriber.closed:
                message = await self._next_message()
                await subscriber.drain()  # who does not read may not ask for more
                await self._follow(message)
            await _until_gone(self._ws)
        except WebSocketDisconnect:
            pass
        except InvalidRequest as error:
            subscriber.close(CloseCode.BAD_MESSAGE, str(error))
            await _until_gone(self._ws)
        finally:
            self._hub.leave(subscriber)
            await self._replays.close()

    async def _next_message(self) -> ToGateway:
        received = await self._ws.receive()
        if received["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(received.get("code", 1005))
        text = received.get("text")
        return read_message(received["bytes"] if text is None else text)

    async def _follow(self, message: ToGateway) -> None:
        try:
            check_bounds(message)
            if isinstance(message, Subscribe):
                await self._subscribe(message)
            elif isinstance(message, Unsubscribe):
                await self._unsubscribe(message)
            elif isinstance(message, Replay):
                await self._start_replay(message)
            else:
                await self._replays.steer(message)
        except QMTError as error:
            if isinstance(error, RedisUnavailable) or type(error) is Unavailable:
                self._subscriber.close(CloseCode.UNAVAILABLE, str(error))
            else:
                self._subscriber.send(Failure(id=message.id[:MAX_ID], error=error.to_dict()))

    async def _subscription_of(self, message: Subscribe | Unsubscribe) -> Subscription:
        """Return what a message names, sectors and ``*`` resolved.

        Raises
        ------
        InvalidRequest, SectorNotFound, NoWorker
        """
        period = parse_period(message.period)
        codes = [code for code in message.codes if code != _EVERYTHING]
        everything = len(codes) < len(message.codes)
        for sector in message.sectors:
            codes += await self._bridge.sector(sector)
        codes = parse_codes(codes) if codes else []
        markets = set(parse_markets(message.markets))
        if everything:
            markets.update(await self._bridge.published_markets())
        if not (codes or markets or everything):
            raise InvalidRequest(
                "Nothing is named.", hint='For example codes: ["600519.SH"].', field="codes"
            )
        if period == "tick":
            return Subscription(set(codes), set(), markets, everything)
        if markets or everything:
            raise InvalidRequest(
                f"Bars ({period}) of whole markets are not served.",
                hint="Name codes or sectors.",
                field="markets",
            )
        return Subscription(set(), {series_of(period, code) for code in codes})

    async def _start_replay(self, message: Replay) -> None:
        codes = [code for code in message.codes if code != _EVERYTHING]
        everything = len(codes) < len(message.codes)
        for sector in message.sectors:
            codes += await self._bridge.sector(sector)
        markets = set(parse_markets(message.markets))
        if everything:
            markets.update(await self._bridge.stored_markets())
        if bool(codes) == bool(markets or everything):
            raise InvalidRequest(
                "Name codes and sectors, or markets.",
                hint='For example codes: ["600519.SH"].',
                field="codes",
            )
        self._replays.start(message, parse_codes(codes) if codes else None, sorted(markets))

    async def _subscribe(self, message: Subscribe) -> None:
        hub, subscriber = self._hub, self._subscriber
        asked = await self._subscription_of(message)
        has = subscriber.subscription
        new = Subscription(
            {c for c in asked.codes - has.codes if c.rpartition(".")[2] not in has.markets},
            asked.bars - has.bars,
            asked.markets - has.markets,
        )
        self._admission.check_codes(new.count)
        position = _position_of(message)
        held = await hub.hold(new.names() | asked.names())
        try:
            if new.bars and message.snapshot:
                await hub.load_bars(new.bars)
            has.everything = has.everything or asked.everything
            subscriber.conflate = subscriber.conflate or message.conflate
            fresh, resumed = _divide(new, message, position)
            # From here to the snapshot nothing is awaited: no tick can come between.
            hub.join(subscriber, codes=fresh.codes, bars=fresh.bars, markets=fresh.markets)
            self._answer(message, asked, position, fresh, resumed)
            if message.snapshot and fresh.count:
                rows = hub.snapshot(fresh.codes | fresh.bars, fresh.markets)
                subscriber.send_rows("snapshot", hub.offsets(fresh.names()), rows)
            if resumed.count:
                await CatchUp(hub, subscriber, resumed, position, message.start_ms).run()
                offsets = hub.offsets_of(subscriber)
                subscriber.send(NowLive(id=message.id, position=offsets))
        finally:
            hub.release(held)

    def _answer(
        self,
        message: Subscribe,
        asked: Subscription,
        position: Position | None,
        fresh: Subscription,
        resumed: Subscription,
    ) -> None:
        hub, subscriber = self._hub, self._subscriber
        offsets: dict[str, Offset] = hub.offsets(fresh.names())
        events = offsets.get(EVENTS)
        if position is not None:
            offsets |= {
                name: offset for name, offset in position.offsets.items() if name in asked.names()
            }
        if events is not None:
            offsets[EVENTS] = events
        absent = [code for code in asked.codes if not hub.snapshot([code], ())]
        count = self._count(subscriber.subscription) + self._count(resumed)
        subscriber.send(
            Subscribed(id=message.id, position=offsets, codes=count, absent=sorted(absent))
        )
        if position is not None and EVENTS in position.offsets:
            hub.send_events(subscriber, asked, position.offsets[EVENTS][1])

    def _count(self, subscription: Subscription) -> int:
        """Return how many codes and bars are wanted, markets counted by what they hold."""
        return (
            len(subscription.codes)
            + len(subscription.bars)
            + len(self._hub.snapshot((), subscription.markets))
        )

    async def _unsubscribe(self, message: Unsubscribe) -> None:
        subscription = await self._subscription_of(message)
        subscriber = self._subscriber
        if subscription.everything:
            subscriber.subscription.everything = False
            subscription.markets |= subscriber.subscription.markets
        self._hub.part(
            subscriber,
            codes=subscription.codes,
            bars=subscription.bars,
            markets=subscription.markets,
        )
        subscriber.send(Unsubscribed(id=message.id, codes=self._count(subscriber.subscription)))


def _position_of(message: Subscribe) -> Position | None:
    """Return the position that a message goes on from, checked."""
    if message.position is None and message.last_ids is None:
        return None
    if message.start_ms is not None:
        raise InvalidRequest("Give start_ms or a position, not both.", field="start_ms")
    document: dict[str, Any] = dict(message.position or {})
    if message.last_ids is not None:
        document["codes"] = message.last_ids
    return Position.parse(document)


def _divide(
    new: Subscription, message: Subscribe, position: Position | None
) -> tuple[Subscription, Subscription]:
    """Divide what is new to a client into what begins now and what goes on from a position."""
    if message.start_ms is not None and not new.bars:
        return Subscription(), new
    if position is None:
        return new, Subscription()
    if position.codes is not None:
        return Subscription(), new
    fresh, resumed = Subscription(), Subscription()
    for name in new.markets:
        (resumed if name in position.offsets else fresh).markets.add(name)
    for code in new.codes:
        (resumed if code.rpartition(".")[2] in position.offsets else fresh).codes.add(code)
    for key in new.bars:
        (resumed if key.rpartition(".")[2] in position.offsets else fresh).bars.add(key)
    return fresh, resumed
