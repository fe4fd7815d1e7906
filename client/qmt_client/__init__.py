"""Reading market data from QMT Bridge, anywhere: over Redis or over the gateway.

`QMTClient` for scripts and notebooks, `AsyncQMTClient` for asyncio; both have the same names.
Errors are those of ``qmt_protocol.errors``, here as `errors`. Only gateway, archive and standalone
import this package; it imports the protocol alone.
"""

from qmt_protocol import errors
from qmt_protocol.errors import QMTError
from qmt_protocol.ticks import Tick

from .answers import HistoryFrames, QMTWarning, Ticks
from .async_client import AsyncQMTClient
from .processes import Process, Status
from .sync_client import QMTClient

__all__ = [
    "AsyncQMTClient",
    "HistoryFrames",
    "Process",
    "QMTClient",
    "QMTError",
    "QMTWarning",
    "Status",
    "Tick",
    "Ticks",
    "errors",
]
