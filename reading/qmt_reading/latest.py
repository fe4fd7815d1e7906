"""The last stored value of each code, and which cannot be read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Generic, TypeVar

from qmt_protocol.limits import MAX_UNREADABLE

__all__ = ["LatestValues"]

Value = TypeVar("Value")


class LatestValues(dict[str, Value], Generic[Value]):
    """Code to its last stored value.

    Attributes
    ----------
    unreadable : dict
        Codes (or markets) whose value cannot be read, and why; of very many some.
    """

    def __init__(
        self, values: Mapping[str, Value] | None = None, unreadable: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(values or {})
        self.unreadable = dict(unreadable or {})

    def leave_out(self, name: str, reason: str) -> None:
        """Note what cannot be read."""
        if len(self.unreadable) < MAX_UNREADABLE:
            self.unreadable[name] = reason

    def of(self, codes: Sequence[str]) -> LatestValues[Value]:
        """Return those of some codes, in their order."""
        return LatestValues({code: self[code] for code in codes if code in self}, self.unreadable)
