"""Numbers on the wire: scaled prices, and whole floats as integers."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

__all__ = [
    "NO_FLOAT",
    "PRICE_SCALE",
    "PRICE_TOLERANCE",
    "decode_price",
    "decode_prices",
    "encode_number",
    "encode_price",
    "scale_prices",
]

NO_FLOAT: Final = 1.797e308
"""Floats from here on mean 'no value': a terminal writes the largest double."""

PRICE_SCALE: Final = 10_000
"""Units of a scaled price in one yuan."""

PRICE_TOLERANCE: Final = 1e-10
"""How far, in yuan, a scaled price may lie beside the price it stands for.

It is wide enough for the binary noise of a terminal (11.370000000000001 becomes 11.37) and far
below the finest price step of any exchange (0.0001 yuan is one unit).
"""

_EXACT: Final = 2**53  # beyond it a float no longer counts in ones


def encode_number(value: Any) -> int | float:
    """Return a number as msgpack shall hold it: whole floats as int, negative zero as 0.

    Raises
    ------
    TypeError
        When it is no number; a bool is none.
    """
    if isinstance(value, (bool, str, bytes)):
        raise TypeError(f"{value!r} is not a number")
    if isinstance(value, int):
        return int(value)
    literal = float(value)
    return int(literal) if literal.is_integer() and abs(literal) < _EXACT else literal


def encode_price(value: Any) -> int | float:
    """Return a price in yuan as scaled int, or as literal float where it would change.

    Negative zero becomes 0; NaN and infinities stay literal.

    Raises
    ------
    TypeError
        When it is no number; a bool is none.
    """
    if isinstance(value, (bool, str, bytes)):
        raise TypeError(f"{value!r} is not a price")
    literal = float(value)
    units = literal * PRICE_SCALE
    if not abs(units) < _EXACT:
        return literal
    whole = round(units)
    return whole if abs(whole / PRICE_SCALE - literal) <= PRICE_TOLERANCE else literal


def scale_prices(prices: npt.NDArray[np.float64]) -> list[int | float]:
    """Return many prices as `encode_price` would, one by one."""
    with np.errstate(invalid="ignore", over="ignore"):
        units = prices * PRICE_SCALE
        whole = np.rint(units)
        beside = np.abs(whole / PRICE_SCALE - prices)
        fits = (beside <= PRICE_TOLERANCE) & (np.abs(units) < _EXACT)
    scaled: list[int | float] = np.where(fits, whole, 0).astype(np.int64).tolist()
    for at in np.flatnonzero(~fits).tolist():
        scaled[at] = float(prices[at])
    return scaled


def decode_price(value: int | float) -> float:
    """Return a wire price in yuan."""
    return value / PRICE_SCALE if isinstance(value, int) else value


def decode_prices(values: list[int | float]) -> list[float]:
    """Return a list of wire prices in yuan."""
    return [value / PRICE_SCALE if isinstance(value, int) else value for value in values]
