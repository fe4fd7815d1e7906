"""``/ws/realtime``: live ticks for one WebSocket client."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import msgspec
from fastapi import APIRouter
from starlette.websockets import WebSocket, WebSocketDisconnect

from qmt_protocol.codes import parse_codes
from qmt_protocol.errors import InvalidRequest, QMTError
from qmt_protocol.periods import parse_period

from .answers import SOURCE_HEADER
from .auth import ApiKeys
from .bridge import source_name
from .hub import Hub
from .problems import problem
from .subscriber import Subscriber
from .websocket_protocol import ABANDON

__all__ = ["CLOSE_BAD_MESSAGE", "CLOSE_STALLED", "CLOSE_TRY_LATER", "router"]

CLOSE_BAD_MESSAGE: Final = 4400
"""A message of the client is no subscription."""
CLOSE_STALLED: Final = 4408
"""The client sent no subscription, or read nothing, for too long."""
CLOSE_TRY_LATER: Final = 1013
"""The feed cannot be read at the moment."""

_FIRST_MESSAGE_S: Final = 5.0
_REASON_BYTES: Final = 120

router = APIRouter()


class _Subscribe(msgspec.Struct):
    stocks: list[str]
    period: str = "tick"
    add: bool = False
    notices: bool = False


class _Close(Exception):
    """End the connection with a code."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason.encode()[:_REASON_BYTES].decode(errors="ignore")


@router.websocket("/ws/realtime")
async def realtime(ws: WebSocket) -> None:
    """Serve one client: the first message subscribes, frames follow."""
    keys: ApiKeys = ws.app.state.keys
    try:
        keys.check(_key(ws))
        source = source_name(await ws.app.state.bridge.simulated())
    except QMTError as error:
        await ws.send_denial_response(problem(error))
        return
    await ws.accept(headers=[(SOURCE_HEADER.lower().encode(), source.encode())])
    await _Client(ws, ws.app.state.hub, ws.app.state.settings.bridge_ws_stall_s).serve()


def _key(ws: WebSocket) -> str | None:
    scheme, _, bearer = ws.headers.get("authorization", "").partition(" ")
    return (
        ws.headers.get("x-api-key")
        or (bearer.strip() if scheme.lower() == "bearer" else "")
        # A browser cannot send headers with a WebSocket.
        or ws.query_params.get("api_key")
        or None
    )


class _Client:
    def __init__(self, ws: WebSocket, hub: Hub, stall_s: float) -> None:
        self._ws = ws
        self._hub = hub
        self._stall_s = stall_s
        self._subscriber: Subscriber = hub.open()
        self._notices = False
        self._absent: list[str] = []

    async def serve(self) -> None:
        tasks: list[asyncio.Task[None]] = []
        try:
            await asyncio.wait_for(self._next_message(), _FIRST_MESSAGE_S)
            tasks = [asyncio.create_task(self._read()), asyncio.create_task(self._write())]
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        except asyncio.TimeoutError:
            await self._close(CLOSE_STALLED, f"No subscription within {_FIRST_MESSAGE_S:g} s.")
        except _Close as close:
            await self._close(close.code, close.reason)
        except WebSocketDisconnect:
            pass
        finally:
            self._hub.leave(self._subscriber)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _close(self, code: int, reason: str) -> None:
        # Without waiting for room to write: a client that does not read would never let us go.
        abandon = self._ws.scope.get("extensions", {}).get(ABANDON)
        if abandon is not None:
            abandon(code, reason)
        else:
            await self._ws.close(code, reason)

    async def _read(self) -> None:
        while True:
            await self._next_message()

    async def _next_message(self) -> None:
        message = await self._ws.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1005))
        try:
            wish = msgspec.json.decode(message.get("text") or message["bytes"], type=_Subscribe)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise _Close(
                CLOSE_BAD_MESSAGE,
                f'{error}; expected {{"stocks": ["600519.SH"], "period": "tick"}}',
            ) from None
        try:
            if parse_period(wish.period) != "tick":
                raise InvalidRequest(
                    f"Live bars ({wish.period}) are not served yet.", hint="Use period tick."
                )
            codes = parse_codes(wish.stocks)
            if wish.add:
                codes = parse_codes([*self._subscriber.codes, *codes])
            self._notices = wish.notices
            self._absent = await self._hub.subscribe(self._subscriber, codes)
        except InvalidRequest as error:
            raise _Close(CLOSE_BAD_MESSAGE, str(error)) from None
        except QMTError as error:
            raise _Close(CLOSE_TRY_LATER, error.message) from None
        self._subscriber.wake()

    async def _write(self) -> None:
        while True:
            text = await self._subscriber.next_frame()
            if self._notices:
                for notice in self._news():
                    await self._send(msgspec.json.encode(notice).decode())
            if text is None:
                raise _Close(CLOSE_TRY_LATER, self._subscriber.closed)
            if text:
                await self._send(text)

    def _news(self) -> list[dict[str, Any]]:
        news: list[dict[str, Any]] = []
        if self._absent:
            news.append({"notice": "absent", "codes": self._absent})
            self._absent = []
        if self._subscriber.gaps:
            news.append({"notice": "gap", "markets": sorted(self._subscriber.gaps)})
            self._subscriber.gaps.clear()
        if self._subscriber.skipped:
            news.append({"notice": "conflated", "skipped": dict(self._subscriber.skipped)})
            self._subscriber.skipped.clear()
        return news

    async def _send(self, text: str) -> None:
        try:
            await asyncio.wait_for(self._ws.send_text(text), self._stall_s)
        except asyncio.TimeoutError:
            raise _Close(
                CLOSE_STALLED, f"Nothing was read for {self._stall_s:g} s; subscribe again."
            ) from None
