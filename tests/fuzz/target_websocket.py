"""Messages to the gateway's three WebSockets: changed ones, other types, deep, huge, binary, text.

A finding is an error that nobody caught, a close code that no page names, the process gone, or a
good subscription behind the message that is not served.
"""

from __future__ import annotations

import base64
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgpack
from fuzz_changes import changed, changed_document, encoded
from fuzz_children import Report, in_children
from fuzz_gateway import CODES, OPEN_MS, GatewayRig, Misbehaved
from fuzz_run import Target
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

from qmt_protocol.errors import InvalidRequest

__all__ = ["TARGET", "make_cases", "run"]

_WITHIN_S: Final = 50.0
_DOCUMENTED: Final = {
    "/ws/v1": {1002, 1007, 1009, 4400},
    "/ws/realtime": {1002, 1007, 1009, 4400},
    "/ws/whole_quote": {1002, 1007, 1009, 4400},
}
_SHARES: Final = (("/ws/v1", 6), ("/ws/realtime", 2), ("/ws/whole_quote", 2))
_POSITION: Final = {"SH": ["e1", f"{OPEN_MS}-0"], "events": ["", "0-0"]}
_REPLAY: Final = {"op": "replay", "codes": [CODES[0]], "start_ms": OPEN_MS, "speed": "max"}
_V1: Final[list[dict[str, Any]]] = [
    {"op": "subscribe", "id": "a", "codes": list(CODES)},
    {"op": "subscribe", "id": "b", "markets": ["SH"], "conflate": True},
    {"op": "subscribe", "id": "c", "codes": [CODES[0]], "period": "1m", "snapshot": False},
    {"op": "subscribe", "id": "d", "codes": [CODES[0]], "position": _POSITION},
    {
        **{"op": "subscribe", "id": "e", "codes": [CODES[0]], "position": _POSITION},
        "last_ids": {CODES[0]: f"{OPEN_MS + 3_000}-0"},
    },
    {"op": "subscribe", "id": "f", "codes": [CODES[1]], "start_ms": OPEN_MS + 500_000},
    {"op": "subscribe", "id": "g", "sectors": ["沪深300"]},
    {"op": "unsubscribe", "id": "h", "codes": list(CODES)},
    {**_REPLAY, "id": "r", "end_ms": OPEN_MS + 20_000, "skip_idle_s": 5, "paused": False},
    {**_REPLAY, "id": "p", "speed": 2.5, "paused": True},
    *({"op": f"replay_{act}", "id": "p"} for act in ("pause", "resume", "step", "stop")),
    {"op": "replay_seek", "id": "p", "at_ms": OPEN_MS + 60_000},
    {"op": "replay_speed", "id": "p", "speed": "max"},
]
_REALTIME: Final[list[dict[str, Any]]] = [
    {"stocks": list(CODES), "period": "tick", "add": True, "notices": True},
    {"stocks": [CODES[0]], "period": "1m"},
]
_QUOTE: Final[list[dict[str, Any]]] = [{"codes": ["SH", "SZ"]}, {"codes": [CODES[0], CODES[2]]}]
_VALID: Final = {"/ws/v1": _V1, "/ws/realtime": _REALTIME, "/ws/whole_quote": _QUOTE}


