"""The types of arguments and answers."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Literal, TypedDict

import numpy as np

from qmt_reading.arguments import Codes
from qmt_reading.callbacks import OnBars, OnGap, OnTicks

from .progress import ShowProgress

__all__ = [
    "Codes",
    "Downloaded",
    "InstrumentDetail",
    "OnBars",
    "OnGap",
    "OnTicks",
    "SavedPosition",
    "ShowProgress",
    "StoredForm",
    "TimeLike",
]

TimeLike = str | int | dt.date | np.datetime64
"""A moment or a day: ``'20260105'``, ``'2026-01-05 10:30'``, a date, a datetime (pandas' too),
ms since the epoch. Naive means China time."""

StoredForm = Literal["frame", "arrow", "batches"]
"""A DataFrame, a pyarrow Table, or an iterator of pyarrow record batches."""

SavedPosition = Mapping[str, object]
"""Where an iteration stands, as its ``position`` and ``full_position`` give it; JSON-able."""


class Downloaded(TypedDict):
    """What can be read back of a code after a download."""

    rows: int
    first_ms: int | None
    """Label of the first row, ms since the epoch."""
    last_ms: int | None


class InstrumentDetail(TypedDict):
    """What the terminal knows about an instrument, under xtquant's keys; it may have more.

    Prices in yuan, volumes in shares, dates as ``YYYYMMDD``; ``None`` where it has no value.
    """

    ExchangeID: str
    InstrumentID: str
    InstrumentName: str
    ProductID: str
    ProductName: str
    ExchangeCode: str
    UniCode: str
    CreateDate: str
    OpenDate: str
    ExpireDate: str | int
    PreClose: float | None
    SettlementPrice: float | None
    UpStopPrice: float | None
    DownStopPrice: float | None
    FloatVolume: float | None
    TotalVolume: float | None
    PriceTick: float | None
    VolumeMultiple: int | None
    InstrumentStatus: int | None
    IsTrading: bool | None
