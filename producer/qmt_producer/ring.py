"""The ring: what the terminal pushed, kept on disk until Redis has it and a while longer.

It is one SQLite file in WAL mode, so a killed process loses nothing it had committed. Batches are
numbered without holes; publishing is a cursor along those numbers. The file is locked to one
process.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from qmt_protocol.errors import ConfigurationError, QMTError

__all__ = ["Batch", "Entry", "Ring", "RingUnwritable"]


class RingUnwritable(QMTError):
    """The disk refuses the ring's file; the ticks concerned are named as a gap."""

    slug = "ring-unwritable"


Entry = tuple[str, int, bytes]
"""Code, ms that orders it, ``t1`` bytes."""

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS ring (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    market TEXT NOT NULL,
    received_ms INTEGER NOT NULL,
    ticks INTEGER NOT NULL,
    body BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS event (number INTEGER PRIMARY KEY AUTOINCREMENT, body TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""
_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(list[Entry]).decode


@dataclass(frozen=True)
class Batch:
    """One numbered batch of one market."""

    number: int
    market: str
    received_ms: int
    entries: list[Entry]


class Ring:
    """A bounded, numbered, crash-proof queue of batches, and of events beside them.

    Parameters
    ----------
    path
        The SQLite file; made when missing.
    max_bytes
        Size of the batches kept; beyond it the oldest are given up, see `append`.

    Raises
    ------
    ConfigurationError
        When another process holds the file, or it cannot be opened.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(
                path, timeout=1.0, isolation_level=None, check_same_thread=False
            )
            self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.executescript(_SCHEMA)
            self._db.execute(
                "INSERT OR IGNORE INTO meta VALUES ('ring', ?)", (uuid.uuid4().hex[:12],)
            )
        except (sqlite3.Error, OSError) as error:
            raise ConfigurationError(
                f"The ring {path} cannot be used: {error}.",
                hint="Is another producer running with it? Give each its own --ring.",
            ) from error
        self.id: str = self._one("SELECT value FROM meta WHERE name='ring'")
        self._bytes: int = self._one("SELECT coalesce(sum(length(body)), 0) FROM ring")
        self._published: int = int(
            self._one("SELECT coalesce(max(value), '0') FROM meta WHERE name='published'")
        )

    def _one(self, query: str, *values: Any) -> Any:
        with self._lock:
            return self._db.execute(query, values).fetchone()[0]

    @property
    def published(self) -> int:
        """Number of the last batch that Redis acknowledged."""
        return self._published

    @property
    def last(self) -> int:
        """Number of the newest batch; 0 in a new ring."""
        return int(self._one("SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name='ring'"))

    @property
    def last_received_ms(self) -> int:
        """When the newest batch still kept was received; 0 when there is none."""
        return int(self._one("SELECT coalesce(max(received_ms), 0) FROM ring"))

    def append(self, batches: Iterable[tuple[str, int, list[Entry]]]) -> list[Batch]:
        """Store batches (market, receipt, entries) in one transaction.

        Returns
        -------
        list of Batch
            Unpublished batches that had to be given up for the ring's size: lost ticks, to be
            named in a gap event.

        Raises
        ------
        RingUnwritable
            When the disk refuses; nothing of this call is stored.
        """
        lost: list[Batch] = []
        before = self._bytes
        try:
            with self._transaction():
                self._insert(batches)
                lost = self._shrink()
        except sqlite3.Error as error:
            self._bytes = before
            raise RingUnwritable(f"The ring cannot be written: {error}.") from error
        return lost

    def _insert(self, batches: Iterable[tuple[str, int, list[Entry]]]) -> None:
        for market, received_ms, entries in batches:
            body = _encode(entries)
            self._db.execute(
                "INSERT INTO ring (market, received_ms, ticks, body) VALUES (?, ?, ?, ?)",
                (market, received_ms, len(entries), body),
            )
            self._bytes += len(body)

    def _shrink(self) -> list[Batch]:
        lost: list[Batch] = []
        while self._bytes > self._max_bytes:
            row = self._db.execute(
                "DELETE FROM ring WHERE number = (SELECT min(number) FROM ring)"
                " RETURNING number, market, received_ms, body"
            ).fetchone()
            if row is None:
                break
            self._bytes -= len(row[3])
            if row[0] > self._published:
                lost.append(Batch(row[0], row[1], row[2], _decode(row[3])))
        return lost

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock:
            self._db.execute("BEGIN")
            try:
                yield
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def after(self, number: int, limit: int) -> list[Batch]:
        """Return up to `limit` batches that follow the given number, in order."""
        with self._lock:
            rows = self._db.execute(
                "SELECT number, market, received_ms, body FROM ring"
                " WHERE number > ? ORDER BY number LIMIT ?",
                (number, limit),
            ).fetchall()
        return [Batch(row[0], row[1], row[2], _decode(row[3])) for row in rows]

    def acknowledge(self, number: int) -> None:
        """Note that Redis holds all batches up to the given number."""
        self._published = number

    def tidy(self, before_ms: int) -> None:
        """Write down the cursor and drop published batches received before the given time."""
        with self._transaction():
            self._db.execute(
                "INSERT OR REPLACE INTO meta VALUES ('published', ?)", (str(self._published),)
            )
            gone = self._db.execute(
                "SELECT coalesce(sum(length(body)), 0) FROM ring"
                " WHERE number <= ? AND received_ms < ?",
                (self._published, before_ms),
            ).fetchone()[0]
            self._db.execute(
                "DELETE FROM ring WHERE number <= ? AND received_ms < ?",
                (self._published, before_ms),
            )
            self._bytes -= gone

    def add_event(self, event: dict[str, Any]) -> None:
        """Keep an event until it is told."""
        with self._lock:
            self._db.execute(
                "INSERT INTO event (body) VALUES (?)", (json.dumps(event, ensure_ascii=False),)
            )

    def events(self, limit: int = 100) -> list[tuple[int, str]]:
        """Return the oldest untold events as (number, JSON)."""
        with self._lock:
            return self._db.execute(
                "SELECT number, body FROM event ORDER BY number LIMIT ?", (limit,)
            ).fetchall()

    def told(self, number: int) -> None:
        """Forget events up to the given number."""
        with self._lock:
            self._db.execute("DELETE FROM event WHERE number <= ?", (number,))

    def close(self) -> None:
        """Write down the cursor and release the file."""
        self.tidy(0)
        with self._lock:
            self._db.close()
