"""The seam between a reader and what carries its requests: Redis itself, or the gateway."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from qmt_protocol.jobs import JobParams, Manifest
from qmt_protocol.ticks import Tick

from .callbacks import OnGap, OnProgress
from .latest import LatestValues
from .processes import Status

if TYPE_CHECKING:
    import pyarrow as pa

    from qmt_protocol.archive import Missing
    from qmt_protocol.cursor.batch import Batch

    from .requests import LiveRequest, StoredRequest

__all__ = ["StoredSource", "Transport"]


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
    ) -> LatestValues[Tick]:
        """Return the last stored tick of the codes, or of whole markets; some may be missing."""

    def live(self, request: LiveRequest, on_gap: OnGap) -> AsyncGenerator[Batch, None]:
        """Yield live data as they are published, each once."""

    def stored(self) -> StoredSource:
        """Return where stored rows are read from."""

    async def status(self) -> Status:
        """Return who is alive."""

    async def close(self) -> Any:
        """Close all connections."""


class StoredSource(Protocol):
    """Where stored rows are read from: archive and streams, or the gateway."""

    def batches(
        self, request: StoredRequest, on_gap: OnGap
    ) -> AsyncGenerator[pa.RecordBatch, None]:
        """Yield rows by (``id_ms``, ``code``, ``id_seq``), each once; closed bars only."""

    async def missing(self, request: StoredRequest) -> list[Missing]:
        """Return what is known to be absent, oldest first."""

    async def markets(self) -> list[str]:
        """Return the markets that are archived."""

    async def simulated_markets(self) -> frozenset[str]:
        """Return the markets of which rows were invented by the simulator."""
