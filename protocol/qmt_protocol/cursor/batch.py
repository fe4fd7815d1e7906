"""What a reader is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from qmt_protocol.errors import CodecError

from .position import Offset

__all__ = ["BarRow", "Batch", "Kind", "Row", "Snapshot"]

Kind = Literal["begin", "snapshot", "stored", "missed", "now", "live"]
"""``stored``: from the codes' own streams; ``missed``: from before the reading began."""
Row = tuple[str, str, Any]
"""Code, entry id, ``t1`` or ``k1`` (bytes, or msgspec's view of them)."""
BarRow = tuple[str, str, str, Any]
"""Code, period, entry id, ``k1``."""


@dataclass(frozen=True)
class Batch:
    """Some rows, and where a reader stands who has taken them."""

    kind: Kind
    rows: Sequence[Row] = ()
    bars: Sequence[BarRow] = ()
    offsets: Mapping[str, Offset] = field(default_factory=dict)
    """Only what moved."""
    data: bytes | None = None
    """The feed's own ``b1`` where the rows are all of it."""
    ids: Mapping[str, str] | None = None
    """With ``begin``: the last entry id of each code, where all are known."""


@dataclass(frozen=True)
class Snapshot:
    """Some markets as each was at one moment."""

    offsets: dict[str, Offset] = field(default_factory=dict)
    """Market to its epoch and the feed entry up to which it is filed: whatever its streams and
    ``latest`` do not hold lies behind that in the feed."""
    latest: dict[str, bytes] = field(default_factory=dict)
    """Code to its value of ``latest``."""
    unreadable: list[CodecError] = field(default_factory=list)
    """What else stands in ``latest``."""
