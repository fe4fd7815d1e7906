"""Where things lie in Redis: the only place that spells a key."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from .codes import market_of, parse_code
from .errors import ConfigurationError
from .periods import parse_period

__all__ = ["JobKeys", "Keys", "parse_series", "series_of"]

_PREFIX: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}", re.ASCII)


@dataclass(frozen=True)
class Keys:
    """Keys of one prefix on the streams server.

    The prefix and the market stand together in braces, so all keys of one market share a Redis
    Cluster slot, and a replay under another prefix lies apart from the live day.

    Raises
    ------
    ConfigurationError
        When the prefix has other characters than letters, digits, ``_``, ``.`` and ``-``.
    """

    prefix: str = "qmt"

    def __post_init__(self) -> None:
        if not _PREFIX.fullmatch(self.prefix):
            raise ConfigurationError(
                f"The key prefix {self.prefix!r} is not allowed.",
                hint="Use letters, digits, '_', '.' and '-'.",
            )

    def _of(self, market: str) -> str:
        return f"{{{self.prefix}:{market}}}"

    def tick(self, code: str) -> str:
        """Stream of a code's ticks, field ``t1``."""
        return f"{self._of(market_of(code))}:tick:{code}"

    def bar(self, period: str, code: str) -> str:
        """Stream of a code's bars, field ``k1``."""
        return f"{self._of(market_of(code))}:bar:{period}:{code}"

    def feed(self, market: str) -> str:
        """Stream of published batches, field ``b1`` (ticks) or ``c1`` (bars), and ``sizes``."""
        return f"{self._of(market)}:feed"

    def filed(self, market: str) -> str:
        """String: feed entry id up to which streams and ``latest`` hold what was published."""
        return f"{self._of(market)}:filed"

    def latest(self, market: str) -> str:
        """Hash of code to ``[entry id, tick]``."""
        return f"{self._of(market)}:latest"

    def lease(self, market: str) -> str:
        """String: who may publish this market, a space, and what tells this holding from others."""
        return f"{self._of(market)}:lease"

    def epoch(self, market: str) -> str:
        """String: identity of this history."""
        return f"{self._of(market)}:epoch"

    def acked(self, market: str) -> str:
        """Hash of ring id to the last batch number applied."""
        return f"{self._of(market)}:acked"

    def archived(self, market: str) -> str:
        """String: feed entry id up to which the archive has stored."""
        return f"{self._of(market)}:archived"

    @property
    def schema(self) -> str:
        """Hash of schema name to its description in JSON."""
        return f"{self.prefix}:schema"

    @property
    def demand_channel(self) -> str:
        """Channel, not a key: readers say on it what they want; see `qmt_protocol.demand`."""
        return f"{self.prefix}:demand"

    @property
    def refused(self) -> str:
        """Hash of series to the reason why no producer serves it."""
        return f"{self.prefix}:refused"

    @property
    def status(self) -> str:
        """Hash of process to its last heartbeat in JSON."""
        return f"{self.prefix}:status"

    @property
    def seen(self) -> str:
        """Sorted set of process by the Redis time of its last heartbeat."""
        return f"{self.prefix}:seen"

    def heartbeats_of(self, role: str) -> tuple[str, str]:
        """Return `status` and `seen` for a role.

        A gateway has a pair of its own: it stands in the open, and must not be able to say that a
        producer lives.
        """
        own = ":gateway" if role == "gateway" else ""
        return self.status + own, self.seen + own

    @property
    def events(self) -> str:
        """Stream of gaps; which event lies where is said by `qmt_protocol.events`."""
        return f"{self.prefix}:events"

    @property
    def producer_events(self) -> str:
        """Stream of what happened to producers: connected, lost, late, lease taken."""
        return f"{self.events}:producer"

    @property
    def refused_events(self) -> str:
        """Stream of wants that were refused."""
        return f"{self.events}:refused"

    @property
    def archive_events(self) -> str:
        """Stream of what happened to the archive; it may not write into the producer's."""
        return f"{self.events}:archive"

    @property
    def archive(self) -> str:
        """String: which process writes an archive in a place that has no locks of its own."""
        return f"{self.prefix}:archive"

    @property
    def replay(self) -> str:
        """String: which replay the prefix holds, as JSON. Where it stands, all may be removed."""
        return f"{self.prefix}:replay"

    @property
    def patterns(self) -> tuple[str, str]:
        """What ``SCAN`` finds all keys of the prefix by."""
        return f"{self.prefix}:*", f"{{{self.prefix}:*"  # no prefix has a character of patterns


def series_of(period: str, code: str) -> str:
    """Return how a reader names a code's ticks or bars that it wants."""
    return f"{period}|{code}"


def parse_series(text: str) -> tuple[str, str]:
    """Return period and code of a series.

    Raises
    ------
    InvalidRequest
        When it is none.
    """
    period, _, code = text.partition("|")
    return parse_period(period), parse_code(code)


@dataclass(frozen=True)
class JobKeys:
    """Keys of one prefix on the jobs server, beside RQ's own."""

    prefix: str = "qmt"

    def progress(self, job_id: str) -> str:
        """Stream of a job's progress; its last entry carries ``done`` or ``error``."""
        return f"{self.prefix}:job:{job_id}:progress"

    def cancel(self, job_id: str) -> str:
        """String: set by the waiter to make the worker give a job up."""
        return f"{self.prefix}:job:{job_id}:cancel"

    def claim(self, job_id: str) -> str:
        """String: which process runs the job or ran it; an id is run once."""
        return f"{self.prefix}:claim:{job_id}"

    @property
    def dead(self) -> str:
        """Stream of what a worker found and could not run, JSON in field ``e``."""
        return f"{self.prefix}:jobs:dead"

    def chunk(self, job_id: str, number: int) -> str:
        """String: one Arrow IPC chunk of a result."""
        return f"{self.prefix}:result:{job_id}:{number}"

    def manifest(self, job_id: str) -> str:
        """String: the result's manifest in JSON, written last."""
        return f"{self.prefix}:result:{job_id}"
