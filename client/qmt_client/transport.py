"""The seam between the client and what carries its requests: Redis itself, or the gateway."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from qmt_protocol.cursor.position import Place
from qmt_protocol.errors import Gap
from qmt_protocol.jobs import JobParams, Manifest, Progress
from qmt_protocol.ticks import Tick

from .answers import Latest
from .processes import Status

if TYPE_CHECKING:
    import pyarrow as pa

    from qmt_protocol.cursor.batch import Batch

    from .stored_source import StoredSource

__all__ = ["OnGap", "OnProgress", "Transport", "Wish"]

OnProgress = Callable[[Progress], None]
OnGap = Callable[[Gap], None]


@dataclass(frozen=True)
class Wish:
    """What a live iteration is to give.

    Attributes
    ----------
    codes : tuple of str or None
        Codes wanted; ``None``: all of the markets.
    markets : tuple of str
        Whole markets wanted.
    period : str
        ``tick``, or the period of the bars wanted.
    place : Place or None
        Where to go on.
    start_ms : int or None
        Begin with the ticks stored since this exchange time.
    snapshot : bool
        Begin with the latest tick of each code.
    conflate : bool
        Of what waits, only the latest of each code.
    """

    codes: tuple[str, ...] | None
    markets: tuple[str, ...] = ()
    period: str = "tick"
    place: Place | None = None
    start_ms: int | None = None
    snapshot: bool = False
    conflate: bool = False


class Transport(Protocol):
    """What carries a client's requests."""

    @property
    def address(self) -> str:
        """``host:port`` of the other side, for messages."""

    async def run_job(
        self,
        name: str,
        params: JobParams,
        *,
        timeout_s: float,
        on_progress: OnProgress | None = None,
    ) -> tuple[Manifest, pa.Table | None]:
        """Have a catalogue job done and return its manifest, and the table if it makes one.

        A caller that is cancelled, or waits longer than ``timeout_s``, cancels the job.
        """

    async def latest(
        self, codes: Sequence[str] | None, markets: Sequence[str] = ()
    ) -> Latest[Tick]:
        """Return the last stored tick of the codes, or of whole markets; some may be missing."""

    def live(self, wish: Wish, on_gap: OnGap) -> AsyncGenerator[Batch, None]:
        """Yield live data as they are published, each once."""

    def stored(self) -> StoredSource:
        """Return where stored rows are read from."""

    async def status(self) -> Status:
        """Return who is alive."""

    async def close(self) -> Any:
        """Close all connections."""
