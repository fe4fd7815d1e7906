"""Where a reader stands: what it saves, and what it brings back to go on exactly behind it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from qmt_protocol.codes import parse_code, parse_market
from qmt_protocol.errors import InvalidRequest
from qmt_protocol.ids import BEGINNING, parse_entry_id
from qmt_protocol.texts import parse_text, shown

__all__ = ["EVENTS", "Offset", "Position", "is_bound", "just_before"]

EVENTS: Final = "events"
"""Stands beside the markets: up to where the producer's own gaps were told."""
_CODES: Final = "codes"
_SEEN: Final = "seen"
_UNTIL: Final = "until"
_LAST_NUMBER: Final = 2**64 - 1
_EPOCH: Final = 64
"""Characters of an epoch at most."""

Offset = tuple[str, str]
"""Epoch and id of the last feed entry seen."""


def just_before(at_ms: int) -> str:
    """Return the greatest entry id before a moment: no entry has it, it is a bound."""
    return f"{at_ms - 1}-{_LAST_NUMBER}" if at_ms > 0 else BEGINNING


def is_bound(entry_id: str) -> bool:
    """Whether an id names no entry but a bound to read from."""
    return entry_id == BEGINNING or entry_id.endswith(f"-{_LAST_NUMBER}")


@dataclass
class Position:
    """A reader's position, as its user saves it.

    Attributes
    ----------
    offsets : dict
        Market (and `EVENTS`) to its `Offset`.
    codes : dict or None
        Code (of a bar: its series) to its last entry id seen, of all codes: with it a reader goes
        on from the codes' own streams where the feed no longer reaches back far enough.
    seen : dict
        The same, of the codes that were already taken from what lies behind the offset.
    until : dict
        Market to the feed entry id where nothing more of `seen` comes.
    """

    offsets: dict[str, Offset] = field(default_factory=dict)
    codes: dict[str, str] | None = None
    seen: dict[str, str] = field(default_factory=dict)
    until: dict[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, document: Mapping[str, Any]) -> Position:
        """Read what `to_dict` gave.

        Raises
        ------
        InvalidRequest
            When it is no position.
        """
        try:
            codes, seen = document.get(_CODES), document.get(_SEEN) or {}
            offsets = {
                _market(market): _offset(offset)
                for market, offset in document.items()
                if market not in (_CODES, _SEEN, _UNTIL)
            }
            until = {
                parse_market(market): parse_entry_id(at, "position")
                for market, at in (document.get(_UNTIL) or {}).items()
            }
            return cls(offsets, None if codes is None else _ids(codes), _ids(seen), until)
        except (AttributeError, TypeError, ValueError, LookupError, InvalidRequest) as error:
            reason = error.message if isinstance(error, InvalidRequest) else str(error)
            raise InvalidRequest(
                f"This is no position: {reason.rstrip('.')}.",
                hint="Pass what .position gave, unchanged.",
                field="position",
            ) from error

    def to_dict(self) -> dict[str, Any]:
        """Return it ready for JSON."""
        saved: dict[str, Any] = {market: list(offset) for market, offset in self.offsets.items()}
        if self.codes is not None:
            saved[_CODES] = dict(self.codes)
        if self.seen:
            saved[_SEEN], saved[_UNTIL] = dict(self.seen), dict(self.until)
        return saved


def _market(name: Any) -> str:
    return EVENTS if name == EVENTS else parse_market(name)


def _offset(offset: Any) -> Offset:
    if len(offset) != 2:
        raise ValueError(f"{shown(offset)} is not an epoch and an entry id")
    epoch, entry_id = offset
    return parse_text(epoch, "position", least=0, most=_EPOCH), parse_entry_id(entry_id, "position")


def _ids(of_codes: Mapping[str, Any]) -> dict[str, str]:
    # A bar's key is its series, period and code.
    for key in of_codes:
        parse_code(key.rpartition("|")[2])
    return {key: parse_entry_id(entry_id, "position") for key, entry_id in of_codes.items()}
