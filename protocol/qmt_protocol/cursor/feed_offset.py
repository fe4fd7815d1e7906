"""Where a reader stands in one market's feed, and whether what it finds there follows on that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from qmt_protocol.ids import BEGINNING, id_key

from .position import Offset

__all__ = ["Break", "FeedEntry", "FeedOffset"]


@dataclass(frozen=True)
class FeedEntry:
    """One published batch."""

    market: str
    id: str
    ticks: bytes | None
    """``b1``."""
    bars: bytes | None
    """``c1``."""


@dataclass(frozen=True)
class Break:
    """What lay behind a position can no longer be read from the feed."""

    market: str
    reason: Literal["trimmed", "epoch"]
    after: Offset
    """Where the reader stood."""
    at: Offset
    """Where it stands now, in the history that follows."""
    to_ms: int
    """Redis time of the first entry behind the break; 0 where there is none."""


class FeedOffset:
    """A position is good while its epoch is the feed's and its entry still exists.

    Attributes
    ----------
    epoch : str
        Identity of the history that the position belongs to.
    at : str
        Id of the last entry read.
    limit : str
        Id beyond which nothing is read; empty: none.
    has_entry : bool
        Whether an entry of this id was there when the position was taken up. Without, what is
        found behind it follows on: a feed is never trimmed behind where it is filed.
    """

    def __init__(self, market: str, offset: Offset) -> None:
        self.market = market
        self.epoch, self.at = offset
        self.limit = ""
        self.has_entry = True

    @property
    def offset(self) -> Offset:
        """Epoch and id."""
        return self.epoch, self.at

    @property
    def is_beyond_limit(self) -> bool:
        """Whether nothing may be read."""
        return bool(self.limit) and id_key(self.limit) < id_key(self.at)

    def needs_end(self, epoch: str, entries: Sequence[FeedEntry], *, is_whole: bool) -> bool:
        """Whether `look` has to know where the feed ends: nothing was found to tell by."""
        follows = is_whole or not self.has_entry
        return not entries and (self._is_other(epoch) or not follows)

    def look(
        self, epoch: str, entries: Sequence[FeedEntry], *, is_whole: bool, end: str = BEGINNING
    ) -> tuple[Break | None, Sequence[FeedEntry]]:
        """Check the position against the feed, and move behind what was found.

        Parameters
        ----------
        epoch
            The feed's, read together with the entries.
        entries
            The feed's from the position on, its own entry included.
        is_whole
            Whether nothing was ever trimmed from the feed.
        end
            Id of the last entry ever published; see `needs_end`.

        Returns
        -------
        Break or None
            What lies between the position and the entries, where anything does.
        sequence of FeedEntry
            What lies behind the position, or behind the break.
        """
        before = self.offset
        is_other = self._is_other(epoch)
        is_there = not is_other and bool(entries) and entries[0].id == self.at
        behind = entries[1:] if is_there else entries
        follows = is_there or is_whole or not self.has_entry
        if not behind and is_other:
            self.at = end
        elif not behind and not follows:
            # A shorter feed is a loss that its publisher will name with a new epoch; until then
            # nothing can come behind our id.
            follows = id_key(end) <= id_key(self.at)
            self.at = max(self.at, end, key=id_key)
        self.epoch = epoch
        found: Break | None = None
        if is_other or not follows:
            to_ms = id_key(behind[0].id)[0] if behind else 0
            reason: Literal["trimmed", "epoch"] = "epoch" if is_other else "trimmed"
            found = Break(self.market, reason, before, self.offset, to_ms)
        self.read(behind)
        return found, behind

    def read(self, entries: Sequence[FeedEntry]) -> None:
        """Move behind entries that follow on the position."""
        if entries:
            self.at, self.has_entry = entries[-1].id, True

    def _is_other(self, epoch: str) -> bool:
        return bool(self.epoch) and epoch != self.epoch
