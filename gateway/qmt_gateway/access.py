"""The layer before all routes: who asks, whether he may, and how much of it he has left.

It looks at the request's head alone, so that nobody's body is read in vain, and it does so for
REST, pages and WebSockets alike.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import AsyncGenerator, Callable, Sized
from contextlib import aclosing
from dataclasses import dataclass
from typing import Annotated, Final, TypeVar

import structlog
from fastapi import Depends
from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Send
from starlette.types import Scope as AsgiScope
from starlette.websockets import WebSocket

from qmt_protocol.errors import AccessDenied, LimitExceeded, OriginRefused, QMTError, ScopeMissing
from qmt_protocol.live import SUBPROTOCOLS, CloseCode

from .auth import Keyring, presented_key
from .browsers import Browsers
from .connections import CONNECTION, Connection, Connections
from .problems import problem
from .scopes import SCOPES, WEBSOCKET, Rule, Scope, rule_of
from .usage import Usage, Usages
from .websocket_protocol import close_reason

__all__ = ["REFUSED_BEHIND_HANDSHAKE", "Access", "Admission", "AdmissionOf", "Gate", "admission_of"]

REFUSED_BEHIND_HANDSHAKE: Final = frozenset({"/ws/v1"})
"""WebSockets that are opened to be told why they are refused: a browser learns no reason from a
handshake that failed."""
_ADMISSION: Final = "qmt.admission"
_ASKED: Final = "qmt.asked"
"""Name in a request's state of the `Usage` of who asks, and of the `Rule` of what he asks for."""
_WATCH_EVERY_S: Final = 0.5
_log: Final = structlog.get_logger(__name__)
_B = TypeVar("_B", bound=Sized)


@dataclass(frozen=True)
class Admission:
    """A request that was let in.

    Attributes
    ----------
    usage
        What its caller has and takes.
    scopes
        What the caller may do.
    """

    usage: Usage
    scopes: frozenset[Scope]
    connection: Connection | None

    def may(self, scope: Scope) -> bool:
        """Whether the caller has a scope."""
        return scope in self.scopes

    def counts(self, codes: Callable[[], int], unread_bytes: Callable[[], int]) -> None:
        """Have functions tell how much its WebSocket is subscribed to, and what waits for it."""
        if self.connection is not None:
            self.connection.codes, self.connection.unread = codes, unread_bytes

    def check_codes(self, more: int) -> None:
        """Check that its WebSocket may be subscribed to so much more.

        Raises
        ------
        LimitExceeded
        """
        self.usage.check_codes(self.connection, more)

    def check_rows(self, rows: int) -> None:
        """Check that its answer may have so many rows.

        Raises
        ------
        LimitExceeded
        """
        self.usage.check_rows(rows)

    async def counted(self, batches: AsyncGenerator[_B, None]) -> AsyncGenerator[_B, None]:
        """Pass batches of rows on as long as its answer may have them.

        Raises
        ------
        LimitExceeded
        """
        rows = 0
        async with aclosing(batches):
            async for batch in batches:
                rows += len(batch)
                self.check_rows(rows)
                yield batch


def admission_of(connection: HTTPConnection) -> Admission:
    """Return how a request or WebSocket was let in; a dependency."""
    found: Admission = connection.scope["state"][_ADMISSION]
    return found


AdmissionOf = Annotated[Admission, Depends(admission_of)]


