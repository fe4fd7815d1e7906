"""One thing that may lie in Redis and that no reader may die of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import redis


@dataclass(frozen=True)
class Content:
    """A content and who can write it.

    Attributes
    ----------
    name : str
        What it is, in letters, digits and dashes; a job's id where it is one.
    role : str
        Redis user whose rights (`qmt_protocol.redis_users`) suffice to write it.
    server : str
        Where it lies.
    write : callable
        Writes it, by a connection of that role.
    """

    name: str
    role: str
    server: Literal["streams", "jobs"]
    write: Callable[[redis.Redis], None]
