"""Reading market data from QMT Bridge, anywhere: over Redis or over the gateway.

`QMTClient` for scripts and notebooks, `AsyncQMTClient` for asyncio; both have the same names.
Errors are those of ``qmt_protocol.errors``, here as `errors`; types of arguments and answers are in
`types`. No other package imports this one.
"""

from typing import TYPE_CHECKING, Any

from qmt_protocol.bars import Bar
from qmt_protocol.errors import Gap, QMTError
from qmt_protocol.ticks import Tick
from qmt_reading.processes import Process, Status
from qmt_reading.replay.engine import AsyncReplay, Replay

from . import errors, types
from .answers import Ticks
from .async_client import AsyncQMTClient
from .history_frames import HistoryFrames
from .live import NOW_LIVE, AsyncLive, Live, NowLive
from .sync_client import QMTClient
from .user_warnings import QMTWarning

if TYPE_CHECKING:
    from .frames import to_frame

__all__ = [
    "NOW_LIVE",
    "AsyncLive",
    "AsyncQMTClient",
    "AsyncReplay",
    "Bar",
    "Gap",
    "HistoryFrames",
    "Live",
    "NowLive",
    "Process",
    "QMTClient",
    "QMTError",
    "QMTWarning",
    "Replay",
    "Status",
    "Tick",
    "Ticks",
    "errors",
    "to_frame",
    "types",
]


def __getattr__(name: str) -> Any:
    # pandas is not imported before it is needed.
    if name == "to_frame":
        from .frames import to_frame

        return to_frame
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
