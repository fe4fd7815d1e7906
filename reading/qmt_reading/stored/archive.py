"""Reading the archive: where it lies, what it holds, and its rows in one order.

The order is everywhere that of (``id_ms``, ``code``, ``id_seq``). Files are merged as they are
decoded, so memory stays at some pieces of each file that overlaps in time.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from qmt_protocol.archive import MANIFEST, ArchivedFile, Manifest, decode_manifest
from qmt_protocol.arrow_stream import ARROW_ERRORS, check_batch
from qmt_protocol.columns import BAR_COLUMNS, TICK_COLUMNS
from qmt_protocol.decoding import printable
from qmt_protocol.errors import (
    ArchiveDamaged,
    ArchiveUnavailable,
    CodecError,
    ConfigurationError,
)

from .ordering import KEYS, conform, ids_of, in_order, newest, split, where_code
from .parquet_groups import Ranges, group_ranges, whole_groups

__all__ = ["ArchiveReader", "ArchivedBars", "ArchivedTicks", "open_archive"]

_PIECE_ROWS: Final = 65_536
_LEAST_ROWS: Final = 32_768
_BAR_ROWS: Final = 1_000_000
_LONGEST: Final = 500
_S3_CONNECT_S: Final = 5.0
_S3_REQUEST_S: Final = 30.0
_S3_ATTEMPTS: Final = 3
_S3_OPTIONS: Final = frozenset(
    {"endpoint_override", "region", "scheme", "force_virtual_addressing"}
)


def open_archive(url: str) -> tuple[pafs.FileSystem, str]:
    """Return the filesystem of an archive and the archive's root in it.

    Parameters
    ----------
    url
        A folder, ``file:///...``, ``s3://bucket/path?endpoint_override=host:port&scheme=http``,
        or what else pyarrow has a filesystem for. S3's keys come from the environment, or stand
        before the bucket: ``s3://key:secret@bucket/path``.

    Raises
    ------
    ConfigurationError
        When it is no address of a filesystem.
    """
    scheme, separator, _ = url.partition("://")
    try:
        if not url:
            raise ValueError("it is empty")
        if not separator:
            return pafs.LocalFileSystem(), os.path.abspath(url)
        if scheme == "s3":
            return _open_s3(url)
        filesystem, root = pafs.FileSystem.from_uri(url)
    except (ValueError, TypeError, OSError, pa.ArrowException) as error:
        raise ConfigurationError(
            f"{shown(url)!r} is not the address of an archive: {error}.",
            hint="Give a folder, file:///folder or s3://bucket/path.",
        ) from error
    return filesystem, root.rstrip("/")


def _open_s3(url: str) -> tuple[pafs.FileSystem, str]:
    login = url.partition("://")[2].partition("?")[0].rpartition("@")[0]
    if "/" in login or "#" in url:
        raise ValueError("its key has a / or #; write it as %2F or %23")
    parts = urlsplit(url)
    options: dict[str, Any] = dict(parse_qsl(parts.query, strict_parsing=bool(parts.query)))
    if unknown := set(options) - _S3_OPTIONS:
        raise ValueError(f"{', '.join(sorted(unknown))} is no option of s3://")
    bucket = parts.netloc.rpartition("@")[2]
    if not bucket:
        raise ValueError("it names no bucket")
    if parts.username:
        options["access_key"] = unquote(parts.username)
        options["secret_key"] = unquote(parts.password or "")
    if "force_virtual_addressing" in options:
        options["force_virtual_addressing"] = options["force_virtual_addressing"] == "true"
    filesystem = pafs.S3FileSystem(
        **options,
        connect_timeout=_S3_CONNECT_S,
        request_timeout=_S3_REQUEST_S,
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=_S3_ATTEMPTS),
    )
    return filesystem, f"{bucket}/{parts.path.strip('/')}".rstrip("/")


def shown(url: str) -> str:
    """Return an archive's address without a secret in it."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url
    return f"{scheme}://{rest.partition('?')[0].rpartition('@')[2]}"


