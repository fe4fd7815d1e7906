"""Where a reader stands: what it saves, and what it brings back to go on exactly behind it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from qmt_protocol.codes import parse_code, parse_market
from qmt_protocol.errors import InvalidRequest
from qmt_protocol.ids import BEGINNING, parse_entry_id
from qmt_protocol.texts import parse_text, shown

__all__ = ["EVENTS", "Mark", "Place", "is_bound", "just_before"]

EVENTS: Final = "events"
"""Stands beside the markets: up to where the producer's own gaps were told."""
_CODES: Final = "codes"
_SEEN: Final = "seen"
_UNTIL: Final = "until"
_LAST_NUMBER: Final = 2**64 - 1
_EPOCH: Final = 64
"""Characters of an epoch at most."""

Mark = tuple[str, str]
"""Epoch and id of the last feed entry seen."""


def just_before(at_ms: int) -> str:
    """Return the greatest entry id before a moment: no entry has it, it is a bound."""
    return f"{at_ms - 1}-{_LAST_NUMBER}" if at_ms > 0 else BEGINNING


def is_bound(entry_id: str) -> bool:
    """Whether an id names no entry but a bound to read from."""
    return entry_id == BEGINNING or entry_id.endswith(f"-{_LAST_NUMBER}")


@dataclass
class Place:
    """A reader's position, as its user saves it.

    Attributes
    ----------
    marks : dict
        Market (and `EVENTS`) to its `Mark`.
    codes : dict or None
        Code (of a bar: its want) to its last entry id seen, of all codes: with it a reader goes on
        from the codes' own streams where the feed no longer reaches back far enough.
    seen : dict
        The same, of the codes that were already taken from what lies behind the mark.
    until : dict
        Market to the feed entry id where nothing more of `seen` comes.
    """

    marks: dict[str, Mark] = field(default_factory=dict)
    codes: dict[str, str] | None = None
    seen: dict[str, str] = field(default_factory=dict)
    until: dict[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, document: Mapping[str, Any]) -> Place:
        """Read what `to_dict` gave.

        Raises
        ------
        InvalidRequest
            When it is no position.
        """
        try:
            codes, seen = document.get(_CODES), document.get(_SEEN) or {}
            marks = {
                _market(market): _mark(mark)
                for market, mark in document.items()
                if market not in (_CODES, _SEEN, _UNTIL)
            }
            until = {
                parse_market(market): parse_entry_id(at, "position")
                for market, at in (document.get(_UNTIL) or {}).items()
            }
            return cls(marks, None if codes is None else _ids(codes), _ids(seen), until)
        except (AttributeError, TypeError, ValueError, LookupError, InvalidRequest) as error:
            reason = error.message if isinstance(error, InvalidRequest) else str(error)
            raise InvalidRequest(
                f"This is no position: {reason.rstrip('.')}.",
                hint="Pass what .position gave, unchanged.",
                field="position",
            ) from error

    def to_dict(self) -> dict[str, Any]:
        """Return it ready for JSON."""
        told: dict[str, Any] = {market: list(mark) for market, mark in self.marks.items()}
        if self.codes is not None:
            told[_CODES] = dict(self.codes)
        if self.seen:
            told[_SEEN], told[_UNTIL] = dict(self.seen), dict(self.until)
        return told


def _market(name: Any) -> str:
    return EVENTS if name == EVENTS else parse_market(name)


def _mark(mark: Any) -> Mark:
    if len(mark) != 2:
        raise ValueError(f"{shown(mark)} is not an epoch and an entry id")
    epoch, entry_id = mark
    return parse_text(epoch, "position", least=0, most=_EPOCH), parse_entry_id(entry_id, "position")


def _ids(of_codes: Mapping[str, Any]) -> dict[str, str]:
    # A bar's key is its want, period and code.
    for key in of_codes:
        parse_code(key.rpartition("|")[2])
    return {key: parse_entry_id(entry_id, "position") for key, entry_id in of_codes.items()}
