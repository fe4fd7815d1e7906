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
    "convert_code",
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
# one it looks like), without what would break a key's name, a series, a URL's list or a glob:
# { } : , * ? [ ] \ / |
CODE: Final = rf"[!-)+\-.0-9;->@-Z^-z~]{{1,24}}\.{MARKET}"
"""What they are, as regular expressions that Python and Arrow read alike."""
_CODE: Final = re.compile(CODE)
_MARKET: Final = re.compile(MARKET)
_SPELLINGS: Final = re.compile(
    r"(?:(?P<before>[A-Za-z]{2,5})[._]?)?(?P<number>\d{6})(?:[._](?P<behind>[A-Za-z]{2,5}))?",
    re.ASCII,
)
"""How other programs write a code of the stock exchanges: sz000001, 600000.XSHG, SHSE.600000."""

_LONGEST: Final = 40
MAX_CODES: Final = 10_000
"""Most codes in one request."""
MAX_MARKETS: Final = 32
"""Most markets in one request."""

AssetClass = str
"""``stock``, ``etf``, ``convertible_bond``, ``index``, ``future``, ``option`` or ``other``."""

# Market, leading digits of the symbol, class, by the number ranges that the exchanges publish:
# Shanghai's 证券代码分配指南, Shenzhen's 证券代码区间 (appendix of its trading rules) and Beijing's
# notices of 2023 and 2024 on 920. The longest that fits counts.
_RANGES: Final[tuple[tuple[str, tuple[str, ...], AssetClass], ...]] = (
    ("SH", ("000",), "index"),
    ("SH", ("5",), "etf"),
    ("SH", ("11",), "convertible_bond"),
    ("SH", ("6", "900"), "stock"),
    ("SH", ("01", "02", "132", "204"), "other"),  # treasuries, exchangeable bonds, repo
    ("SZ", ("399",), "index"),
    ("SZ", ("15", "16", "18"), "etf"),
    ("SZ", ("12",), "convertible_bond"),
    ("SZ", ("00", "2", "30"), "stock"),
    ("SZ", ("131",), "other"),  # repo
    ("BJ", ("899",), "index"),
    ("BJ", ("4", "8", "92"), "stock"),
    ("SHO", ("",), "option"),
    ("SZO", ("",), "option"),
)
_OTHERS_NAMES: Final[dict[str, str]] = {
    **dict.fromkeys(("XSHG", "SHSE", "SSE", "SS"), "SH"),
    **dict.fromkeys(("XSHE", "SZSE"), "SZ"),
    **dict.fromkeys(("BJSE", "BSE"), "BJ"),
    **dict.fromkeys(("CFFEX", "CCFX"), "IF"),
    **dict.fromkeys(("SHFE", "XSGE"), "SF"),
    **dict.fromkeys(("DCE", "XDCE"), "DF"),
    **dict.fromkeys(("CZCE", "XZCE"), "ZF"),
    **dict.fromkeys(("XINE",), "INE"),
    **dict.fromkeys(("GFEX",), "GF"),
}
"""How others call the markets (ISO 10383, and libraries that follow it or the exchanges)."""
_STOCK_EXCHANGES: Final = frozenset({"SH", "SZ", "BJ"})
_OTHERS_ENDINGS: Final = tuple(f".{name}" for name in _OTHERS_NAMES)
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
    if isinstance(code, str) and _CODE.fullmatch(code) and not code.endswith(_OTHERS_ENDINGS):
        return code
    likely = _likely(code)
    raise InvalidCode(
        f"{shown(code)} is not a code: expected <symbol>.<MARKET>.",
        hint=f"Did you mean {likely}?" if likely else "For example 600519.SH.",
        code=shown(code).strip("'"),
        field=field,
    )


def convert_code(code: str, market: str = "") -> str:
    """Return a code that another program wrote, where it can mean one thing only.

    Parameters
    ----------
    market
        Market of codes that are written without one.

    Raises
    ------
    InvalidCode
        When it is none, or says another market than ``market``.
    """
    code = code.strip()
    spelled = _SPELLINGS.fullmatch(code)
    if spelled is None:
        symbol, _, named = code.rpartition(".")
        if not symbol:
            code = f"{code}.{market}" if market else code
        elif named in _OTHERS_NAMES:
            code = f"{symbol}.{_OTHERS_NAMES[named]}"
        return _six_digits(parse_code(code))
    said = {_market_named(name) for name in spelled.group("before", "behind") if name}
    if not said:
        return parse_code(f"{code}.{market}" if market else code)
    if not said <= _STOCK_EXCHANGES:
        return parse_code(code)
    if len(said) > 1 or (market and market not in said):
        raise InvalidCode(
            f"{shown(code)} names two markets"
            + (f", {', '.join(sorted(said))} and {market}." if len(said) == 1 else "."),
            hint=f"For example {spelled['number']}.SH.",
            code=code,
            field="code",
        )
    return parse_code(f"{spelled['number']}.{said.pop()}")


def _six_digits(code: str) -> str:
    """Refuse what lost its leading zeros, as 8.SZ did in a table that took codes for numbers."""
    symbol, _, market = code.rpartition(".")
    if market in _STOCK_EXCHANGES and symbol.isdigit() and len(symbol) < 6:
        raise InvalidCode(
            f"{shown(code)} has fewer than six digits: its leading zeros are lost.",
            hint=f"Write {symbol:0>6}.{market}, and keep codes as text.",
            code=code,
            field="code",
        )
    return code


def _market_named(name: str) -> str:
    return _OTHERS_NAMES.get(name.upper(), name.upper())


def _likely(code: object) -> str:
    """Return the code that was probably meant; empty where that is not clear."""
    if isinstance(code, int) and not isinstance(code, bool) and 0 < code < 10**6:
        code = f"{code:06}"
    if not isinstance(code, str) or len(code) > _LONGEST:
        return ""
    spelled = _SPELLINGS.fullmatch(code.strip())
    if spelled is None:
        symbol, _, named = code.rpartition(".")
        market = _OTHERS_NAMES.get(named)
        return f"{symbol}.{market}" if symbol and market else ""
    number, name = spelled["number"], spelled["behind"] or spelled["before"] or ""
    market = _market_named(name)
    if market not in _STOCK_EXCHANGES:
        market = _market_of_number(number)
    return f"{number}.{market}" if market else ""


def _market_of_number(number: str) -> str:
    """Return the market whose range a number lies in; 000001 is meant as the stock."""
    fitting = [
        (len(start), market)
        for market, starts, kind in _RANGES
        for start in starts
        if start and number.startswith(start) and (market, kind) != ("SH", "index")
    ]
    return max(fitting, default=(0, ""))[1]


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
    for code in [codes] if isinstance(codes, int) else parts_of(codes, field):
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
    if isinstance(market, str) and _MARKET.fullmatch(market) and market not in _OTHERS_NAMES:
        return market
    likely = _market_named(market) if isinstance(market, str) and len(market) < 8 else ""
    raise InvalidRequest(
        f"{shown(market)} is not a market.",
        hint=f"Did you mean {likely}?"
        if likely in _STOCK_EXCHANGES | _FUTURE_MARKETS
        else "For example SH, SZ or BJ.",
        field=field,
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
    for of_market, starts, kind in _RANGES:
        if market == of_market and symbol.startswith(starts):
            return kind
    return "other"


def lot_size(code: str) -> int:
    """Return how many shares, fund units or bonds one unit of ``volume`` is; contracts are 1."""
    return _LOTS.get(asset_class(code), 1)