class WebSocketCases:
    """See `fuzz_children.Cases`."""

    def __init__(self) -> None:
        self._rig = GatewayRig()
        self._open: dict[tuple[str, str], ClientConnection] = {}
        self._synced = 0

    def close(self) -> None:
        """End the gateway."""
        for client in self._open.values():
            client.close()
        self._rig.close()

    def input(self, chance: random.Random) -> bytes:
        """Return a message with where it goes and how, as JSON."""
        path = chance.choices(*zip(*_SHARES, strict=True))[0]
        wire = chance.choice(("json", "msgpack")) if path == "/ws/v1" else "json"
        how = chance.choices(("text", "binary", "fragments", "frame"), (60, 25, 10, 5))[0]
        if wire == "msgpack" and chance.random() < 0.8:
            how = "binary"
        data = _message(chance, path, wire)
        told = {"path": path, "wire": wire, "how": how, "data": base64.b64encode(data).decode()}
        return json.dumps(told).encode()

    def judge(self, data: bytes, chance: random.Random) -> None:
        """Send it, then a good subscription, and look at what comes of both."""
        told = json.loads(data)
        path, wire = told["path"], told["wire"]
        client = self._client(path, wire)
        code = 0
        try:
            _send(client, told["how"], base64.b64decode(told["data"]), chance)
            self._sync(client, path, wire)
        except ConnectionClosed as closed:
            self._open.pop((path, wire)).close()
            code = closed.rcvd.code if closed.rcvd else 1006
            if code not in _DOCUMENTED[path]:
                raise Misbehaved(f"closed with {code}: {closed.rcvd}") from closed
            self._sync(self._client(path, wire), path, wire)
        finally:
            self._rig.check()
        if code:
            raise InvalidRequest(f"closed with {code}")  # counted as refused

    def _client(self, path: str, wire: str) -> ClientConnection:
        client = self._open.get((path, wire))
        if client is None:
            offered = [Subprotocol(f"qmt.v1.{wire}")] if path == "/ws/v1" else None
            client = self._open[path, wire] = connect(
                f"ws{self._rig.url[4:]}{path}",
                proxy=None,
                subprotocols=offered,
                max_size=None,
                compression=None,
                ping_interval=None,
                close_timeout=1,
            )
        return client

    def _sync(self, client: ClientConnection, path: str, wire: str) -> None:
        """Subscribe to something, and wait for what says so."""
        self._synced += 1
        if path != "/ws/v1":
            for code in CODES[:2]:  # one of them is new to it: its last tick comes
                name = "stocks" if path == "/ws/realtime" else "codes"
                client.send(json.dumps({name: [code]}))
            _until(client, lambda told: CODES[1] in json.loads(told))
            return
        name = f"sync {self._synced}"
        request = {"op": "subscribe", "id": name, "codes": [CODES[0]]}
        client.send(json.dumps(request) if wire == "json" else msgpack.packb(request))
        read: Callable[[Any], Any] = json.loads if wire == "json" else msgpack.unpackb
        _until(client, lambda told: read(told).get("id") == name)


def _until(client: ClientConnection, is_it: Callable[[Any], bool]) -> None:
    ends = time.monotonic() + _WITHIN_S
    try:
        while not is_it(client.recv(timeout=max(0.0, ends - time.monotonic()))):
            pass
    except TimeoutError:
        raise Misbehaved("a good subscription behind it is not served") from None


def _message(chance: random.Random, path: str, wire: str) -> bytes:
    valid = chance.choice(_VALID[path])
    act = chance.random()
    if act < 0.5:
        document = changed_document(chance, valid)
        return _packed(document) if wire == "msgpack" else encoded(document)
    data = msgpack.packb(valid) if wire == "msgpack" else json.dumps(valid).encode()
    if act < 0.8:
        others = [json.dumps(one).encode() for one in _VALID[path]]
        return changed(chance, data, others)
    if act < 0.9:
        return chance.randbytes(chance.choice((0, 1, 2, 16, 300, 70_000)))
    if act < 0.95:
        return chance.choice((b"[", b'{"a":', b"\x91", b"\x81\xa1x")) * chance.choice((30, 5_000))
    if act < 0.96:
        return data + b" " * chance.choice((900_000, 1_100_000))
    return data


def _packed(document: Any) -> bytes:
    try:
        return bytes(msgpack.packb(document))
    except (OverflowError, ValueError, TypeError, UnicodeEncodeError):
        return b"\xc1"


def _send(client: ClientConnection, how: str, data: bytes, chance: random.Random) -> None:
    if how == "text":
        client.send(data, text=True)
    elif how == "binary":
        client.send(data, text=False)
    elif how == "fragments":
        step = chance.choice((1, 7, 1000)) if len(data) < 5_000 else 20_000
        client.send([data[at : at + step] for at in range(0, len(data), step)] or [b""], text=True)
    else:
        _send_frame(client, data, chance)


def _send_frame(client: ClientConnection, data: bytes, chance: random.Random) -> None:
    """Send frames that make no message: a fragment without beginning or end, a bad opcode."""
    opcode = chance.choice((Opcode.CONT, Opcode.TEXT, Opcode.PING, Opcode.PONG))
    part = data[:120] if opcode in (Opcode.PING, Opcode.PONG) else data
    frame = Frame(opcode, part, fin=opcode in (Opcode.PING, Opcode.PONG))
    raw = frame.serialize(mask=True)
    if chance.random() < 0.3:
        raw = bytes([raw[0] | chance.choice((0x70, 0x03, 0x0B))]) + raw[1:]
    try:
        client.socket.sendall(raw)
    except OSError:
        pass  # the gateway has closed the connection: its code is looked at by who sends next


def make_cases() -> WebSocketCases:
    """Return the cases, in a child."""
    return WebSocketCases()


def run(seed: int, count: int, keep: Path | None = None) -> Report:
    """Run the target."""
    return in_children("websocket", seed, count, keep)


TARGET: Final = Target(
    "websocket",
    "messages to /ws/v1 (JSON and msgpack), /ws/realtime and /ws/whole_quote, each with a good "
    "subscription behind it",
    100_000,
    300,
    run,
)
