"""What is kept for those who do not keep up.

All of a group who fell behind at the same frame have left out the same ever since: they share it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from qmt_protocol.cursor.conflation import Conflation

from .wires import Row

if TYPE_CHECKING:
    from .frame import Frame

__all__ = ["Kept"]

_KEY_BYTES: Final = 400
"""What a code costs: its row, and its place in two dicts."""


class Kept(Conflation[Row]):
    """The newest row of each code or bar since some frame, for some users."""

    def __init__(self) -> None:
        super().__init__(lambda row: row.at_ms)
        self.users = 0

    @property
    def size_bytes(self) -> int:
        """About what it takes."""
        return len(self.rows) * _KEY_BYTES

    def keep(self, frame: Frame) -> None:
        """Keep the newest of a frame."""
        self.add(((row.key, row) for row in frame.rows), frame.offsets)
