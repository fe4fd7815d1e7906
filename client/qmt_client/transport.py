"""The seam between the client and what carries its requests: Redis itself, or the gateway."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from qmt_protocol.errors import Gap
from qmt_protocol.jobs import JobParams, Manifest, Progress
from qmt_protocol.ticks import Tick

from .processes import Status

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["OnGap", "OnProgress", "Transport"]

OnProgress = Callable[[Progress], None]
OnGap = Callable[[Gap], None]


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
    ) -> dict[str, Tick]:
        """Return the last stored tick of the codes, or of whole markets; some may be missing."""

    def batches(
        self,
        codes: Sequence[str] | None,
        markets: Sequence[str] = (),
        *,
        snapshot: bool = False,
        on_gap: OnGap | None = None,
    ) -> AsyncGenerator[list[Tick], None]:
        """Yield live ticks as they are published, each once; ``snapshot``: the latest first."""

    async def status(self) -> Status:
        """Return who is alive."""

    async def close(self) -> Any:
        """Close all connections."""
