"""Counter-based randomness: a number is looked up by its key, never drawn in turn."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

U64 = NDArray[np.uint64]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)
_M1: Final = np.uint64(0xBF58476D1CE4E5B9)
_M2: Final = np.uint64(0x94D049BB133111EB)
_S30, _S27, _S31 = np.uint64(30), np.uint64(27), np.uint64(31)
_UNIT: Final = 2.0**-53


def mix(x: U64) -> U64:
    """Scramble 64-bit words (the finaliser of splitmix64)."""
    x = (x ^ (x >> _S30)) * _M1
    x = (x ^ (x >> _S27)) * _M2
    return x ^ (x >> _S31)


def combine(key: U64, counter: ArrayLike) -> U64:
    """One word per (key, counter) pair, broadcast; counters may be negative."""
    n = np.atleast_1d(np.asarray(counter, dtype=np.int64)).view(np.uint64)
    return mix(np.atleast_1d(key) + (n + np.uint64(1)) * _GOLDEN)


def unit(word: U64) -> F64:
    """Floats in [0, 1) from words."""
    return np.asarray((word >> np.uint64(11)) * _UNIT, dtype=np.float64)


def unit16(word: U64, lane: int) -> F64:
    """Floats in [0, 1) from one of the four 16-bit lanes of each word."""
    lanes = (word >> np.uint64(16 * lane)) & np.uint64(0xFFFF)
    return np.asarray(lanes * (1.0 / 65536.0), dtype=np.float64)


def exp(x: F64) -> F64:
    """Exponential from multiplications only, so that every machine gets the same bits."""
    y = 1.0 + x * (1.0 / 65536.0)
    for _ in range(16):
        y = y * y
    return np.asarray(y, dtype=np.float64)


def text_keys(seed: int, texts: list[str]) -> U64:
    """One key per text: the same for a code wherever it stands in a list."""
    width = max(len(text) for text in texts)
    raw = np.array(texts, dtype=f"S{width}").view(np.uint8).reshape(len(texts), width)
    key = np.full(len(texts), seed & 0xFFFFFFFFFFFFFFFF, dtype=np.uint64)
    for column in range(width):
        key = mix(key * np.uint64(257) + raw[:, column] + np.uint64(1))
    return key