class ArchiveReader:
    """Reads one archive; it may be written and compacted meanwhile.

    Parameters
    ----------
    url
        See `open_archive`.

    Raises
    ------
    ConfigurationError
        When the address cannot be used.
    """

    def __init__(self, url: str) -> None:
        self.address = shown(url)
        self.filesystem, self.root = open_archive(url)
        self._manifest: Manifest | None = None
        self._reading = threading.Lock()
        self._data = b""
        self._stamp: tuple[int, ...] | None = None

    def path_of(self, path: str) -> str:
        """Return where a file of the manifest lies in the filesystem."""
        return f"{self.root}/{path}"

    def manifest(self) -> Manifest:
        """Return the manifest as it is now.

        Raises
        ------
        ArchiveUnavailable
            When it cannot be reached, or there is no archive.
        ArchiveDamaged
            When it is no manifest.
        """
        path = self.path_of(MANIFEST)
        try:
            with self._reading:  # an older one must not replace a newer one
                stamp = self._stamp_of(path)
                if self._manifest is None or stamp is None or stamp != self._stamp:
                    with self.filesystem.open_input_stream(path) as file:
                        data = file.read()
                    if self._manifest is None or data != self._data:
                        self._manifest = decode_manifest(data)
                    self._data, self._stamp = data, stamp
                return self._manifest
        except FileNotFoundError as error:
            raise ArchiveUnavailable(
                f"There is no archive at {self.address}: it has no {MANIFEST}.",
                hint="Check the address, or start qmt-archive there.",
                address=self.address,
            ) from error
        except (OSError, pa.ArrowException) as error:
            raise self._unavailable(error) from error

    def _stamp_of(self, path: str) -> tuple[int, ...] | None:
        """Return what differs after each replacement of a file, where such a thing is known."""
        if not isinstance(self.filesystem, pafs.LocalFileSystem):
            return None  # S3 tells times in whole seconds
        status = os.stat(path)
        return status.st_ino, status.st_mtime_ns, status.st_size

    def ticks(
        self,
        codes: Sequence[str] | None = None,
        start_ms: int | None = None,
        end_ms: int | None = None,
        *,
        markets: Sequence[str] | None = None,
        day: int | None = None,
        columns: Sequence[str] | None = None,
    ) -> ArchivedTicks:
        """Return the archived ticks of a range, to be iterated over as record batches.

        Parameters
        ----------
        codes, markets
            Whose; ``None``: all.
        start_ms, end_ms
            First and last ``id_ms``, both included.
        day
            Only this trading day (``YYYYMMDD``), its night session included.
        columns
            Columns of `TICK_COLUMNS` wanted; code and id are always there.
        """
        of = _Of("tick", "tick", _tuple(codes), _markets(codes, markets), day)
        return ArchivedTicks(self, of, columns, start_ms, end_ms)

    def bars(
        self,
        period: str,
        codes: Sequence[str] | None = None,
        start_ms: int | None = None,
        end_ms: int | None = None,
        *,
        markets: Sequence[str] | None = None,
        columns: Sequence[str] | None = None,
    ) -> ArchivedBars:
        """Return the archived closed bars of a range, the newest of each; see `ticks`."""
        of = _Of("bar", period, _tuple(codes), _markets(codes, markets), None)
        return ArchivedBars(self, of, columns, start_ms, end_ms)

    def failure(self, path: str, error: Exception) -> Exception:
        """Return what a failed read of a file means: it went, is damaged, or the place is away."""
        if isinstance(error, OSError) and error.errno is not None:
            return self._unavailable(error)
        try:
            info = self.filesystem.get_file_info(self.path_of(path))
        except (OSError, pa.ArrowException) as away:
            return self._unavailable(away)
        if info.type is pafs.FileType.NotFound:
            return _Gone(path)
        return ArchiveDamaged(
            f"{path} of the archive at {self.address} cannot be read: {_line(error)}.",
            hint="Put back a copy of the file; qmt-archive verify finds all that are damaged.",
            path=path,
        )

    def _unavailable(self, error: Exception) -> ArchiveUnavailable:
        return ArchiveUnavailable(
            f"The archive at {self.address} cannot be read: {_line(error)}.",
            hint="Check that the folder or bucket can be reached, and its permissions.",
            address=self.address,
        )


