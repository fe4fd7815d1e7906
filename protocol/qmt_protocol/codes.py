"""Codes and markets: ``600519.SH`` is symbol ``600519`` of market ``SH``."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from .errors import InvalidCode, InvalidRequest
from .texts import shown

__all__ = [
    "CODE",
    "MARKET",
    "AssetClass",
    "asset_class",
    "lot_size",
    "market_of",
    "parse_code",
    "parse_codes",
    "parse_market",
    "parse_markets",
    "parts_of",
]

MARKET: Final = "[A-Z][A-Z0-9]{0,7}"
# Printable ASCII, as exchanges give codes (a full-width digit would name another stream than the
# one it looks like), without what would break a key's name, a want, a URL's list or a glob:
# { } : , * ? [ ] \ / |
CODE: Final = rf"[!-)+\-.0-9;->@-Z^-z~]{{1,24}}\.{MARKET}"
"""What they are, as regular expressions that Python and Arrow read alike."""
_CODE: Final = re.compile(CODE)
_MARKET: Final = re.compile(MARKET)
_BARE_A_SHARE: Final = re.compile(
    r"(?:(?P<p>[A-Za-z]{2})\.?)?(?P<n>\d{6})(?:\.(?P<s>[A-Za-z]+))?", re.ASCII
)

MAX_CODES: Final = 10_000
"""Most codes in one request."""
MAX_MARKETS: Final = 32
"""Most markets in one request."""

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


def parse_code(code: object, field: str = "code") -> str:
    """Check one code and return it unchanged.

    Parameters
    ----------
    field
        What it is called where it comes from.

    Raises
    ------
    InvalidCode
        When it is not ``<symbol>.<MARKET>``; the hint proposes the likely spelling.
    """
    if isinstance(code, str) and _CODE.fullmatch(code):
        return code
    likely = _likely(code)
    raise InvalidCode(
        f"{shown(code)} is not a code: expected <symbol>.<MARKET>.",
        hint=f"Did you mean {likely}?" if likely else "For example 600519.SH.",
        code=shown(code).strip("'"),
        field=field,
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


def parse_codes(codes: str | Iterable[object], field: str = "codes") -> list[str]:
    """Check a list of codes, or a comma-separated string; keep order, drop repeats.

    Raises
    ------
    InvalidCode
        For the first code that is none.
    InvalidRequest
        When there is no code, or more than `MAX_CODES`; nothing behind these is looked at.
    """
    unique: dict[str, None] = {}
    for code in parts_of(codes, field):
        unique[parse_code(code, field)] = None
        if len(unique) > MAX_CODES:
            raise InvalidRequest(
                f"More than {MAX_CODES} codes in one request.",
                hint="Ask in several requests.",
                field=field,
                limit=MAX_CODES,
            )
    if not unique:
        raise InvalidRequest("No code was given.", hint="For example 600519.SH.", field=field)
    return list(unique)


def parse_market(market: object, field: str = "market") -> str:
    """Check the name of a market, such as ``SH``, and return it unchanged.

    Raises
    ------
    InvalidRequest
        When it is none.
    """
    if isinstance(market, str) and _MARKET.fullmatch(market):
        return market
    raise InvalidRequest(
        f"{shown(market)} is not a market.", hint="For example SH, SZ or BJ.", field=field
    )


def parse_markets(markets: str | Iterable[object], field: str = "markets") -> list[str]:
    """Check names of markets, a list or comma-separated; keep order, drop repeats.

    Raises
    ------
    InvalidRequest
        For the first that is none, or when there are more than `MAX_MARKETS`.
    """
    unique: dict[str, None] = {}
    for market in parts_of(markets, field):
        unique[parse_market(market, field)] = None
        if len(unique) > MAX_MARKETS:
            raise InvalidRequest(
                f"More than {MAX_MARKETS} markets in one request.",
                hint="Name fewer; codes=* is everything.",
                field=field,
                limit=MAX_MARKETS,
            )
    return list(unique)


def parts_of(given: str | Iterable[object], field: str) -> Iterable[object]:
    """Return what is listed, one by one; of a text its parts between commas.

    Raises
    ------
    InvalidRequest
        When it is neither a text nor a list.
    """
    if isinstance(given, str):
        return [part.strip() for part in given.split(",") if part.strip()]
    if isinstance(given, Iterable) and not isinstance(given, bytes):
        return given
    raise InvalidRequest(
        f"{field}={shown(given)} is no list.",
        hint="Give a list, or a text with commas.",
        field=field,
    )


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
