"""Heartbeats: what a process tells of itself, and the one way to write it to Redis."""

from __future__ import annotations

import os
import socket
from typing import Any, Final

import msgspec

from .errors import CodecError
from .keys import Keys

__all__ = [
    "HEARTBEAT_EVERY_S",
    "HEARTBEAT_LUA",
    "LOST_AFTER_S",
    "Heartbeat",
    "decode_heartbeat",
    "heartbeat_call",
]

HEARTBEAT_EVERY_S: Final = 1.0
LOST_AFTER_S: Final = 5.0
"""A process not heard of for so long is taken for dead."""

HEARTBEAT_LUA: Final = """
local now = redis.call('TIME')
local now_ms = now[1] * 1000 + math.floor(now[2] / 1000)
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('ZADD', KEYS[2], now_ms, ARGV[1])
return now_ms
"""
"""Writes one heartbeat; returns Redis time in ms, by which ages are told."""


class Heartbeat(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What a process last said of itself."""

    role: str
    """``producer``, ``worker``, ``windows``, ``gateway`` or ``archive``."""
    host: str = ""
    pid: int = 0
    started_ms: int = 0
    version: str = ""
    simulated: bool = False
    """True while the data come from the simulator."""
    queues: list[str] = []
    """Job queues that a worker serves."""
    markets: list[str] = []
    """Markets that a producer publishes."""
    terminal: dict[str, Any] = {}
    """``state`` (``ok``, ``not_running``, ``waiting_for_login``, ``quote_server_down``, a
    producer's ``deaf``, a worker's ``restarting``), ``reason`` and ``since_ms``; once one was
    connected also ``address``, ``edition``, ``version``, ``broker``, ``path``,
    ``xtquant_version`` and ``xtquant_path``; a producer's ``trading_day`` (``day``, ``trades``,
    ``source``); of a simulated one ``clock``: its now is market_ms + (now - wall_ms) * speed."""
    rates: dict[str, float] = {}
    figures: dict[str, Any] = {}

    @property
    def member(self) -> str:
        """Name of the process in ``status`` and ``seen``."""
        return f"{self.role}:{self.host}:{self.pid}"


def new_heartbeat(role: str, started_ms: int, **facts: Any) -> Heartbeat:
    """Return a heartbeat of this very process."""
    return Heartbeat(
        role=role, host=socket.gethostname(), pid=os.getpid(), started_ms=started_ms, **facts
    )


def heartbeat_call(keys: Keys, beat: Heartbeat) -> tuple[list[str], list[str | bytes]]:
    """Return keys and arguments for `HEARTBEAT_LUA`."""
    return [keys.status, keys.seen], [beat.member, msgspec.json.encode(beat)]


def decode_heartbeat(data: bytes) -> Heartbeat:
    """Decode a value of ``status``.

    Raises
    ------
    CodecError
        When it is no heartbeat.
    """
    try:
        return msgspec.json.decode(data, type=Heartbeat)
    except msgspec.MsgspecError as error:
        raise CodecError(f"Not a heartbeat: {error}.") from error
