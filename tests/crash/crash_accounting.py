"""Accounts for every tick pushed: in its stream once, in order and equal, or in a named gap.

It knows nothing of Redis, of the simulator's files or of the code under test: a tick is a content
that can be compared, with its exchange time and the time it was pushed.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

__all__ = [
    "CountedGap",
    "Pushed",
    "Stored",
    "Verdict",
    "WindowGap",
    "account",
    "account_feed",
    "account_reader",
]

_SHOWN: Final = 8
LATE: Final = 1
SLACK_MS: Final = 1_000
"""A push is logged before it is received; a window speaks of receipt."""


class Pushed(NamedTuple):
    """One tick that the terminal sent to one subscription."""

    content: Hashable
    at_ms: int
    """Exchange time."""
    wall_ms: int
    subscription: int = 1


class Stored(NamedTuple):
    """One tick where it was to arrive."""

    content: Hashable
    at_ms: int
    """Its own exchange time."""
    id_ms: int
    """Exchange time by its entry id."""
    flags: int = 0


@dataclass(frozen=True)
class CountedGap:
    """A gap that names codes: code to (first exchange ms, last exchange ms, ticks)."""

    codes: Mapping[str, tuple[int, int, int]]


@dataclass(frozen=True)
class WindowGap:
    """A gap that names a time of receipt for whole markets; no markets: for all."""

    markets: frozenset[str]
    from_ms: int
    to_ms: int

    def holds(self, code: str, wall_ms: int, slack_ms: int = SLACK_MS) -> bool:
        """Whether a tick pushed at a moment may be among what it names."""
        if self.markets and code.rpartition(".")[2] not in self.markets:
            return False
        return self.from_ms - slack_ms <= wall_ms <= self.to_ms


@dataclass
class Verdict:
    """What the account came to; `problems` is empty where it is in order."""

    pushed: int = 0
    """Different ticks pushed."""
    stored: int = 0
    named_by_window: int = 0
    named_by_slack: int = 0
    """Of those: pushed just before the window, so that they were received in it at best."""
    named_by_count: int = 0
    late: int = 0
    lost: int = 0
    repeated: int = 0
    repeated_behind_gap: int = 0
    """Ticks that a reader got again after it was told that the history is another one."""
    reordered: int = 0
    invented: int = 0
    overnamed: int = 0
    """Ticks that counted gaps name beyond those missing."""
    details: list[str] = field(default_factory=list)

    @property
    def problems(self) -> list[str]:
        """Return what is wrong, in words."""
        wrong = {
            name: getattr(self, name)
            for name in ("lost", "repeated", "reordered", "invented", "overnamed")
        }
        told = [f"{count} {name}" for name, count in wrong.items() if count]
        return [*told, *self.details] if told else []

    def note(self, kind: str, code: str, count: int = 1, **facts: Any) -> None:
        """Count faults; the first few are kept in words."""
        setattr(self, kind, getattr(self, kind) + count)
        if len(self.details) < _SHOWN:
            self.details.append(f"{kind} {code}: {facts}")

    def figures(self) -> dict[str, int]:
        """Return the counts."""
        return {name: value for name, value in vars(self).items() if isinstance(value, int)}


def account(
    pushed: Mapping[str, Sequence[Pushed]],
    stored: Mapping[str, Sequence[Stored]],
    gaps: Iterable[CountedGap | WindowGap] = (),
    *,
    late_allowed: bool = False,
) -> Verdict:
    """Compare what was pushed, per code and in order, with what the streams hold.

    Parameters
    ----------
    late_allowed
        Whether two rings may be mixed: a tick of the one behind a later one of the other, marked
        late and filed at the stream's last ms.
    """
    verdict = Verdict()
    gaps = list(gaps)
    windows = [gap for gap in gaps if isinstance(gap, WindowGap)]
    named = [gap.codes for gap in gaps if isinstance(gap, CountedGap)]
    for code in {**pushed, **stored}:
        sent, held = pushed.get(code, ()), stored.get(code, ())
        verdict.stored += len(held)
        missing = _once_in_order(verdict, code, sent, held)
        _late_rules(verdict, code, held, late_allowed)
        of_code = [codes[code] for codes in named if code in codes]
        _name(verdict, code, missing, of_code, windows)
    known = {*pushed, *stored}
    for codes in named:
        verdict.overnamed += sum(told[2] for code, told in codes.items() if code not in known)
    return verdict


def _once_in_order(
    verdict: Verdict, code: str, sent: Sequence[Pushed], held: Sequence[Stored]
) -> list[Pushed]:
    """Check presence, repeats and order; return what was pushed and is not there."""
    places: dict[Hashable, int] = {}
    for store, entry in enumerate(held):
        if entry.content in places:
            verdict.note("repeated", code, at_ms=entry.at_ms, store=store)
        else:
            places[entry.content] = store
    first: dict[Hashable, Pushed] = {}
    last_pushed: dict[Hashable, Pushed] = {}
    reached: dict[int, int] = {}
    met: dict[int, set[Hashable]] = {}
    for tick in sent:
        first.setdefault(tick.content, tick)
        last_pushed[tick.content] = tick
        store = places.get(tick.content)
        of_subscription = met.setdefault(tick.subscription, set())
        if store is None or tick.content in of_subscription or held[store].flags & LATE:
            continue
        of_subscription.add(tick.content)
        if store < reached.get(tick.subscription, -1):
            # A snapshot at the begin of a later subscription repeats what was pushed before.
            if first[tick.content].subscription == tick.subscription:
                verdict.note("reordered", code, at_ms=tick.at_ms, store=store)
        else:
            reached[tick.subscription] = store
    verdict.pushed += len(first)
    for content, store in places.items():
        if content not in first:
            verdict.note("invented", code, at_ms=held[store].at_ms, store=store)
    # It counts as lost at its last push: each push was a chance to have it.
    return [last_pushed[content] for content in first if content not in places]


def _late_rules(verdict: Verdict, code: str, held: Sequence[Stored], late_allowed: bool) -> None:
    newest_ms = 0
    for entry in held:
        if entry.flags & LATE:
            verdict.late += 1
            if not late_allowed or entry.at_ms > newest_ms or entry.id_ms != newest_ms:
                verdict.note("reordered", code, late_at_ms=entry.at_ms, id_ms=entry.id_ms)
            continue
        if entry.at_ms < newest_ms or entry.id_ms != entry.at_ms:
            verdict.note("reordered", code, at_ms=entry.at_ms, id_ms=entry.id_ms)
        newest_ms = max(newest_ms, entry.at_ms)


def _name(
    verdict: Verdict,
    code: str,
    missing: list[Pushed],
    counted: list[tuple[int, int, int]],
    windows: list[WindowGap],
) -> None:
    """Find each missing tick in a gap; a counted gap has room for as many as it says."""
    room = [told[2] for told in counted]
    for tick in missing:
        for number, (first_ms, last_ms, _) in enumerate(counted):
            if room[number] and first_ms <= tick.at_ms <= last_ms:
                room[number] -= 1
                verdict.named_by_count += 1
                break
        else:
            if any(gap.holds(code, tick.wall_ms) for gap in windows):
                verdict.named_by_window += 1
                if not any(gap.holds(code, tick.wall_ms, 0) for gap in windows):
                    verdict.named_by_slack += 1
            else:
                verdict.note("lost", code, at_ms=tick.at_ms, wall_ms=tick.wall_ms)
    if sum(room):
        verdict.note("overnamed", code, sum(room), ticks=sum(room))


def account_reader(
    sent: Mapping[str, Sequence[Hashable]],
    got: Mapping[str, Sequence[Hashable]],
    named: Callable[[str, Hashable], bool] = lambda code, content: False,
    *,
    may_repeat: bool = False,
) -> Verdict:
    """Compare what lay in the streams, per code and in order, with what a reader wrote down.

    Parameters
    ----------
    named
        Tells whether a gap that the reader was told covers a tick of a code.
    may_repeat
        Whether it was told to expect ticks again; they come in order all the same.
    """
    verdict = Verdict()
    for code in {**sent, **got}:
        lay, held = sent.get(code, ()), got.get(code, ())
        verdict.pushed += len(lay)
        verdict.stored += len(held)
        place_of = {content: store for store, content in enumerate(lay)}
        reached = -1
        met: set[Hashable] = set()
        for content in held:
            store = place_of.get(content)
            if content in met and may_repeat and store is not None:
                verdict.repeated_behind_gap += 1
                reached = store
            elif content in met:
                verdict.note("repeated", code, content=content)
            elif store is None:
                verdict.note("invented", code, content=content)
            elif store < reached:
                verdict.note("reordered", code, content=content)
            else:
                reached = store
            met.add(content)
        for content in lay:
            if content in met:
                continue
            if named(code, content):
                verdict.named_by_window += 1
            else:
                verdict.note("lost", code, content=content)
    return verdict


def account_feed(
    fed: Mapping[str, Sequence[str]],
    stored: Mapping[str, Sequence[tuple[str, int]]],
    latest: Mapping[str, str],
) -> Verdict:
    """Compare what the feed has with what is filed: the same ids, once, and the last in `latest`.

    Parameters
    ----------
    stored
        Ids with the ticks' flags: a late one is not the latest.
    """
    verdict = Verdict()
    for code in {*fed, *stored, *latest}:
        ids, held = fed.get(code, ()), [one for one, _ in stored.get(code, ())]
        verdict.pushed += len(ids)
        verdict.stored += len(held)
        lost, invented = set(ids) - set(held), set(held) - set(ids)
        twice = len(ids) - len(set(ids))
        for kind, count in (
            ("lost", len(lost)),
            ("invented", len(invented)),
            ("repeated", twice),
        ):
            if count:
                verdict.note(kind, code, count)
        if not (lost or invented or twice) and list(ids) != held:
            verdict.note("reordered", code)
        newest = [one for one, flags in stored.get(code, ()) if not flags & LATE]
        if newest and latest.get(code) != newest[-1]:
            verdict.note("reordered", code, latest=latest.get(code), newest=newest[-1])
    return verdict
