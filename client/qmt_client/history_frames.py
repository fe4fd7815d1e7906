"""Frames of several codes, and what the answer says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    _Frames = dict[str, "pd.DataFrame"]
else:
    _Frames = dict

__all__ = ["HistoryFrames"]


class HistoryFrames(_Frames):
    """Code to DataFrame, in the order asked for.

    Attributes
    ----------
    meta : dict
        What the answer tells of itself.
    absent : dict
        Codes without data, and the reason of each.
    simulated : bool
        Whether the data come from the simulator.
    source : str or dict
        What the data come from.
    """

    def __init__(
        self, frames: Mapping[str, pd.DataFrame], meta: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(frames)
        self.meta: dict[str, Any] = dict(meta or {})
        self.absent: dict[str, str] = dict(self.meta.get("absent") or {})
        self.simulated = bool(self.meta.get("simulated"))
        self.source = self.meta.get("source", "")
