"""What an archive holds, for people and programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qmt_protocol.archive import Manifest
from qmt_protocol.times import to_datetime

from .maintenance import groups

__all__ = ["day_rows", "missing_rows", "show"]


def day_rows(manifest: Manifest) -> list[dict[str, Any]]:
    """Return one row for each market's day, and of bars for each month or year."""
    rows = []
    for group in groups(manifest):
        count = sum(one.rows for one in group.files)
        size_bytes = sum(one.size_bytes for one in group.files)
        rows.append(
            {
                "day": group.day,
                "market": group.market,
                "period": group.period,
                "rows": count,
                "bytes": size_bytes,
                "bytes_per_row": round(size_bytes / count, 1) if count else 0.0,
                "files": len(group.files),
                "from": _clock(min(one.first_ms for one in group.files)),
                "to": _clock(max(one.last_ms for one in group.files)),
                "sources": "+".join(sorted({s for one in group.files for s in one.sources})),
            }
        )
    return rows


def missing_rows(manifest: Manifest) -> list[dict[str, Any]]:
    """Return one row for each window of which something is known to be absent."""
    return [
        {
            "market": one.market or "all",
            "from": _clock(one.from_ms),
            "to": _clock(one.to_ms),
            "codes": len(one.codes) or "any",
            "state": one.state,
            "found": one.found,
            "reason": one.reason,
        }
        for one in manifest.missing
    ]


def show(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as a table of plain text: numbers to the right, words to the left."""
    heads = list(rows[0])
    cells = [[_text(row[head], head) for head in heads] for row in rows]
    widths = [max(map(len, column)) for column in zip(heads, *cells, strict=True)]
    right = [not isinstance(rows[0][head], str) for head in heads]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in [heads, *cells]
    )


def _text(value: Any, head: str) -> str:
    return f"{value:,}" if isinstance(value, int) and head != "day" else str(value)


def _clock(at_ms: int) -> str:
    return f"{to_datetime(at_ms):%Y-%m-%d %H:%M:%S}" if at_ms else "unknown"
