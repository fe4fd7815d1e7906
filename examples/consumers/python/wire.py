"""Decode what docs/wire.md describes, with the msgpack package alone."""

from __future__ import annotations

import math
from typing import Any

import msgpack

# fmt: off
TICK = [
    "time", "lastPrice", "open", "high", "low", "lastClose", "amount", "volume", "pvolume",
    "stockStatus", "openInt", "transactionNum", "lastSettlementPrice", "settlementPrice", "pe",
    "askPrice", "bidPrice", "askVol", "bidVol", "volRatio", "speed1Min", "speed5Min", "extra",
    "flags",
]
BAR = [
    "time", "open", "high", "low", "close", "volume", "amount", "settelementPrice",
    "openInterest", "preClose", "suspendFlag", "closed", "extra",
]
PRICES = {
    "lastPrice", "open", "high", "low", "lastClose", "close", "lastSettlementPrice",
    "settlementPrice", "askPrice", "bidPrice", "settelementPrice", "preClose",
}
# fmt: on


def price(value: Any) -> Any:
    """Return yuan: an integer is scaled by 10,000, a float is the price itself."""
    if isinstance(value, list):
        return [price(one) for one in value]
    return value / 10_000 if isinstance(value, int) else value


def plain(value: Any) -> Any:
    """Return what JSON can hold: null for NaN and infinities, hex for bytes."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, list):
        return [plain(one) for one in value]
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    return value


def named(names: list[str], row: list[Any]) -> dict[str, Any]:
    """Return an array's elements by name; later versions may have more elements."""
    values = {
        name: plain(price(value) if name in PRICES else value)
        for name, value in zip(names, row, strict=False)
    }
    values["extra"] = values["extra"] or {}
    return values


def tick(code: str, entry_id: str, row: list[Any]) -> dict[str, Any]:
    """Return a `t1` array as one flat record."""
    return {"code": code, "id": entry_id, **named(TICK, row)}


def bar(code: str, period: str, entry_id: str, row: list[Any]) -> dict[str, Any]:
    """Return a `k1` array as one flat record."""
    return {"code": code, "period": period, "id": entry_id, **named(BAR, row)}


def decode(schema: str, data: bytes) -> Any:
    """Return the records of any schema."""
    value = msgpack.unpackb(data)
    if schema == "t1":
        return named(TICK, value)
    if schema == "k1":
        return named(BAR, value)
    if schema == "b1":
        return [tick(*one) for one in value]
    if schema == "latest":
        return {"id": value[0], **named(TICK, value[1])}
    if schema == "c1":
        return [bar(*one) for one in value]
    raise ValueError(f"schema {schema} is not known")
