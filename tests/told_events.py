"""What producers told in Redis, read as JSON from every stream of theirs."""

from __future__ import annotations

import json
from typing import Any

import redis

__all__ = ["told_events"]


def told_events(
    streams: redis.Redis, prefix: str = "qmt", after: str = "-"
) -> list[dict[str, Any]]:
    """Return events of all kinds in the order told, behind an entry id."""
    first = after if after == "-" else f"({after}"
    names = [f"{prefix}:events{of}" for of in ("", ":producer", ":refused")]
    entries = [entry for name in names for entry in streams.xrange(name, min=first)]
    entries.sort(key=lambda entry: tuple(map(int, entry[0].split(b"-"))))
    return [json.loads(fields[b"e"]) for _, fields in entries]