def _line(error: Exception) -> str:
    return printable(str(error).rstrip("."), _LONGEST) or type(error).__name__


def _markets(codes: Sequence[str] | None, markets: Sequence[str] | None) -> frozenset[str] | None:
    if codes is not None:
        return frozenset(code.rpartition(".")[2] for code in codes)
    return None if markets is None else frozenset(markets)


def _tuple(codes: Sequence[str] | None) -> tuple[str, ...] | None:
    return None if codes is None else tuple(codes)


def _schema(whole: pa.Schema, columns: Sequence[str] | None) -> pa.Schema:
    if columns is None:
        return whole
    requested = {*KEYS, *columns}
    return pa.schema([field for field in whole if field.name in requested], whole.metadata)


@dataclass(frozen=True)
class _Of:
    """Which files and codes are read."""

    kind: str
    period: str
    codes: tuple[str, ...] | None
    markets: frozenset[str] | None
    day: int | None

    def files(
        self, manifest: Manifest, start_ms: int | None, end_ms: int | None
    ) -> list[ArchivedFile]:
        found = [
            one
            for one in manifest.files
            if one.kind == self.kind
            and one.period == self.period
            and (self.markets is None or one.market in self.markets)
            and (self.day is None or one.day == self.day)
            and (start_ms is None or one.last_ms >= start_ms)
            and (end_ms is None or one.first_ms <= end_ms)
        ]
        return sorted(found, key=lambda one: (one.first_ms, one.path))


_EVER: Final = -(2**62), 2**62
_TRIES: Final = 3


class _Gone(Exception):
    """A file is no longer there: it was compacted or pruned since the manifest was read."""


class _Rows:
    """Rows of a range in order, decoded as they are asked for.

    Iterate over it, or ask `until` for a part. A file that is compacted away meanwhile is read on
    in its successor.

    Raises
    ------
    ArchiveUnavailable, ArchiveDamaged
        While reading; a damaged file is named.
    """

    def __init__(
        self,
        reader: ArchiveReader,
        of: _Of,
        columns: Sequence[str] | None,
        start_ms: int | None,
        end_ms: int | None,
    ) -> None:
        self.schema = _schema(TICK_COLUMNS if of.kind == "tick" else BAR_COLUMNS, columns)
        self._reader = reader
        self._of = of
        self._codes = None if of.codes is None else pa.array(of.codes, pa.string())
        self._at_ms = _EVER[0] if start_ms is None else start_ms
        self._end_ms = _EVER[1] - 1 if end_ms is None else end_ms
        self._generation: int | None = None
        self._files: list[ArchivedFile] = []

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        try:
            while (part := self.until(None)) is not None:
                yield from part[0].to_batches()
        finally:
            self.close()

    def refresh(self) -> None:
        """Look at the manifest again: what follows is read as it says now."""
        manifest = self._reader.manifest()
        if manifest.generation == self._generation:
            return
        self._generation = manifest.generation
        files = self._of.files(manifest, self._at_ms, self._end_ms)
        if files != [one for one in self._files if one.last_ms >= self._at_ms]:
            self._files = files
            self._plan()

    def until(self, limit_ms: int | None) -> tuple[pa.Table, int] | None:
        """Return the next rows before a moment, and up to when (exclusive) they are complete.

        Returns
        -------
        tuple or None
            At most some hundred thousand rows; ``None`` when there is nothing more before it.
        """
        limit_ms = _EVER[1] if limit_ms is None else limit_ms
        if self._generation is None:
            self.refresh()
        for _ in range(_TRIES):
            try:
                return self._until(limit_ms)
            except _Gone as error:
                before, self._generation, self._files = self._generation, None, []
                self.close()
                self.refresh()
                if self._generation == before:
                    raise ArchiveDamaged(
                        f"{error} is named by the manifest of the archive at "
                        f"{self._reader.address} and is not there.",
                        hint="Put back a copy of the file.",
                        path=str(error),
                    ) from error
        raise ArchiveUnavailable(
            f"The archive at {self._reader.address} changes faster than it can be read.",
            hint="Try again.",
            address=self._reader.address,
        )

    def close(self) -> None:
        """Let the files go."""
        raise NotImplementedError

    def _plan(self) -> None:
        """Take up other files."""
        raise NotImplementedError

    def _until(self, limit_ms: int) -> tuple[pa.Table, int] | None:
        raise NotImplementedError

    def _decoded(self, file: ArchivedFile, start_ms: int, end_ms: int) -> Iterator[pa.Table]:
        """Yield what may be wanted of a file's rows: pieces with codes out of range left out."""
        path = self._reader.path_of(file.path)
        try:
            with self._reader.filesystem.open_input_file(path) as opened:
                parquet = pq.ParquetFile(opened)
                there = set(parquet.schema_arrow.names)
                names = [name for name in self.schema.names if name in there]
                for group, ranges in enumerate(group_ranges(parquet, ("id_ms", "code"))):
                    if _concerns(ranges, self._codes, start_ms, end_ms):
                        for piece in whole_groups(parquet, [group], _PIECE_ROWS, names):
                            check_batch(piece, file.path)
                            yield conform(pa.Table.from_batches([piece]), self.schema)
        except FileNotFoundError as error:
            raise _Gone(file.path) from error
        except (*ARROW_ERRORS, CodecError) as error:
            raise self._reader.failure(file.path, error) from error


