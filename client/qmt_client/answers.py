"""What the client answers with beside plain values: dicts that name what is absent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from qmt_protocol.ticks import Tick
from qmt_reading.latest import LatestValues

if TYPE_CHECKING:
    import pandas as pd


__all__ = ["Latest", "Ticks"]


class _Framed:
    def to_frame(self, *, tz: str | None = "Asia/Shanghai") -> pd.DataFrame:
        """Return the ticks as the frame that stored ones have; see `qmt_client.to_frame`."""
        from .frames import to_frame

        return to_frame(self.values(), tz=tz)  # type: ignore[attr-defined]


class Latest(_Framed, LatestValues[Tick]):
    """Code to its last stored tick.

    Attributes
    ----------
    unreadable : dict
        Codes (or markets) whose last tick cannot be read, and why; of very many some.
    """


class Ticks(_Framed, dict[str, Tick]):
    """Code to its last stored tick, in the order asked for.

    Attributes
    ----------
    absent : list of str
        Codes that no tick is stored of.
    simulated : bool
        Whether the data come from the simulator.
    """

    def __init__(
        self, ticks: Mapping[str, Tick], absent: Iterable[str] = (), *, simulated: bool = False
    ) -> None:
        super().__init__(ticks)
        self.absent = list(absent)
        self.simulated = simulated

    def to_frame(self, *, tz: str | None = "Asia/Shanghai") -> pd.DataFrame:
        """Return the ticks as the frame that stored ones have; ``attrs`` has ``simulated``."""
        frame = super().to_frame(tz=tz)
        frame.attrs.update(absent=self.absent, simulated=self.simulated)
        return frame
