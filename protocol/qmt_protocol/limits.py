"""How much may come in at once from Redis, HTTP or a WebSocket: every bound, in one place.

Nothing that arrives is inflated: compressed Arrow buffers and HTTP content encodings are refused.
So what a thing takes in memory is bounded by what was sent of it, and that by these numbers.
"""

from __future__ import annotations

from typing import Final

__all__ = [
    "MAX_ARROW_BODY_BYTES",
    "MAX_ARROW_HEADER_BYTES",
    "MAX_BATCH",
    "MAX_CONTAINERS",
    "MAX_DEPTH",
    "MAX_DOCUMENT_BYTES",
    "MAX_EVENT_BYTES",
    "MAX_FRAME_BYTES",
    "MAX_HEARTBEATS",
    "MAX_HEARTBEAT_BYTES",
    "MAX_PROGRESS_BYTES",
    "MAX_RESULT_BYTES",
    "MAX_TEXTS",
    "MAX_TEXT_BYTES",
    "MAX_UNREADABLE",
]

_MIB: Final = 2**20

MAX_ARROW_HEADER_BYTES: Final = 4 * _MIB
"""Of one Arrow IPC message: a schema that carries a job's manifest, 10,000 absent codes in it."""
MAX_ARROW_BODY_BYTES: Final = 64 * _MIB
"""Of one Arrow IPC message. A worker's chunk has some 6 MiB, a gateway's batch 8,192 rows."""
MAX_RESULT_BYTES: Final = 1024 * _MIB
"""A job's table: 10 million bars."""
MAX_DOCUMENT_BYTES: Final = 32 * _MIB
"""One JSON document: the latest ticks of all markets take 15 MB."""
MAX_CONTAINERS: Final = 1_000_000
"""Arrays and objects in one JSON document: each takes some 70 bytes in memory, and 2 as text."""
MAX_DEPTH: Final = 32
"""Arrays and objects within each other."""
MAX_PROGRESS_BYTES: Final = _MIB
"""One entry of a job's progress; an error in it may name 10,000 codes."""
MAX_EVENT_BYTES: Final = 4 * _MIB
"""One event; a gap may name every code of all markets."""
MAX_HEARTBEAT_BYTES: Final = 64 * 2**10
MAX_HEARTBEATS: Final = 1_000
"""Processes that a status tells of, the newest."""
MAX_BATCH: Final = 500
"""Ticks or bars in one entry of a feed."""
MAX_UNREADABLE: Final = 50
"""Things that an answer names as unreadable, each by itself; the others are counted."""
MAX_FRAME_BYTES: Final = 8 * _MIB
"""One WebSocket message from a gateway: 30,000 ticks."""
MAX_TEXT_BYTES: Final = 64
"""A code, a period or a source in Arrow."""
MAX_TEXTS: Final = 200_000
"""Different ones of these in one batch: all instruments of all markets are fewer."""