def _concerns(ranges: Ranges, codes: pa.Array | None, start_ms: int, end_ms: int) -> bool:
    """Whether a row group may hold what is wanted, by its statistics."""
    first_ms, last_ms = ranges.get("id_ms", (start_ms, end_ms))
    if last_ms < start_ms or first_ms > end_ms:
        return False
    if codes is None or "code" not in ranges:
        return True
    first, last = ranges["code"]
    inside = pc.and_(pc.greater_equal(codes, first), pc.less_equal(codes, last))
    return bool(pc.any(inside).as_py())


class ArchivedTicks(_Rows):
    __doc__ = _Rows.__doc__

    _runs: dict[str, _Run] = {}  # noqa: RUF012  # replaced, never changed

    def close(self) -> None:
        for run in self._runs.values():
            run.close()
        self._runs = {}

    def _plan(self) -> None:
        old, self._runs = self._runs, {}
        for one in self._files:
            run = old.pop(one.path, None)
            self._runs[one.path] = self._run(one) if run is None else run
        for run in old.values():
            run.close()

    def _run(self, file: ArchivedFile) -> _Run:
        pieces = self._decoded(file, self._at_ms, self._end_ms)
        return _Run(file, pieces, self._codes, self._at_ms, self._end_ms)

    def _until(self, limit_ms: int) -> tuple[pa.Table, int] | None:
        while True:
            runs = self._runs.values()
            first = min(runs, key=lambda run: run.known_ms, default=None)
            known_ms = _EVER[1] if first is None else first.known_ms
            if first is None or known_ms >= limit_ms:
                return self._take(limit_ms)
            if sum(run.count(known_ms) for run in runs) >= _LEAST_ROWS:
                return self._take(known_ms)
            first.fill()

    def _take(self, limit_ms: int) -> tuple[pa.Table, int] | None:
        tables = [table for run in self._runs.values() for table in run.take(limit_ms)]
        self._runs = {path: run for path, run in self._runs.items() if not run.is_done}
        self._at_ms = limit_ms
        return (in_order(tables), limit_ms) if tables else None


