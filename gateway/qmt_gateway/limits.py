"""How much one caller may have: figures, and the bucket that counts requests."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from qmt_protocol.errors import ConfigurationError

__all__ = ["BURST_S", "Bucket", "Limits", "limits_with", "parse_limits"]

BURST_S: Final = 2.0
"""A bucket holds what comes back in so long."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Figures of one caller, a key or an address without one; 0 is no limit."""

    requests_per_s: float = 200.0
    """REST requests and WebSocket messages; for a moment twice as many."""
    jobs_per_s: float = 50.0
    """Requests that put a job into a queue or take one out; for a moment twice as many."""
    jobs_at_once: int = 50
    """Requests that wait for a job at the same time."""
    connections: int = 500
    """Connections at a time, WebSocket and HTTP together."""
    codes_per_connection: int = 20_000
    """Codes, bars and whole markets (one each) that one WebSocket may be subscribed to."""
    codes: int = 200_000
    """The same over all of a caller's WebSockets."""
    unread_bytes: int = 256_000_000
    """Bytes that may wait in all of a caller's WebSockets."""
    rows: int = 50_000_000
    """Rows of one answer."""


_FIGURES = {field.name: field.type for field in msgspec.structs.fields(Limits)}


def parse_limits(parts: Iterable[str]) -> dict[str, float]:
    """Read ``name=figure`` pairs.

    Raises
    ------
    ConfigurationError
        For a limit that there is not, or a figure that is none.
    """
    given: dict[str, float] = {}
    for part in parts:
        name, _, figure = part.partition("=")
        given[name.strip()] = _figure(name.strip(), figure.strip())
    return given


def limits_with(given: Mapping[str, float], base: Limits) -> Limits:
    """Return limits with some figures in place of their own.

    Raises
    ------
    ConfigurationError
    """
    figures = {name: _figure(name, figure) for name, figure in given.items()}
    return msgspec.structs.replace(base, **figures)


def _figure(name: str, given: object) -> float:
    kind = _FIGURES.get(name)
    if kind is None:
        raise ConfigurationError(
            f"There is no limit {name!r}.", hint=f"Choose of {', '.join(_FIGURES)}."
        )
    try:
        figure = float(str(given))
    except ValueError:
        figure = math.nan
    if not 0 <= figure < math.inf or (kind is int and not figure.is_integer()):
        raise ConfigurationError(
            f"{name}={given} is not a figure of that limit.",
            hint=f"For example {name}={getattr(Limits(), name):g}; 0 is no limit.",
        )
    return int(figure) if kind is int else figure


class Bucket:
    """A token bucket; times are given, so that it knows no clock.

    Parameters
    ----------
    per_s
        Tokens that come back in a second; 0: there is no end of them.
    """

    def __init__(self, per_s: float, now: float) -> None:
        self.per_s = per_s
        self._tokens = self.size
        self._at = now

    @property
    def size(self) -> float:
        """Most tokens that it holds, and never less than one."""
        return max(1.0, self.per_s * BURST_S)

    def _fill(self, now: float) -> None:
        self._tokens = min(self.size, self._tokens + max(0.0, now - self._at) * self.per_s)
        self._at = now

    def take(self, now: float) -> float:
        """Take a token and return 0; where there is none, return in how many seconds there is."""
        if not self.per_s:
            return 0.0
        self._fill(now)
        if self._tokens < 1.0:
            return (1.0 - self._tokens) / self.per_s
        self._tokens -= 1.0
        return 0.0

    def owe(self, now: float) -> float:
        """Take a token though there be none, and return the seconds to wait before it is used."""
        if not self.per_s:
            return 0.0
        self._fill(now)
        self._tokens -= 1.0
        return max(0.0, -self._tokens / self.per_s)

    def left(self, now: float) -> int:
        """Return how many tokens there are."""
        self._fill(now)
        return max(0, int(self._tokens))

    def full_in_s(self, now: float) -> float:
        """Return in how many seconds it is full."""
        self._fill(now)
        return (self.size - self._tokens) / self.per_s if self.per_s else 0.0
