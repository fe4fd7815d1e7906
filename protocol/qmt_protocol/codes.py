"""Codes and markets: ``600519.SH`` is symbol ``600519`` of market ``SH``."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from .errors import InvalidCode, InvalidRequest
from .messages import MOST_SHOWN, shown

__all__ = ["AssetClass", "asset_class", "lot_size", "market_of", "parse_code", "parse_codes"]

# The symbol is kept free of what would break a key name, a URL list or a glob.
_CODE: Final = re.compile(r"[^\s{}:,*?\[\]\\/]{1,24}\.[A-Z][A-Z0-9]{0,7}", re.ASCII)
_BARE_A_SHARE: Final = re.compile(r"(?:(?P<p>[A-Za-z]{2})\.?)?(?P<n>\d{6})(?:\.(?P<s>[A-Za-z]+))?")

MAX_CODES: Final = 10_000
"""Most codes in one request."""

AssetClass = str
"""``stock``, ``etf``, ``convertible_bond``, ``index``, ``future``, ``option`` or ``other``."""

# (market, leading digits of the symbol, class): the exchanges' published number ranges.
_CLASSES: Final[tuple[tuple[str, tuple[str, ...], AssetClass], ...]] = (
    ("SH", ("000",), "index"),
    ("SH", ("5",), "etf"),
    ("SH", ("11",), "convertible_bond"),
    ("SH", ("6", "9"), "stock"),
    ("SZ", ("399",), "index"),
    ("SZ", ("15", "16", "18"), "etf"),
    ("SZ", ("12",), "convertible_bond"),
    ("SZ", ("0", "2", "3"), "stock"),
    ("BJ", ("899",), "index"),
    ("BJ", ("4", "8", "92"), "stock"),
    ("SHO", ("",), "option"),
    ("SZO", ("",), "option"),
)
_FUTURE_MARKETS: Final = {"IF", "SF", "DF", "ZF", "INE", "GF"}
_LOTS: Final[dict[AssetClass, int]] = {
    "stock": 100,
    "etf": 100,
    "index": 100,
    "convertible_bond": 10,
}


def parse_code(code: object) -> str:
    """Check one code and return it unchanged.

    Raises
    ------
    InvalidCode
        When it is not ``<symbol>.<MARKET>``; the hint proposes the likely spelling.
    """
    if isinstance(code, str) and _CODE.fullmatch(code):
        return code
    raise InvalidCode(
        f"{shown(code)} is not a code: expected <symbol>.<MARKET>.",
        hint=f"Did you mean {_likely(code)}?" if _likely(code) else "For example 600519.SH.",
        code=str(code)[:MOST_SHOWN],
    )


def _likely(code: object) -> str:
    match = _BARE_A_SHARE.fullmatch(code.strip()) if isinstance(code, str) else None
    if not match:
        return ""
    number = match["n"]
    market = (match["p"] or match["s"] or "").upper()
    if market not in {"SH", "SZ", "BJ"}:
        market = "SH" if number[0] in "56" else "BJ" if number[0] in "489" else "SZ"
    return f"{number}.{market}"


def parse_codes(codes: str | Iterable[str]) -> list[str]:
    """Check a list of codes, or a comma-separated string; keep order, drop repeats.

    Raises
    ------
    InvalidCode
        For the first code that is none.
    InvalidRequest
        When there is no code, or more than `MAX_CODES`.
    """
    if isinstance(codes, str):
        codes = [part.strip() for part in codes.split(",") if part.strip()]
    unique = list(dict.fromkeys(parse_code(code) for code in codes))
    if not unique:
        raise InvalidRequest("No code was given.", hint="For example 600519.SH.", field="codes")
    if len(unique) > MAX_CODES:
        raise InvalidRequest(
            f"{len(unique)} codes in one request; at most {MAX_CODES} are served.",
            hint="Ask in several requests.",
            field="codes",
            limit=MAX_CODES,
        )
    return unique


def market_of(code: str) -> str:
    """Return the market of a code: what follows its last dot."""
    return parse_code(code).rpartition(".")[2]


def asset_class(code: str) -> AssetClass:
    """Return the asset class that the exchange's number range gives the code."""
    symbol, _, market = parse_code(code).rpartition(".")
    if market in _FUTURE_MARKETS:
        return "future"
    for of_market, starts, kind in _CLASSES:
        if market == of_market and symbol.startswith(starts):
            return kind
    return "other"


def lot_size(code: str) -> int:
    """Return how many shares, fund units or bonds one unit of ``volume`` is; contracts are 1."""
    return _LOTS.get(asset_class(code), 1)
