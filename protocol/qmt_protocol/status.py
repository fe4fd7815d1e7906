"""Heartbeats: what a process tells of itself, and how it is written."""

from __future__ import annotations

import os
import socket
from typing import Any, Final

import msgspec

from .errors import CodecError

__all__ = [
    "HEARTBEAT_EVERY_S",
    "LOST_AFTER_S",
    "Heartbeat",
    "decode_heartbeat",
    "encode_heartbeat",
]

HEARTBEAT_EVERY_S: Final = 1.0
LOST_AFTER_S: Final = 5.0
"""A process not heard of for so long is taken for dead."""


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
    """Counts of the role; a worker's ``busy`` (the running job), ``finished``, ``dead`` (what it
    found on the jobs server and could not use) and ``last_dead``, see `JobKeys.dead`."""

    @property
    def dead(self) -> str:
        """What a worker found on the jobs server and could not use, in words; empty: nothing."""
        count, last = self.figures.get("dead"), self.figures.get("last_dead")
        if not count or not isinstance(last, dict):
            return ""
        what = f"job {last['id']}" if "id" in last else f"key {last.get('key')}"
        return (
            f"{count} on the jobs server could not be used; the last, {what}: {last.get('reason')}"
        )

    @property
    def member(self) -> str:
        """Name of the process in ``status`` and ``seen``."""
        return f"{self.role}:{self.host}:{self.pid}"


def new_heartbeat(role: str, started_ms: int, **facts: Any) -> Heartbeat:
    """Return a heartbeat of this very process."""
    return Heartbeat(
        role=role, host=socket.gethostname(), pid=os.getpid(), started_ms=started_ms, **facts
    )


def encode_heartbeat(beat: Heartbeat) -> bytes:
    """Return a heartbeat as it lies in ``status`` under its member: plain JSON.

    Its writer sets ``seen`` to Redis time in ms in the same step: by that ages are told.
    """
    return msgspec.json.encode(beat)


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
