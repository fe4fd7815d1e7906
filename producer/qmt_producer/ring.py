"""The ring: what the terminal pushed, kept on disk until Redis has it and a while longer.

It is one SQLite file in WAL mode, so a killed process loses nothing it had committed. Batches are
numbered without holes; publishing a market is a cursor along its numbers. The file is locked to
one process.

What is given up for the ring's size is noted in the same transaction, and what may have been sent
already is not given up: so a batch is either published or named as lost, whatever is killed when.
"""

from __future__ import annotations

import contextlib
import json
import math
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import structlog

from qmt_protocol.errors import ConfigurationError, QMTError
from qmt_protocol.times import DAY_MS

from .candidates import Candidates, Entry, Kind
from .losses import Codes, gap_of, merge, merge_gaps, spans

__all__ = ["Batch", "NewBatch", "Ring", "RingUnwritable", "Silence"]


log: Final = structlog.get_logger(__name__)


class RingUnwritable(QMTError):
    """The disk refuses the ring's file; the ticks concerned are named as a gap."""

    slug = "ring-unwritable"


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
CREATE TRIGGER IF NOT EXISTS event_bound AFTER INSERT ON event
BEGIN DELETE FROM event WHERE number <= new.number - 1000; END;
CREATE TABLE IF NOT EXISTS gap (number INTEGER PRIMARY KEY AUTOINCREMENT, body TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS silent (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    from_ms INTEGER NOT NULL,
    to_ms INTEGER,
    reason TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS acked (market TEXT PRIMARY KEY, number INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS sent (market TEXT PRIMARY KEY, number INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS lost (
    number INTEGER PRIMARY KEY,
    market TEXT NOT NULL,
    received_ms INTEGER NOT NULL,
    codes BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS gone (
    market TEXT PRIMARY KEY, number INTEGER NOT NULL, received_ms INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""
_FORMAT: Final = "2"
"""Of the batches' bodies; see `Candidates`."""
_COLUMNS: Final = "number, market, kind, received_ms, body"
_GONE: Final = """
INSERT INTO gone VALUES (?, ?, ?) ON CONFLICT (market) DO UPDATE SET
    number = max(number, excluded.number), received_ms = max(received_ms, excluded.received_ms)
"""
_EVENT: Final = "INSERT INTO event (body) VALUES (?)"
_GAP: Final = "INSERT INTO gap (body) VALUES (?)"
_SILENCE_KEPT_MS: Final = DAY_MS
_MOST_DEFERRED: Final = 1000
_LOST_ROWS: Final = 64
_GAP_ROWS: Final = 64
_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(Candidates).decode
_decode_codes: Final = msgspec.msgpack.Decoder(Codes).decode


@dataclass(frozen=True)
class Batch:
    """One numbered batch of one market, all ticks or all bars."""

    number: int
    market: str
    kind: Kind
    received_ms: int
    candidates: Candidates
    size_bytes: int


@dataclass(frozen=True)
class Silence:
    """A time in which nothing could be heard from the terminal."""

    number: int
    from_ms: int
    """When the last push before it was received; 0: the ring begins behind it."""
    to_ms: int
    reason: str


class Ring:
    """A bounded, numbered, crash-proof queue of batches, and what must be told beside them.

    Parameters
    ----------
    path
        The SQLite file; made when missing.
    max_bytes
        Size of the batches kept; beyond it the oldest are given up, see `take_lost`. What `take`
        has given away to be sent stays all the same.

    Raises
    ------
    ConfigurationError
        When another process holds the file, or it cannot be opened.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._closed = False
        self._lock = threading.Lock()
        opened: sqlite3.Connection | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = opened = sqlite3.connect(
                path, timeout=1.0, isolation_level=None, check_same_thread=False
            )
            self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.executescript(_SCHEMA)
            self._db.execute(
                "INSERT OR IGNORE INTO meta VALUES ('ring', ?)", (uuid.uuid4().hex[:12],)
            )
            self._check_format(path)
        except (sqlite3.Error, OSError) as error:
            if opened is not None:
                opened.close()  # on Windows nobody could delete or move the file otherwise
            full = "full" in str(error)
            raise ConfigurationError(
                f"The ring {path} cannot be used: {error}.",
                hint="Make room on the disk."
                if full
                else "Is another producer running with it? Give each its own --ring.",
            ) from error
        self.id: str = self._one("SELECT value FROM meta WHERE name='ring'")
        self._bytes: int = self._one("SELECT coalesce(sum(length(body)), 0) FROM ring")
        self._acked: dict[str, int] = dict(self._all("SELECT market, number FROM acked"))
        self._sent: dict[str, int] = dict(self._all("SELECT market, number FROM sent"))
        self._cursor: dict[str, int] = {}
        self._heard_ms = self._last_heard_ms()
        self._deferred: list[tuple[str, tuple[Any, ...]]] = []
        self._forgotten_up_to = dict.fromkeys(("event", "gap"), 0)
        # Begins of the silences, for a look at each batch; the first is the oldest.
        self._silent: dict[int, int] = dict(self._all("SELECT number, from_ms FROM silent"))

    def _check_format(self, path: Path) -> None:
        """Refuse a file that holds batches of another version; it is left as it is."""
        if not self._all("SELECT 1 FROM ring LIMIT 1"):
            self._db.execute("INSERT OR REPLACE INTO meta VALUES ('format', ?)", (_FORMAT,))
        elif not self._all("SELECT 1 FROM meta WHERE name = 'format' AND value = ?", _FORMAT):
            self._db.close()
            raise ConfigurationError(
                f"The ring {path} holds ticks as another version of the producer wrote them.",
                hint="Publish them with that version, or move the file away.",
            )

    def _one(self, query: str, *values: Any) -> Any:
        with self._lock:
            return self._db.execute(query, values).fetchone()[0]

    def _all(self, query: str, *values: Any) -> list[Any]:
        with self._lock:
            return self._db.execute(query, values).fetchall()

    def _last_heard_ms(self) -> int:
        rows = self._all(
            "SELECT received_ms FROM ring WHERE kind = 'tick' ORDER BY number DESC LIMIT 1"
        )
        noted = self._all("SELECT value FROM meta WHERE name = 'heard_ms'")
        return max((int(row[0]) for row in [*rows, *noted]), default=0)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock:
            self._db.execute("BEGIN")
            try:
                for statement, values in self._deferred:
                    self._db.execute(statement, values)
                yield
                self._db.execute("COMMIT")
                self._deferred.clear()
            except BaseException:
                if self._db.in_transaction:  # a full disk may have ended it by itself
                    self._db.execute("ROLLBACK")
                raise

    def _soon(self, statement: str, *values: Any) -> None:
        """Write now or, where the disk refuses, in the next transaction that it takes.

        So what is told of a time without a disk is there as soon as anything of later is.
        """
        with self._lock:
            # What is only of interest leaves room for what must not be lost.
            most = _MOST_DEFERRED // 2 if statement == _EVENT else _MOST_DEFERRED
            if len(self._deferred) >= most:
                log.error("the disk of the ring is full for too long; an event is not kept")
                return
            self._deferred.append((statement, values))
        with contextlib.suppress(sqlite3.Error), self._transaction():
            pass

    @property
    def writable(self) -> bool:
        """Whether the disk took the last of what was to be told."""
        return not self._deferred

    # -- batches ------------------------------------------------------------------------------

    def append(self, batches: Iterable[NewBatch]) -> None:
        """Store batches in one transaction, in the order of their receipt.

        Where they exceed the ring's size, the oldest go: those that Redis has without a word,
        others are told by `take_lost`.

        Raises
        ------
        RingUnwritable
            When the disk refuses; nothing of this call is stored.
        """
        before, heard_ms = self._bytes, self._heard_ms
        try:
            with _unwritable(), self._transaction():
                for market, kind, received_ms, entries in batches:
                    body = _encode(Candidates.of(kind, entries))
                    self._db.execute(
                        "INSERT INTO ring (market, kind, received_ms, body) VALUES (?, ?, ?, ?)",
                        (market, kind, received_ms, body),
                    )
                    self._bytes += len(body)
                    if kind == "tick":  # a bar may be made by the clock, behind its push
                        heard_ms = received_ms
                self._write_cursors()
                self._shrink()
        except RingUnwritable:
            self._bytes = before
            raise
        self._heard_ms = heard_ms

    def _write_cursors(self) -> None:
        for table, numbers in (("acked", self._acked), ("sent", self._sent)):
            self._db.executemany(
                f"INSERT OR REPLACE INTO {table} VALUES (?, ?)",  # noqa: S608
                list(numbers.items()),
            )

    def _done(self, market: str) -> int:
        """Return the number up to which a market's batches need not be published any more."""
        return max(self._acked.get(market, 0), self._cursor.get(market, 0))

    def _shrink(self) -> None:
        if self._bytes <= self._max_bytes:
            return
        held = [(one, self._done(one), last) for one, last in self._sent.items()]
        held = [(one, done, last) for one, done, last in held if done < last]
        keep = "".join(" AND NOT (market = ? AND number > ? AND number <= ?)" for _ in held)
        values = [value for one in held for value in one]
        drop = (
            f"DELETE FROM ring WHERE number = (SELECT number FROM ring WHERE 1{keep}"  # noqa: S608
            f" ORDER BY number LIMIT 1) RETURNING {_COLUMNS}"
        )
        while self._bytes > self._max_bytes:
            row = self._db.execute(drop, values).fetchone()
            if row is None:
                break
            self._bytes -= len(row[4])
            number, market, _, received_ms, body = row
            if number <= self._done(market):
                self._db.execute(_GONE, (market, number, received_ms))
            else:
                candidates = _decode(body)
                codes = spans(zip(candidates.names, candidates.ats, strict=True))
                self._db.execute(
                    "INSERT INTO lost VALUES (?, ?, ?, ?)",
                    (number, market, received_ms, _encode(codes)),
                )

    def take_lost(self, is_ours: Callable[[str], bool], *, hold: bool) -> dict[str, Any] | None:
        """Make one gap event of the batches given up since the last call, and keep it until told.

        Parameters
        ----------
        is_ours
            Tells whether this producer publishes a market. What it gave up of others' is what it
            did not hear, see `gone`.
        hold
            Whether to go on gathering, in one row a market, while nothing can be told.

        Returns
        -------
        dict or None
            The event, already among `gaps`.

        Raises
        ------
        RingUnwritable
            When the disk refuses; what was given up is told later.
        """
        rows = self._all("SELECT number, market, received_ms, codes FROM lost ORDER BY number")
        if not rows or (hold and len(rows) <= _LOST_ROWS) or not self.writable:
            return None
        lost: dict[str, tuple[int, int, Codes]] = {}
        for number, market, received_ms, body in rows:
            _, _, codes = lost.setdefault(market, (0, 0, {}))
            merge(codes, _decode_codes(body))
            lost[market] = (number, received_ms, codes)
        event = None
        with _unwritable(), self._transaction():
            self._db.execute("DELETE FROM lost WHERE number <= ?", (rows[-1][0],))
            named: Codes = {}
            for market, (number, received_ms, codes) in lost.items():
                if hold:
                    row = (number, market, received_ms, _encode(codes))
                    self._db.execute("INSERT INTO lost VALUES (?, ?, ?, ?)", row)
                elif is_ours(market):
                    merge(named, codes)
                else:
                    self._db.execute(_GONE, (market, number, received_ms))
            if named:
                event = {"at_ms": time.time_ns() // 1_000_000, **gap_of("ring full", named)}
                self._write_gap(event)
        return event

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

    def take(self, market: str, number: int, limit: int, most_bytes: int) -> list[Batch]:
        """Return the batches that follow the given number, in order, to be sent.

        The ring keeps them from now on until they are acknowledged: whatever becomes of the
        answer, they may have reached Redis. What lies at or below the number is done with.

        Parameters
        ----------
        limit, most_bytes
            Most batches, and most bytes of them; one at least.
        """
        with self._lock:
            found: list[Batch] = []
            size_bytes = 0
            for row in self._db.execute(
                f"SELECT {_COLUMNS} FROM ring"  # noqa: S608
                " WHERE market = ? AND number > ? ORDER BY number LIMIT ?",
                (market, number, limit),
            ):
                size_bytes += len(row[4])
                if found and size_bytes > most_bytes:
                    break
                found.append(_batch(row))
            self._cursor[market] = number
            news = bool(found) and found[-1].number > self._sent.get(market, 0)
            if news:
                self._sent[market] = found[-1].number
        if news:
            # A disk that refuses does not stop the publishing; it only takes nothing more in.
            with contextlib.suppress(sqlite3.Error), self._transaction():
                self._write_cursors()
        return found

    def gone(self, market: str) -> tuple[int, int]:
        """Return number and receipt of a market's newest batch that went without being named.

        Zeros for none. Batches named as lost do not count.
        """
        rows = self._all("SELECT number, received_ms FROM gone WHERE market = ?", market)
        return rows[0] if rows else (0, 0)

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
        self._acked = {**self._acked, market: number}  # another thread may be reading it

    def rewind(self, market: str, number: int) -> None:
        """Note that Redis holds a market's batches only up to the given number."""
        with self._lock:
            self._acked = {**self._acked, market: number}
            self._sent[market] = self._cursor[market] = number

    def tidy(self, keep_from: dict[str, int], before_ms: int) -> None:
        """Drop what was received before a time and is at or below its market's cursor.

        Parameters
        ----------
        keep_from
            Market to the cursor below which nothing will be asked for again.
        before_ms
            Batches received later stay, so that history lost by Redis can be published again.

        Raises
        ------
        RingUnwritable
            When the disk refuses; nothing is dropped.
        """
        size_bytes = self._bytes
        try:
            with _unwritable(), self._transaction():
                self._tidy(keep_from, before_ms)
                left = self._db.execute("SELECT number, from_ms FROM silent")
                silent = dict(left.fetchall())
        except RingUnwritable:
            self._bytes = size_bytes
            raise
        self._silent = silent

    def _tidy(self, keep_from: dict[str, int], before_ms: int) -> None:
        self._write_cursors()
        self._db.execute(
            "INSERT OR REPLACE INTO meta VALUES ('heard_ms', ?)", (str(self._heard_ms),)
        )
        for market, number in keep_from.items():
            where = "WHERE market = ? AND number <= ? AND received_ms < ?"
            values = (market, number, before_ms)
            gone, last, received_ms = self._db.execute(
                "SELECT coalesce(sum(length(body)), 0), max(number), max(received_ms)"  # noqa: S608
                f" FROM ring {where}",
                values,
            ).fetchone()
            if last is not None:
                self._db.execute(f"DELETE FROM ring {where}", values)  # noqa: S608
                self._db.execute(_GONE, (market, last, received_ms))
                self._bytes -= gone
        old_ms = before_ms - _SILENCE_KEPT_MS
        self._db.execute("DELETE FROM silent WHERE to_ms < ?", (old_ms,))

    # -- silences -----------------------------------------------------------------------------

    @property
    def heard_ms(self) -> int:
        """When the newest tick was received that the ring had; 0: none ever.

        Every tick received before is in the ring, published, or named.
        """
        return self._heard_ms

    def heard(self, now_ms: int) -> None:
        """Note that nothing has been missed up to now, though nothing came either."""
        self._heard_ms = max(self._heard_ms, now_ms)

    def begin_silence(self, from_ms: int, reason: str) -> None:
        """Note that nothing can be heard from the terminal; one silence is open at a time.

        To be called before the subscription that ends it: what that brings is behind a hole.

        Raises
        ------
        RingUnwritable
            When the disk refuses.
        """
        with _unwritable(), self._transaction():
            number = self._db.execute(
                "INSERT INTO silent (from_ms, reason) SELECT ?, ?"
                " WHERE NOT EXISTS (SELECT 1 FROM silent WHERE to_ms IS NULL) RETURNING number",
                (from_ms, reason),
            ).fetchone()
        if number is not None:
            self._silent = {**self._silent, number[0]: from_ms}

    def end_silence(self, to_ms: int) -> None:
        """Close the open silence."""
        self._soon("UPDATE silent SET to_ms = ? WHERE to_ms IS NULL", to_ms)

    @property
    def open_silence(self) -> int | None:
        """Since when nothing is heard; ``None`` when the terminal is heard."""
        rows = self._all("SELECT from_ms FROM silent WHERE to_ms IS NULL")
        return int(rows[0][0]) if rows else None

    @property
    def silent_since_ms(self) -> int:
        """Since when nothing was heard, for a producer that starts; 0: the ring is new."""
        since_ms = self.open_silence
        return self._heard_ms if since_ms is None else since_ms

    def silent_after(self, number: int) -> float:
        """Return when the first of the silences behind a number began; infinite for none."""
        return min(
            (from_ms for one, from_ms in self._silent.items() if one > number), default=math.inf
        )

    def silences(self, number: int) -> list[Silence]:
        """Return the silences behind a number that are over, in order."""
        rows = self._all(
            "SELECT number, from_ms, to_ms, reason FROM silent"
            " WHERE number > ? AND to_ms IS NOT NULL ORDER BY number",
            number,
        )
        return [Silence(*row) for row in rows]

    # -- events -------------------------------------------------------------------------------

    def add_event(self, event: dict[str, Any]) -> None:
        """Keep an event until it is told: of gaps every one, of others the last thousand."""
        self._soon(_GAP if event["kind"] == "gap" else _EVENT, _shown(event))

    def _write_gap(self, gap: dict[str, Any]) -> None:
        self._db.execute(_GAP, (_shown(gap),))

    def events(self, limit: int = 100) -> list[tuple[int, str]]:
        """Return the oldest untold events as (number, JSON), gaps left out."""
        return self._unreported("event", limit)

    def gaps(self, limit: int = 10) -> list[tuple[int, str]]:
        """Return the oldest untold gaps as (number, JSON)."""
        return self._unreported("gap", limit)

    def forget_events(self, number: int) -> None:
        """Forget events up to the given number."""
        self._forget("event", number)

    def forget_gaps(self, number: int) -> None:
        """Forget gaps up to the given number."""
        self._forget("gap", number)

    def merge_gaps(self) -> None:
        """Make few of the gaps that wait to be told, where they are many.

        To be called by who tells them, and no other thread.
        """
        if self._one("SELECT count(*) FROM gap") <= _GAP_ROWS or not self.writable:
            return
        rows = self._unreported("gap", -1)
        merged = merge_gaps(json.loads(body) for _, body in rows)
        with contextlib.suppress(sqlite3.Error), self._transaction():
            self._db.execute("DELETE FROM gap WHERE number <= ?", (rows[-1][0],))
            for gap in merged:
                self._write_gap(gap)

    def _unreported(self, table: Literal["event", "gap"], limit: int) -> list[tuple[int, str]]:
        query = f"SELECT number, body FROM {table} WHERE number > ? ORDER BY number LIMIT ?"  # noqa: S608
        return self._all(query, self._forgotten_up_to[table], limit)

    def _forget(self, table: Literal["event", "gap"], number: int) -> None:
        self._forgotten_up_to[table] = max(self._forgotten_up_to[table], number)
        with contextlib.suppress(sqlite3.Error), self._transaction():
            self._db.execute(
                f"DELETE FROM {table} WHERE number <= ?",  # noqa: S608
                (self._forgotten_up_to[table],),
            )

    def close(self) -> None:
        """Write down the cursors, if the disk takes them, and release the file."""
        with contextlib.suppress(RingUnwritable):
            self.tidy({}, 0)
        with self._lock:
            self._closed = True
            self._db.close()

    def ends_with(self, run: Callable[[], None]) -> Callable[[], None]:
        """Return what a thread runs that may be left behind: that the ring is closed ends it."""

        def until_closed() -> None:
            try:
                run()
            except sqlite3.ProgrammingError:
                if not self._closed:
                    raise

        return until_closed


@contextmanager
def _unwritable() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise RingUnwritable(f"The ring cannot be written: {error}.") from error


def _shown(event: dict[str, Any]) -> str:
    return json.dumps(event, ensure_ascii=False)


def _batch(row: tuple[int, str, Kind, int, bytes]) -> Batch:
    number, market, kind, received_ms, body = row
    return Batch(number, market, kind, received_ms, _decode(body), len(body))