class _Run:
    """One file's rows of a range, decoded piece by piece; they are sorted in the file."""

    def __init__(
        self,
        file: ArchivedFile,
        pieces: Iterator[pa.Table],
        codes: pa.Array | None,
        start_ms: int,
        end_ms: int,
    ) -> None:
        self.known_ms = max(file.first_ms, start_ms)
        """All rows before it are here."""
        self._path = file.path
        self._pieces = pieces
        self._codes = codes
        self._range = start_ms, end_ms
        self._last_ms = _EVER[0]
        self._tables: deque[tuple[pa.Table, npt.NDArray[np.int64]]] = deque()

    @property
    def is_done(self) -> bool:
        """Whether all of it was taken."""
        return self.known_ms == _EVER[1] and not self._tables

    def close(self) -> None:
        self.known_ms = _EVER[1]
        self._pieces = iter(())
        self._tables.clear()

    def count(self, limit_ms: int) -> int:
        """Return how many rows before a moment are here."""
        return sum(int(np.searchsorted(ids, limit_ms)) for _, ids in self._tables)

    def take(self, limit_ms: int) -> Iterable[pa.Table]:
        """Yield the rows before a moment, and forget them."""
        while self._tables:
            table, ids = self._tables[0]
            cut = int(np.searchsorted(ids, limit_ms))
            if cut:
                yield table.slice(0, cut)
            if cut < len(ids):
                self._tables[0] = table.slice(cut), ids[cut:]
                return
            self._tables.popleft()

    def fill(self) -> None:
        """Decode one more piece."""
        table = next(self._pieces, None)
        if table is None:
            self.known_ms = _EVER[1]
            return
        ids = ids_of(table)
        if ids[0] < self._last_ms or np.any(ids[1:] < ids[:-1]):
            raise ArchiveDamaged(f"Rows of {self._path} are not sorted.", path=self._path)
        self._last_ms = int(ids[-1])
        start_ms, end_ms = self._range
        self.known_ms = max(self.known_ms, self._last_ms)
        low, high = (int(np.searchsorted(ids, at)) for at in (start_ms, end_ms + 1))
        if high < len(ids):
            self.known_ms = _EVER[1]
            self._pieces = iter(())
        table, ids = table.slice(low, high - low), ids[low:high]
        if self._codes is not None and len(ids):
            rows = where_code(table.column("code"), self._codes)
            table, ids = table.take(rows), ids[rows]
        if len(ids):
            self._tables.append((table, ids))


class ArchivedBars(_Rows):
    __doc__ = _Rows.__doc__

    _rest: pa.Table | None = None
    _rest_to_ms = 0
    """Up to when (exclusive) bars were read."""

    def close(self) -> None:
        self._rest = None

    def _plan(self) -> None:
        self._rest = None

    def _until(self, limit_ms: int) -> tuple[pa.Table, int] | None:
        while self._at_ms < limit_ms:
            if self._rest is None and not self._read_on():
                self._at_ms = limit_ms
                return None
            assert self._rest is not None  # it was read on
            to_ms = min(limit_ms, self._rest_to_ms)
            due, rest = split(self._rest, to_ms)
            self._at_ms = to_ms
            self._rest = None if to_ms == self._rest_to_ms else rest
            if len(due):
                return due.combine_chunks(), to_ms
        return None

    def _read_on(self) -> bool:
        """Read some more bars, all of a span of time; false when no file has any."""
        files = [one for one in self._files if one.last_ms >= self._at_ms]
        if not files or self._at_ms > self._end_ms:
            return False
        begin_ms = max(self._at_ms, min(one.first_ms for one in files))
        near = [one for one in files if one.day == files[0].day]
        last_ms = min(self._end_ms, max(one.last_ms for one in near))
        # A file is sorted by code: of more bars than fit in memory it is read several times.
        parts = 1 if self._codes is not None else -(-sum(one.rows for one in near) // _BAR_ROWS)
        to_ms = min(last_ms, begin_ms + -(-(last_ms - begin_ms + 1) // parts) - 1) + 1
        tables = [
            self._requested(table, begin_ms, to_ms)
            for one in files
            if one.first_ms < to_ms and one.last_ms >= begin_ms
            for table in self._decoded(one, begin_ms, to_ms - 1)
        ]
        self._rest = newest(in_order(tables)) if tables else self.schema.empty_table()
        self._rest_to_ms = to_ms
        return True

    def _requested(self, table: pa.Table, begin_ms: int, to_ms: int) -> pa.Table:
        ids = ids_of(table)
        rows = np.flatnonzero((ids >= begin_ms) & (ids < to_ms))
        if self._codes is not None:
            rows = np.intersect1d(rows, where_code(table.column("code"), self._codes), True)
        return table.take(rows)
