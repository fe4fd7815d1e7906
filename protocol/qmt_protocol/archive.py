"""The archive's layout: what its manifest says, and where its files lie.

An archive is a folder (or a bucket) of Parquet files beside one ``manifest.json``. Only files that
the manifest names belong to it; replacing the manifest is the only commit. Paths are relative to
the archive's root, with ``/`` on every system::

    manifest.json
    ticks/market=SH/day=20261120/<name>.parquet
    bars/period=1m/market=SH/month=202611/<name>.parquet
    bars/period=1d/market=SH/year=2026/<name>.parquet
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, Literal

import msgspec

from .decoding import DECODE_ERRORS, reason_of
from .errors import ArchiveDamaged
from .periods import DAILY_PERIODS

__all__ = [
    "MANIFEST",
    "ArchivedFile",
    "ArchivedMarket",
    "FeedRange",
    "Manifest",
    "Missing",
    "bar_folder",
    "bar_span",
    "decode_manifest",
    "encode_manifest",
    "kept_missing",
    "tick_folder",
]

MANIFEST: Final = "manifest.json"
_VERSION: Final = 1
_MISSING_KEPT: Final = 10_000

Source = Literal["live", "backfill", "import"]


_SIMULATED: Final = b"qmt.simulated"
_JSON_BOOL: Final = {True: b"true", False: b"false"}


def simulated_label(simulated: bool) -> dict[bytes, bytes]:
    """Return what the metadata of a table say of whether the simulator invented rows in it."""
    return {_SIMULATED: _JSON_BOOL[simulated]}


def is_simulated(metadata: Mapping[bytes, bytes] | None) -> bool:
    """Whether a table's metadata say that the simulator invented rows in it."""
    return (metadata or {}).get(_SIMULATED) == _JSON_BOOL[True]


class FeedRange(msgspec.Struct, frozen=True, kw_only=True):
    """Feed entries that a file holds, both ends included; an empty `first`: from the begin."""

    epoch: str
    first: str
    last: str


class ArchivedFile(msgspec.Struct, frozen=True, kw_only=True):
    """One Parquet file of the archive."""

    path: str
    kind: Literal["tick", "bar"]
    market: str
    day: int
    """Trading day as ``YYYYMMDD``; of bars the first day of their month or year."""
    period: str = "tick"
    rows: int
    size_bytes: int
    first_ms: int
    """Smallest ``id_ms`` in it."""
    last_ms: int
    """Largest ``id_ms`` in it."""
    sources: list[Source] = msgspec.field(default_factory=lambda: ["live"])
    ranges: list[FeedRange] = msgspec.field(default_factory=list)
    simulated: bool = False
    """Rows in it were invented by the simulator."""
    final: bool = False
    """One file holds the whole market and day (month, year), sorted as a whole."""


class ArchivedMarket(msgspec.Struct, frozen=True, kw_only=True):
    """Up to where a market's feed is stored."""

    epoch: str
    position: str
    """Id of the last feed entry whose ticks and closed bars are in the files."""


class Missing(msgspec.Struct, frozen=True, kw_only=True):
    """Something that is known to be absent, until a backfill has looked for it."""

    market: str
    from_ms: int
    to_ms: int
    codes: list[str] = msgspec.field(default_factory=list)
    """Empty: any code of the market."""
    reason: str
    state: Literal["open", "filled", "not to be had"] = "open"
    found: int = 0
    """Ticks that a backfill added."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What an archive holds."""

    version: int = _VERSION
    generation: int = 0
    """Counts the commits."""
    prefix: str = "qmt"
    """Prefix of the streams that are archived."""
    markets: dict[str, ArchivedMarket] = msgspec.field(default_factory=dict)
    files: list[ArchivedFile] = msgspec.field(default_factory=list)
    missing: list[Missing] = msgspec.field(default_factory=list)
    events: str = ""
    """Id of the last entry of the prefix's events whose gaps are in `missing`."""

    def ticks(self, market: str, from_day: int = 0, to_day: int = 99_999_999) -> list[ArchivedFile]:
        """Return a market's tick files of some trading days, in order of their days."""
        found = (one for one in self.files if one.kind == "tick" and one.market == market)
        return sorted(
            (one for one in found if from_day <= one.day <= to_day),
            key=lambda one: (one.day, one.first_ms, one.path),
        )

    def bars(self, market: str, period: str) -> list[ArchivedFile]:
        """Return a market's bar files of one period, in order of their days."""
        found = (one for one in self.files if one.kind == "bar" and one.market == market)
        return sorted(
            (one for one in found if one.period == period), key=lambda one: (one.day, one.path)
        )

    @property
    def simulated_markets(self) -> frozenset[str]:
        """Markets of which files hold rows of the simulator."""
        return frozenset(one.market for one in self.files if one.simulated)

    @property
    def days(self) -> list[int]:
        """Trading days with ticks, oldest first."""
        return sorted({one.day for one in self.files if one.kind == "tick"})

    @property
    def paths(self) -> Iterator[str]:
        """Every file that belongs to the archive."""
        return (one.path for one in self.files)


def kept_missing(missing: list[Missing]) -> list[Missing]:
    """Return what a manifest keeps of what is missing; first what was dealt with goes."""
    over = len(missing) - _MISSING_KEPT
    if over <= 0:
        return missing
    gone = {id(one) for one in sorted(missing, key=lambda one: one.state == "open")[:over]}
    return [one for one in missing if id(one) not in gone]


def tick_folder(market: str, day: int) -> str:
    """Return the folder of a market's ticks of one trading day (``YYYYMMDD``)."""
    return f"ticks/market={market}/day={day}"


def bar_span(period: str, day: int) -> int:
    """Return the first day of the span that one bar file holds: a month, or a year for days."""
    return day // 10_000 * 10_000 + 101 if _is_daily(period) else day // 100 * 100 + 1


def bar_folder(period: str, market: str, day: int) -> str:
    """Return the folder of a market's bars of the month, or of the year for ``1d`` and longer."""
    span = f"year={day // 10_000}" if _is_daily(period) else f"month={day // 100}"
    return f"bars/period={period}/market={market}/{span}"


def _is_daily(period: str) -> bool:
    return period in DAILY_PERIODS


_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(Manifest).decode


def encode_manifest(manifest: Manifest) -> bytes:
    """Return the manifest as JSON, a file per line, so that people and SQL can read it."""
    return msgspec.json.format(_encode(manifest), indent=1)


def decode_manifest(data: bytes) -> Manifest:
    """Read a manifest.

    Raises
    ------
    ArchiveDamaged
        When it is not one, or of another version.
    """
    try:
        manifest = _decode(data)
    except DECODE_ERRORS as error:
        raise ArchiveDamaged(
            f"{MANIFEST} cannot be read: {reason_of(error)}.",
            hint="Put back a copy of it, or begin a new archive in an empty folder.",
        ) from error
    if manifest.version != _VERSION:
        raise ArchiveDamaged(
            f"{MANIFEST} has version {manifest.version}; this program knows {_VERSION}.",
            hint="Use the version of this program that wrote it, or a newer one.",
        )
    return manifest
