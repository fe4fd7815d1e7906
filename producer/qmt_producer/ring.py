"""The ring: what the terminal pushed, kept on disk until Redis has it and a while longer.

It is one SQLite file in WAL mode, so a killed process loses nothing it had committed. Batches are
numbered without holes; publishing a market is a cursor along its numbers. The file is locked to
one process.
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
from typing import Any, Final, Literal

import msgspec

from qmt_protocol.errors import ConfigurationError, QMTError

__all__ = ["Batch", "Entry", "Kind", "NewBatch", "Ring", "RingUnwritable"]


class RingUnwritable(QMTError):
    """The disk refuses the ring's file; the ticks concerned are named as a gap."""

    slug = "ring-unwritable"


Kind = Literal["tick", "bar"]
Entry = tuple[str, int, bytes]
"""A tick: code, ms that orders it, ``t1``. A bar: its `want`, its label, ``k1``."""
NewBatch = tuple[str, Kind, int, list[Entry]]
"""Market, kind, receipt in ms, entries."""

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS ring (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    market TEXT NOT NULL,
    kind TEXT NOT NULL,
    received_ms INTEGER NOT NULL,
    body BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS ring_market ON ring (market, number);
CREATE TABLE IF NOT EXISTS event (number INTEGER PRIMARY KEY AUTOINCREMENT, body TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS silence (from_ms INTEGER NOT NULL, to_ms INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS acked (market TEXT PRIMARY KEY, number INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""
_COLUMNS: Final = "number, market, kind, received_ms, body"
_DROP_OLDEST: Final = (
    f"DELETE FROM ring WHERE number = (SELECT min(number) FROM ring) RETURNING {_COLUMNS}"  # noqa: S608
)
_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(list[Entry]).decode


@dataclass(frozen=True)
class Batch:
    """One numbered batch of one market, all ticks or all bars."""

    number: int
    market: str
    kind: Kind
    received_ms: int
    entries: list[Entry]


class Ring:
    """A bounded, numbered, crash-proof queue of batches, and what must be told beside them.

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
        self._acked: dict[str, int] = dict(self._all("SELECT market, number FROM acked"))

    def _one(self, query: str, *values: Any) -> Any:
        with self._lock:
            return self._db.execute(query, values).fetchone()[0]

    def _all(self, query: str, *values: Any) -> list[Any]:
        with self._lock:
            return self._db.execute(query, values).fetchall()

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

    # -- batches ------------------------------------------------------------------------------

    def append(self, batches: Iterable[NewBatch]) -> list[Batch]:
        """Store batches in one transaction.

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
        before = self._bytes
        try:
            with self._transaction():
                for market, kind, received_ms, entries in batches:
                    body = _encode(entries)
                    self._db.execute(
                        "INSERT INTO ring (market, kind, received_ms, body) VALUES (?, ?, ?, ?)",
                        (market, kind, received_ms, body),
                    )
                    self._bytes += len(body)
                self._write_acked()
                return self._shrink()
        except sqlite3.Error as error:
            self._bytes = before
            raise RingUnwritable(f"The ring cannot be written: {error}.") from error

    def _write_acked(self) -> None:
        self._db.executemany(
            "INSERT OR REPLACE INTO acked VALUES (?, ?)", list(self._acked.items())
        )

    def _shrink(self) -> list[Batch]:
        lost: list[Batch] = []
        while self._bytes > self._max_bytes:
            row = self._db.execute(_DROP_OLDEST).fetchone()
            if row is None:
                break
            self._bytes -= len(row[4])
            if row[0] > self._acked.get(row[1], 0):
                lost.append(_batch(row))
        return lost

    def after(self, market: str, number: int, limit: int) -> list[Batch]:
        """Return up to `limit` of a market's batches that follow the given number, in order."""
        rows = self._all(
            f"SELECT {_COLUMNS} FROM ring"  # noqa: S608
            " WHERE market = ? AND number > ? ORDER BY number LIMIT ?",
            market,
            number,
            limit,
        )
        return [_batch(row) for row in rows]

    def waiting(self, market: str, number: int) -> int:
        """Return how many of a market's batches follow the given number."""
        return int(
            self._one("SELECT count(*) FROM ring WHERE market = ? AND number > ?", market, number)
        )

    def lag(self, market: str, number: int) -> tuple[int, int]:
        """Return number and bytes of a market's batches that follow the given number."""
        rows = self._all(
            "SELECT count(*), coalesce(sum(length(body)), 0) FROM ring"
            " WHERE market = ? AND number > ?",
            market,
            number,
        )
        return int(rows[0][0]), int(rows[0][1])

    def oldest_after(self, market: str, number: int) -> int:
        """Return when the first of a market's batches behind a number was received; 0: none."""
        rows = self._all(
            "SELECT received_ms FROM ring WHERE market = ? AND number > ? ORDER BY number LIMIT 1",
            market,
            number,
        )
        return int(rows[0][0]) if rows else 0

    @property
    def markets(self) -> list[str]:
        """Markets of which batches are kept."""
        return [market for (market,) in self._all("SELECT DISTINCT market FROM ring")]

    @property
    def size_bytes(self) -> int:
        """Size of the batches kept."""
        return self._bytes

    def number_before(self, market: str, received_ms: int) -> int:
        """Return the number of a market's last batch received before a time; 0 for none."""
        return int(
            self._one(
                "SELECT coalesce(max(number), 0) FROM ring WHERE market = ? AND received_ms < ?",
                market,
                received_ms,
            )
        )

    def first(self, market: str) -> tuple[int, int]:
        """Return number and receipt of the oldest batch kept of a market; zeros for none."""
        rows = self._all(
            "SELECT number, received_ms FROM ring WHERE market = ? ORDER BY number LIMIT 1", market
        )
        return rows[0] if rows else (0, 0)

    def acked(self, market: str) -> int:
        """Return the number of a market's last batch that Redis acknowledged."""
        return self._acked.get(market, 0)

    def acknowledge(self, market: str, number: int) -> None:
        """Note that Redis holds a market's batches up to the given number."""
        self._acked[market] = number

    def tidy(self, keep_from: dict[str, int], before_ms: int) -> None:
        """Drop what was received before a time and is at or below its market's cursor.

        Parameters
        ----------
        keep_from
            Market to the cursor below which nothing will be asked for again.
        before_ms
            Batches received later stay, so that history lost by Redis can be published again.
        """
        with self._transaction():
            self._write_acked()
            for market, number in keep_from.items():
                where = "WHERE market = ? AND number <= ? AND received_ms < ?"
                values = (market, number, before_ms)
                gone = self._db.execute(
                    f"SELECT coalesce(sum(length(body)), 0) FROM ring {where}",  # noqa: S608
                    values,
                ).fetchone()[0]
                self._db.execute(f"DELETE FROM ring {where}", values)  # noqa: S608
                self._bytes -= gone
            self._db.execute("DELETE FROM silence WHERE to_ms < ?", (before_ms,))

    # -- silences -----------------------------------------------------------------------------

    @property
    def last_received_ms(self) -> int:
        """When the newest batch still kept was received; 0 when there is none."""
        return int(self._one("SELECT coalesce(max(received_ms), 0) FROM ring"))

    def add_silence(self, from_ms: int, to_ms: int) -> None:
        """Note a time in which nothing could be heard from the terminal."""
        with self._lock:
            self._db.execute("INSERT INTO silence VALUES (?, ?)", (from_ms, to_ms))

    def silences(self, since_ms: int) -> list[tuple[int, int]]:
        """Return the noted silences that end after a time, cut to it, in order."""
        return [
            (max(from_ms, since_ms), to_ms)
            for from_ms, to_ms in self._all(
                "SELECT from_ms, to_ms FROM silence WHERE to_ms > ? ORDER BY from_ms", since_ms
            )
        ]

    # -- events -------------------------------------------------------------------------------

    def add_event(self, event: dict[str, Any]) -> None:
        """Keep an event until it is told."""
        with self._lock:
            self._db.execute(
                "INSERT INTO event (body) VALUES (?)", (json.dumps(event, ensure_ascii=False),)
            )

    def events(self, limit: int = 100) -> list[tuple[int, str]]:
        """Return the oldest untold events as (number, JSON)."""
        return self._all("SELECT number, body FROM event ORDER BY number LIMIT ?", limit)

    def told(self, number: int) -> None:
        """Forget events up to the given number."""
        with self._lock:
            self._db.execute("DELETE FROM event WHERE number <= ?", (number,))

    def close(self) -> None:
        """Write down the cursors and release the file."""
        self.tidy({}, 0)
        with self._lock:
            self._db.close()


def _batch(row: tuple[int, str, Kind, int, bytes]) -> Batch:
    number, market, kind, received_ms, body = row
    return Batch(number, market, kind, received_ms, _decode(body))
