"""Who runs a job: a mark on the jobs server that outlives the process which made it."""

from __future__ import annotations

import os
import socket
from functools import cache
from typing import Final

import msgspec
import psutil

__all__ = ["ENDED", "Claim", "claim_of_this_process", "is_of_nobody"]

ENDED: Final = b"ended"
"""What a claim says when its job is over."""
_SAME_S: Final = 2.0
"""Two looks at a process's start differ by so much at most: the system's clock is set meanwhile."""


class Claim(msgspec.Struct, frozen=True):
    """The process that runs a job."""

    host: str
    pid: int
    started_s: float


@cache
def _mine() -> Claim:
    return Claim(socket.gethostname(), os.getpid(), psutil.Process().create_time())


def claim_of_this_process() -> bytes:
    """Return what this process writes."""
    return msgspec.json.encode(_mine())


def is_of_nobody(claimed: bytes) -> bool:
    """Return whether a claim's process was one of this machine that is gone, or is this very one.

    This one looks between two jobs: what it claimed and did not end it cannot have told the end of.
    """
    try:
        claim = msgspec.json.decode(claimed, type=Claim)
    except (msgspec.MsgspecError, ValueError):
        return False
    mine = _mine()
    if claim.host != mine.host:
        return False
    if claim.pid == mine.pid:
        return True
    try:
        started_s = psutil.Process(claim.pid).create_time()
    except (psutil.NoSuchProcess, ValueError, OverflowError):
        return True
    except psutil.AccessDenied:
        return False
    return abs(started_s - claim.started_s) > _SAME_S
