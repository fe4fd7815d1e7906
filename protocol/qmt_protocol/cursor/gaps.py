"""What a reader can no longer have, as it is told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qmt_protocol.errors import CodecError, Gap
from qmt_protocol.feed import is_entry_id
from qmt_protocol.ids import id_key
from qmt_protocol.limits import MAX_UNREADABLE

from .feed_offset import Break, FeedEntry
from .position import Offset
from .scope import Scope

__all__ = [
    "gap_of_event",
    "lost",
    "not_in_position",
    "stored_unreadable",
    "trimmed",
    "unreadable",
    "unreadable_in",
]


def lost(one: Break, *, only_bars: bool = False) -> Gap:
    """Return what a break of the feed took."""
    what = "Bars" if only_bars else "Data"
    why = "the history is another one" if one.reason == "epoch" else "they were trimmed"
    return Gap(
        f"{what} of {one.market} after feed entry {one.after[1]} can no longer be had: {why}.",
        hint="Read them from the codes' own streams, or as history.",
        market=one.market,
        reason=one.reason,
        after=one.after,
        epoch=one.at[0],
        from_ms=id_key(one.after[1])[0],
        to_ms=one.to_ms,
        **({"bars": True} if only_bars else {}),
    )


def not_in_position(market: str, after: Offset, codes: Sequence[str]) -> Gap:
    """Return what cannot be gone on with, as its last entry is not known."""
    return Gap(
        f"{len(codes)} code(s) of {market} are not in the position: it cannot be gone on.",
        hint="Begin with start=... to read their stored ticks.",
        market=market,
        reason="trimmed",
        after=after,
        from_ms=id_key(after[1])[0],
        codes={code: ["", ""] for code in codes},
    )


def trimmed(codes: Mapping[str, tuple[str, str]]) -> Gap:
    """Return what the codes' own streams lost: code to (last id seen, first id left)."""
    return Gap(
        f"The streams of {len(codes)} code(s) no longer reach back far enough.",
        hint="Read them as history.",
        reason="trimmed",
        codes={code: list(ids) for code, ids in codes.items()},
        from_ms=min(id_key(after)[0] for after, _ in codes.values()),
        to_ms=max(id_key(first)[0] for _, first in codes.values()),
    )


def stored_unreadable(error: CodecError, scope: Scope) -> Gap:
    """Return a stored tick that cannot be read."""
    code, entry_id = (str(error.data.get(name, "")) for name in ("code", "id"))
    market = code.rpartition(".")[2]
    facts: dict[str, Any] = {}
    if is_entry_id(entry_id):
        at_ms = id_key(entry_id)[0]
        facts = {"from_ms": at_ms, "to_ms": at_ms, "codes": {code: [entry_id, entry_id]}}
    return Gap(
        error.message,
        hint="Its writer may be of another version.",
        market=market if market in scope.markets else "",
        reason="unreadable",
        **facts,
    )


def unreadable_in(entry: FeedEntry, errors: Sequence[CodecError], after: Offset) -> list[Gap]:
    """Return what of a feed entry cannot be read, and how much where it is much."""
    facts: dict[str, Any] = {"market": entry.market, "reason": "unreadable", "after": after}
    where = f"eed entry {entry.id} of {entry.market}"
    gaps = [
        Gap(
            f"In f{where}: {error.message}",
            hint="Producer and reader may be of different versions.",
            **facts,
        )
        for error in errors[:MAX_UNREADABLE]
    ]
    if len(errors) > MAX_UNREADABLE:
        gaps.append(Gap(f"F{where} has {len(errors)} things that cannot be read.", **facts))
    return gaps


def unreadable(error: CodecError) -> Gap:
    """Return what could not be decoded."""
    facts = {"reason": "unreadable", **error.data}
    return Gap(error.message, hint=error.hint or "Its writer may be of another version.", **facts)


def gap_of_event(event: Mapping[str, Any], scope: Scope | None = None) -> Gap | None:
    """Return the gap that a producer's event names, where it concerns a scope (unless ``None``)."""
    if event.get("kind") != "gap":
        return None
    market, codes = event.get("market"), event.get("codes")
    concerned = codes if isinstance(codes, dict) else {}
    ticks = event.get("ticks", 0)
    if concerned and scope is not None:
        concerned = {code: figures for code, figures in concerned.items() if scope.holds(code)}
        if not concerned:
            return None
        ticks = sum(figures[2] for figures in concerned.values())
    elif scope is not None and market is not None and market not in scope.markets:
        return None
    reason = str(event.get("reason", "unknown"))
    return Gap(
        str(event.get("message", f"Ticks were lost before they were published: {reason}.")),
        hint="Read them as history.",
        market=market or "",
        reason=reason,
        from_ms=event.get("from_ms", 0),
        to_ms=event.get("to_ms", 0),
        ticks=ticks,
        codes=concerned,
    )
