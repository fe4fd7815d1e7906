"""What an archive knows to be missing, as the gap that a reader is told."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qmt_protocol.errors import Gap
from qmt_protocol.times import to_datetime

if TYPE_CHECKING:
    from qmt_protocol.archive import Missing

__all__ = ["gap_of"]


def gap_of(missing: Missing) -> Gap:
    """Return what is known to be absent as the `Gap` that a reader is told."""
    whose = ", ".join(missing.codes[:5]) or missing.market
    more = f" and {len(missing.codes) - 5} more" if len(missing.codes) > 5 else ""
    return Gap(
        f"Ticks of {whose}{more} from {to_datetime(missing.from_ms):%Y-%m-%d %H:%M:%S} to "
        f"{to_datetime(missing.to_ms):%Y-%m-%d %H:%M:%S} are missing: {missing.reason}.",
        hint="" if missing.state == "not to be had" else "A backfill may find them.",
        market=missing.market,
        reason=missing.reason,
        from_ms=missing.from_ms,
        to_ms=missing.to_ms,
        codes=list(missing.codes),
    )
