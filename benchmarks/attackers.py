"""Callers that mean no good: ``python -m benchmarks.attackers KIND HOST:PORT COUNT [KEY...]``.

``idle`` connects and says nothing; ``half`` sends half a head, or a head and no body; ``sockets``
and ``json_sockets`` subscribe to the whole market and never read; ``answers`` and ``arrow_answers``
ask for all stored ticks and never read. What the gateway closes comes again after a while. A line
of JSON says that all have been tried once, another at the end of standard input what became of
them.
"""

from __future__ import annotations

import asyncio
import json
import resource
import socket
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Final

import msgspec
from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException
from websockets.typing import Subprotocol

from qmt_protocol.live import JSON_SUBPROTOCOL, MSGPACK_SUBPROTOCOL

_COMING: Final = 200
"""Connections that are being made at the same time."""
_AGAIN_S: Final = 5.0
_WITHIN_S: Final = 10.0
_SMALL_BYTES: Final = 4096


@dataclass
class Counts:
    """What became of the connections."""

    made: int = 0
    refused: int = 0
    closed: int = 0


@dataclass
class Attack:
    """One process of attackers."""

    host: str
    port: int
    keys: list[str]
    counts: Counts
    door: asyncio.Semaphore

    async def forever(self, number: int, one: Callable[[Attack, int], Awaitable[None]]) -> None:
        """Be one caller, again and again."""
        while True:
            try:
                await one(self, number)
                self.counts.closed += 1
            except (OSError, EOFError, TimeoutError, asyncio.TimeoutError, WebSocketException):
                self.counts.refused += 1
            tried[number].set()
            await asyncio.sleep(_AGAIN_S)

    def key(self, number: int) -> str:
        return self.keys[number % len(self.keys)]


tried: list[asyncio.Event] = []


async def _until_closed(attack: Attack, number: int, said: bytes) -> None:
    async with attack.door:
        reader, writer = await asyncio.wait_for(
            asyncio.open_connection(attack.host, attack.port), _WITHIN_S
        )
    try:
        attack.counts.made += 1
        writer.write(said)
        await writer.drain()
        tried[number].set()
        while await reader.read(65536):
            pass
    finally:
        writer.close()


async def idle(attack: Attack, number: int) -> None:
    """Connect and say nothing."""
    await _until_closed(attack, number, b"")


async def half(attack: Attack, number: int) -> None:
    """Send half a head, or a head whose body never comes."""
    head = f"GET /api/v1/latest HTTP/1.1\r\nHost: {attack.host}:{attack.port}\r\nX-Begun: ".encode()
    if number % 2:
        head = (
            f"POST /api/v1/jobs/history HTTP/1.1\r\nHost: {attack.host}:{attack.port}\r\n"
            "Content-Type: application/json\r\nContent-Length: 100000\r\n\r\n{"
        ).encode()
    await _until_closed(attack, number, head)


async def sockets(attack: Attack, number: int, subprotocol: str = MSGPACK_SUBPROTOCOL) -> None:
    """Subscribe to the whole market and never read."""
    line = socket.socket()
    line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SMALL_BYTES)
    line.setblocking(False)
    await asyncio.wait_for(
        asyncio.get_running_loop().sock_connect(line, (attack.host, attack.port)), _WITHIN_S
    )
    async with attack.door:
        stream = await connect(
            f"ws://{attack.host}:{attack.port}/ws/v1",
            sock=line,
            max_queue=1,
            ping_interval=None,
            compression=None,
            subprotocols=[Subprotocol(subprotocol)],
            additional_headers={"X-API-Key": attack.key(number)},
        )
    async with stream:
        attack.counts.made += 1
        wish = {"op": "subscribe", "id": "all", "markets": ["SH", "SZ", "BJ"]}
        is_json = subprotocol == JSON_SUBPROTOCOL
        await stream.send(json.dumps(wish) if is_json else _encode(wish))
        tried[number].set()
        await stream.wait_closed()


async def json_sockets(attack: Attack, number: int) -> None:
    """Do the same by JSON."""
    await sockets(attack, number, JSON_SUBPROTOCOL)


async def answers(attack: Attack, number: int, form: str = "json") -> None:
    """Ask for all stored ticks and never read."""
    line = socket.socket()
    line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SMALL_BYTES)
    line.setblocking(False)
    loop = asyncio.get_running_loop()
    await asyncio.wait_for(loop.sock_connect(line, (attack.host, attack.port)), _WITHIN_S)
    attack.counts.made += 1
    head = (
        f"GET /api/v1/stored/ticks?codes=*&format={form} HTTP/1.1\r\n"
        f"Host: {attack.host}:{attack.port}\r\nX-API-Key: {attack.key(number)}\r\n\r\n"
    )
    await loop.sock_sendall(line, head.encode())
    tried[number].set()
    await asyncio.Event().wait()


async def arrow_answers(attack: Attack, number: int) -> None:
    """Do the same for Arrow."""
    await answers(attack, number, "arrow")


def _encode(message: Mapping[str, object]) -> bytes:
    return msgspec.msgpack.encode(message)


async def run(kind: str, address: str, count: int, keys: list[str]) -> None:
    """Attack until standard input ends."""
    kinds = (idle, half, sockets, json_sockets, answers, arrow_answers)
    one = {each.__name__: each for each in kinds}[kind]
    host, _, port = address.partition(":")
    attack = Attack(host, int(port), keys or [""], Counts(), asyncio.Semaphore(_COMING))
    tried[:] = [asyncio.Event() for _ in range(count)]
    tasks = [asyncio.create_task(attack.forever(number, one)) for number in range(count)]
    for event in tried:
        await event.wait()
    print(json.dumps(asdict(attack.counts)), flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    print(json.dumps(asdict(attack.counts)), flush=True)
    for task in tasks:
        task.cancel()


if __name__ == "__main__":
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    asyncio.run(run(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4:]))
