"""What both clients do with arguments and with what an answer lacks."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence

from qmt_protocol.codes import parse_codes
from qmt_protocol.errors import Gap, InvalidRequest

from .answers import QMTWarning

__all__ = [
    "Codes",
    "is_one",
    "parse_count",
    "parse_names",
    "parse_one",
    "parse_scope",
    "warn",
    "warn_absent",
    "warn_gap",
]

Codes = str | Iterable[str]


def parse_scope(
    codes: Codes | None, markets: Sequence[str]
) -> tuple[list[str] | None, Sequence[str]]:
    """Check that either codes or markets are named, and return both as lists."""
    if isinstance(markets, str):
        markets = [part.strip() for part in markets.split(",") if part.strip()]
    if bool(markets) == (codes is not None):
        raise InvalidRequest("Give codes, or markets.", hint="codes=['600519.SH'].", field="codes")
    return (None if codes is None else parse_codes(codes)), markets


def is_one(codes: Codes) -> bool:
    """Whether one code was named, so that its answer is not put in a dict."""
    return isinstance(codes, str) and "," not in codes


def parse_one(code: str) -> str:
    """Check that one code was named and return it."""
    found = parse_codes(code)
    if len(found) != 1:
        raise InvalidRequest("Give one code.", hint="Several go to get_batch_history().")
    return found[0]


def parse_count(count: int) -> int | None:
    """Return a count of rows; xtquant's -1, which means all, as ``None``."""
    return None if count == -1 else count


def parse_names(fields: Codes | None) -> list[str] | None:
    """Return names given as a list or comma-separated; ``None`` for none."""
    if fields is None or fields == "":
        return None
    parts = fields.split(",") if isinstance(fields, str) else fields
    return list(dict.fromkeys(part.strip() for part in parts if part.strip()))


def warn(message: str) -> None:
    """Warn of something missing or unusual in what is given all the same."""
    warnings.warn(message, QMTWarning, stacklevel=3)


def warn_gap(gap: Gap) -> None:
    """Tell a gap as a warning."""
    warn(str(gap))


def warn_absent(absent: Mapping[str, str], where: str, *, left_out: bool = True) -> None:
    """Name codes that an answer lacks, with the reason of each."""
    if not absent:
        return
    named = "; ".join(f"{code}: {reason}" for code, reason in list(absent.items())[:5])
    more = f"; and {len(absent) - 5} more" if len(absent) > 5 else ""
    what = "left out" if left_out else "nothing known of"
    warn(f"{where}: {what} {len(absent)} code(s). {named}{more}.")
