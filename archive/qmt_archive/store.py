"""Where the archive lies: whole files only, and the manifest's replacement as the only commit."""

from __future__ import annotations

import errno
import os
import posixpath
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Final

import msgspec
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import structlog

from qmt_protocol.archive import (
    MANIFEST,
    ArchivedFile,
    Manifest,
    decode_manifest,
    encode_manifest,
)
from qmt_protocol.arrow_stream import ARROW_ERRORS, check_batch
from qmt_protocol.columns import BAR_COLUMNS, TICK_COLUMNS
from qmt_protocol.decoding import printable
from qmt_protocol.errors import (
    ArchiveDamaged,
    ArchiveUnavailable,
    CodecError,
    ConfigurationError,
)
from qmt_reading.stored.archive import ArchiveReader
from qmt_reading.stored.ordering import conform
from qmt_reading.stored.parquet_groups import group_ranges, whole_groups

__all__ = ["ArchiveStore", "damaged"]

log: Final = structlog.get_logger(__name__)

_HINTS: Final = {
    errno.ENOSPC: "Free some space there; until then ticks stay in Redis.",
    errno.EDQUOT: "Free some space there; until then ticks stay in Redis.",
    errno.EACCES: "Let this user write there.",
    errno.EPERM: "Let this user write there.",
    errno.EROFS: "Mount it writable.",
}
_FOLDERS: Final = ("ticks", "bars")
_PART: Final = ".part"
_LONGEST: Final = 500
_ROWS_PER_READ: Final = 65_536


