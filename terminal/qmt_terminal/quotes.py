"""Whether the terminal has a quote server, as far as it tells."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from qmt_protocol.errors import QMTError, TerminalNotConnected, TerminalUnsupported

__all__ = ["QuoteServers"]

_AGAIN_S: Final = 5.0
"""While none is connected; a return is told by itself too, where that is supported."""
_UNWATCHED_S: Final = 30.0


class QuoteServers:
    """What one connection is told of the terminal's quote servers.

    A terminal has several, one for each market and level; it has none only when all are away.
    """

    def __init__(self) -> None:
        self.watched = False
        """Whether changes are told."""
        self._states: dict[str, bool] = {}
        self._changed = True
        self._can_ask = True
        self._up: bool | None = None
        self._asked_s = float("-inf")

    def on_status(self, status: dict[str, Any]) -> None:
        """Take a change of one server; on a native thread, so nothing is asked here."""
        self._states[str(status.get("address") or "")] = status.get("status") == "connected"
        self._changed = True

    def up(self, ask: Callable[[], dict[str, str] | None]) -> bool | None:
        """Return whether one is connected, ``None`` where the terminal does not tell.

        Parameters
        ----------
        ask
            Returns each key's ``ip:port``; called when something changed, and now and then while
            none is connected.
        """
        now_s = time.monotonic()
        every_s = _AGAIN_S if self._up is False else _UNWATCHED_S
        due = self._changed or (
            now_s - self._asked_s >= every_s and (self._up is False or not self.watched)
        )
        if due:
            self._changed = False
            self._asked_s = now_s
            self._up = self._ask(ask)
        return self._up

    def _ask(self, ask: Callable[[], dict[str, str] | None]) -> bool | None:
        if self._can_ask:
            try:
                servers = ask() or {}
            except TerminalNotConnected:
                self._changed = True
                return None
            except TerminalUnsupported:
                self._can_ask = False
            except QMTError:
                pass  # it cannot say now; what it told by itself counts
            else:
                return any(address.strip(":") for address in servers.values())
        states = list(self._states.values())
        return any(states) if states else None