class Gate:
    """Lets requests in, and ends what no longer may be.

    Parameters
    ----------
    connections
        All connections of this process.
    """

    def __init__(
        self, keyring: Keyring, browsers: Browsers, usages: Usages, connections: Connections
    ) -> None:
        self._keyring = keyring
        self._browsers = browsers
        self._usages = usages
        self.connections = connections

    def admit(self, scope: AsgiScope) -> Admission:
        """Let a request in.

        Raises
        ------
        AccessDenied
            When its key, scope, host or origin is not right.
        LimitExceeded
        """
        kind = WEBSOCKET if scope["type"] == "websocket" else scope["method"]
        rule = rule_of(kind, scope["path"])
        state = scope.setdefault("state", {})
        connection: Connection | None = state.get(CONNECTION)
        address = self._usages.of_address(_address_of(scope))
        state[_ASKED] = address, rule
        try:
            usage, scopes = self._caller(scope, rule, address)
        except AccessDenied:
            address.take_request(is_job=False)  # who tries keys and names is slowed like anybody
            raise
        state[_ASKED] = usage, rule
        if rule.is_counted:
            usage.take_request(is_job=rule.is_job)
        if rule.scope is not None and rule.scope not in scopes:
            raise _missing(usage, rule.scope, scopes)
        if rule.scope is not None and connection is not None:
            connection.admit(usage)
        admission = state[_ADMISSION] = Admission(usage, scopes, connection)
        return admission

    def _caller(
        self, scope: AsgiScope, rule: Rule, address: Usage
    ) -> tuple[Usage, frozenset[Scope]]:
        """Return who asks, and what he may do."""
        if self._keyring.asks and rule.scope is not None:
            presented = presented_key(scope)
            if presented is not None:
                key = self._keyring.find(presented)
                return self._usages.of_key(key), key.scopes
            if not self._keyring.lets_in_anonymous:
                raise AccessDenied(
                    "This gateway asks for an API key.",
                    hint="Send it as X-API-Key, or as Authorization: Bearer <key>.",
                )
        if self._keyring.lets_in_anonymous:
            headers = Headers(scope=scope)
            self._browsers.check_host(headers)
            if rule.scope is not None:
                self._browsers.check_origin(headers)
        return address, frozenset(SCOPES)

    async def watch(self) -> None:
        """Look after connections and keys until cancelled."""
        while True:
            await asyncio.sleep(_WATCH_EVERY_S)
            try:
                await asyncio.to_thread(self._keyring.refresh)
                self.connections.sweep()
                self._usages.sweep(self._keyring)
            except Exception:  # noqa: BLE001  # a revoked key must end, also after a fault of ours
                _log.exception("connections and keys were not looked after")


def _missing(usage: Usage, scope: Scope, has: frozenset[Scope]) -> ScopeMissing:
    return ScopeMissing(
        f"{usage.name} lacks the scope {scope}: it has {', '.join(sorted(has)) or 'none'}.",
        hint=f"Ask who runs this gateway for a key with --scope {scope}.",
        scope=scope,
    )


def _address_of(scope: AsgiScope) -> str:
    """Return a caller's address; of IPv6 the network, of which one host has all addresses."""
    host = str((scope.get("client") or ("unknown", 0))[0])
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if address.version == 6 and not address.is_loopback:
        return str(ipaddress.ip_network((address, 64), strict=False))
    return host


class Access:
    """The layer itself."""

    def __init__(self, app: ASGIApp, gate: Gate) -> None:
        self.app = app
        self._gate = gate

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Run the application for who is let in; tell others why not."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        try:
            admission = self._gate.admit(scope)
        except QMTError as error:
            if isinstance(error, LimitExceeded):
                await scope["state"][_ASKED][0].take_refusal()
            await _refuse(error, scope, receive, _counting(send, *scope["state"][_ASKED]))
            return
        if scope["type"] == "websocket":
            await self.app(scope, _paced(receive, admission.usage), send)
        else:
            await self.app(scope, receive, _counting(send, *scope["state"][_ASKED]))


def _paced(receive: Receive, usage: Usage) -> Receive:
    async def next_message() -> Message:
        message = await receive()
        if message["type"] == "websocket.receive":
            await usage.take_message()
        return message

    return next_message


def _counting(send: Send, usage: Usage, rule: Rule) -> Send:
    async def report(message: Message) -> None:
        if message["type"] == "http.response.start" and rule.is_counted:
            remaining = usage.headers(is_job=rule.is_job)
            message = {**message, "headers": [*message.get("headers", ()), *remaining]}
        await send(message)

    return report


async def _refuse(error: QMTError, scope: AsgiScope, receive: Receive, send: Send) -> None:
    if scope["type"] == "http":
        await problem(error)(scope, receive, send)
        return
    behind = scope["path"] in REFUSED_BEHIND_HANDSHAKE
    ws = WebSocket(scope, receive, send)
    if not behind or isinstance(error, OriginRefused) or error.http_status == 421:
        await ws.send_denial_response(problem(error))
        return
    offered: list[str] = scope["subprotocols"]
    await ws.accept(next((one for one in SUBPROTOCOLS if one in offered), None))
    limited = isinstance(error, LimitExceeded)
    code = CloseCode.LIMIT_EXCEEDED if limited else CloseCode.ACCESS_DENIED
    await ws.close(code, close_reason(str(error)))