class ArchiveStore:
    """One archive as its only writer sees it.

    Parameters
    ----------
    url
        See `qmt_reading.stored.archive.open_archive`.

    Attributes
    ----------
    manifest : Manifest
        What is committed, after `load`.

    Raises
    ------
    ConfigurationError
        When the address cannot be used.
    """

    def __init__(self, url: str) -> None:
        self._reader = ArchiveReader(url)
        self.url = url
        self.address = self._reader.address
        self.filesystem: pafs.FileSystem = self._reader.filesystem
        self.root: str = self._reader.root
        self.manifest = Manifest()
        self._committing = threading.Lock()

    @property
    def is_local(self) -> bool:
        """Whether it is a folder of this machine, which has locks and renames."""
        return isinstance(self.filesystem, pafs.LocalFileSystem)

    def path_of(self, path: str) -> str:
        """Return where a file of the manifest lies in the filesystem."""
        return f"{self.root}/{path}"

    def prepare(self) -> None:
        """Make the folder, so that it can be locked.

        Raises
        ------
        ArchiveUnavailable
            When that is not possible.
        """
        if self.is_local:
            with self._reaching("made"):
                _make_folder(Path(self.root))

    def load(self, prefix: str | None = None) -> Manifest:
        """Read the manifest; where there is none, begin a new one for a prefix.

        Raises
        ------
        ArchiveUnavailable
            When the folder or bucket cannot be reached, or there is no archive and no prefix given.
        ArchiveDamaged
            When the manifest cannot be read.
        ConfigurationError
            When the archive is of another prefix.
        """
        try:
            with self._reaching("read"):
                data = self._get(MANIFEST)
        except _NoSuchFile:
            if prefix is None:
                raise ArchiveUnavailable(
                    f"There is no archive at {self.address}: it has no {MANIFEST}.",
                    hint="Check the address, or start qmt-archive run there.",
                    address=self.address,
                ) from None
            self.manifest = Manifest(prefix=prefix)
            return self.manifest
        manifest = decode_manifest(data)
        if prefix not in (None, manifest.prefix):
            raise ConfigurationError(
                f"The archive at {self.address} holds the prefix {manifest.prefix!r}, "
                f"not {prefix!r}.",
                hint="Give each prefix an archive of its own.",
            )
        self.manifest = manifest
        return manifest

    def commit(self, change: Callable[[Manifest], Manifest]) -> Manifest:
        """Replace the manifest by a changed one.

        Whoever gets the error must neither delete the files that the change names nor those it no
        longer names: the new manifest may stand there nevertheless. Committing again is right.

        Raises
        ------
        ArchiveUnavailable
            When it could not be written, or not surely.
        """
        with self._committing:
            changed = change(self.manifest)
            changed = msgspec.structs.replace(changed, generation=self.manifest.generation + 1)
            with self._reaching("written"):
                self._put(MANIFEST, lambda file: file.write(encode_manifest(changed)))
            self.manifest = changed
            return changed

    def write(self, path: str, fill: Callable[[Any], object]) -> int:
        """Write a file as a whole, durably; return its size in bytes.

        Raises
        ------
        ArchiveUnavailable
            When that is not possible; then there is no such file.
        """
        with self._reaching("written"):
            self._put(path, fill)
            return int(self.filesystem.get_file_info(self.path_of(path)).size)

    def read(
        self, file: ArchivedFile, columns: Sequence[str] | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Yield a file's rows, in pieces of bounded size.

        Raises
        ------
        ArchiveDamaged
            When it is not there, or cannot be decoded.
        ArchiveUnavailable
            When the folder or bucket cannot be reached.
        """
        whole = TICK_COLUMNS if file.kind == "tick" else BAR_COLUMNS
        requested = whole if columns is None else pa.schema([whole.field(name) for name in columns])
        with self._opening(file) as parquet:
            groups = range(parquet.metadata.num_row_groups)
            for batch in whole_groups(parquet, groups, _ROWS_PER_READ, requested.names):
                check_batch(batch, file.path)
                yield from conform(pa.Table.from_batches([batch]), requested).to_batches()

    def check_rows(self, file: ArchivedFile) -> tuple[int, int] | None:
        """Make sure that a file has the rows that the manifest says.

        Returns
        -------
        tuple or None
            The range of ``id_ms`` by the file's own statistics.

        Raises
        ------
        ArchiveDamaged, ArchiveUnavailable
            As `read` does, and where it has other rows.
        """
        with self._opening(file) as parquet:
            if parquet.metadata.num_rows != file.rows:
                raise damaged(
                    file.path,
                    self.address,
                    f"it has {parquet.metadata.num_rows} rows, the manifest says {file.rows}",
                )
            of_groups = group_ranges(parquet, ("id_ms",))
            ranges = [one["id_ms"] for one in of_groups if "id_ms" in one]
            if not ranges:
                return None
            return min(low for low, _ in ranges), max(high for _, high in ranges)

    @contextmanager
    def _opening(self, file: ArchivedFile) -> Iterator[pq.ParquetFile]:
        try:
            with self.filesystem.open_input_file(self.path_of(file.path)) as opened:
                yield pq.ParquetFile(opened)
        except (*ARROW_ERRORS, CodecError) as error:
            if getattr(error, "errno", None) and not isinstance(error, FileNotFoundError):
                with self._reaching("read"):
                    raise
            raise damaged(file.path, self.address, error) from error

    def delete(self, paths: Iterable[str]) -> None:
        """Delete files; what cannot be deleted now is an orphan for the next start."""
        for path in paths:
            try:
                self.filesystem.delete_file(self.path_of(path))
            except FileNotFoundError:
                continue
            except (OSError, pa.ArrowException) as error:
                log.warning("a file cannot be deleted", path=path, error=str(error))

    def orphans(self) -> list[str]:
        """Return the files that the manifest does not name: left by a process that was killed."""
        named = set(self.manifest.paths)
        found = []
        with self._reaching("listed"):
            for folder in _FOLDERS:
                selector = pafs.FileSelector(
                    self.path_of(folder), recursive=True, allow_not_found=True
                )
                for info in self.filesystem.get_file_info(selector):
                    path = info.path.removeprefix(f"{self.root}/")
                    if info.type is pafs.FileType.File and path not in named:
                        found.append(path)
            if self.is_local:
                found += [path.name for path in Path(self.root).glob(f"*{_PART}")]
        return found

    def new_path(self, folder: str, what: str) -> str:
        """Return a path in a folder that no other file ever had."""
        return posixpath.join(folder, f"{what}-{secrets.token_hex(6)}.parquet")

    def _get(self, path: str) -> bytes:
        try:
            with self.filesystem.open_input_stream(self.path_of(path)) as file:
                return bytes(file.read())
        except FileNotFoundError as error:
            raise _NoSuchFile from error

    def _put(self, path: str, fill: Callable[[Any], object]) -> None:
        if self.is_local:
            _put_durably(Path(self.path_of(path)), fill)
            return
        try:
            with self.filesystem.open_output_stream(self.path_of(path)) as file:
                fill(file)
        except BaseException:
            if path != MANIFEST:  # closing has made half a file of it
                with suppress(OSError, pa.ArrowException):
                    self.filesystem.delete_file(self.path_of(path))
            raise

    @contextmanager
    def _reaching(self, what: str) -> Iterator[None]:
        try:
            yield
        except (OSError, pa.ArrowException) as error:
            text = " ".join(str(getattr(error, "strerror", None) or error).split()).rstrip(".")
            number = getattr(error, "errno", None)
            raise ArchiveUnavailable(
                f"The archive at {self.address} cannot be {what}: {text}.",
                hint=_HINTS.get(number or 0, "Check the address and that it can be reached."),
                address=self.address,
            ) from error


class _NoSuchFile(Exception):
    pass


def damaged(path: str, address: str, error: object) -> ArchiveDamaged:
    """Return the error that names a file of the archive as damaged."""
    text = printable(str(error).rstrip("."), _LONGEST)
    return ArchiveDamaged(
        f"{path} of the archive at {address} is damaged: {text}.",
        hint="Put back a copy of it; it is left as it is.",
        path=path,
    )


def _put_durably(path: Path, fill: Callable[[IO[bytes]], object]) -> None:
    """Write beside, then rename: whoever opens the path finds all of the old or all of the new."""
    _make_folder(path.parent)
    part = path.with_name(path.name + _PART)
    try:
        with part.open("wb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _make_folder(path: Path) -> None:
    if path.is_dir():
        return
    _make_folder(path.parent)
    with suppress(FileExistsError):
        path.mkdir()
    _sync_folder(path.parent)


def _sync_folder(path: Path) -> None:
    if os.name != "posix":
        return
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
