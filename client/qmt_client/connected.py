"""What reads through a transport."""

from __future__ import annotations

import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from qmt_runtime.fork_guard import ForkGuard

if TYPE_CHECKING:
    from qmt_reading.transport import Transport

__all__ = ["Connected"]

_T = TypeVar("_T")


class Connected:
    """What reads through a `Transport`, in the process that made it.

    Parameters
    ----------
    transport
        What carries the requests.
    tz
        As of `AsyncQMTClient`.
    """

    def __init__(self, transport: Transport, *, tz: str | None = "Asia/Shanghai") -> None:
        self._transport = transport
        self._tz = tz
        self._guard = ForkGuard()
        self._open: weakref.WeakSet[Any] = weakref.WeakSet()
        """Iterations that were handed out, each with an ``aclose``."""

    async def close(self) -> None:
        """End the iterations that are still open, and close all connections.

        A job that still runs for a waiting caller is not touched. In a forked child it does
        nothing: what is open is the parent's.
        """
        if not self._guard.is_here:
            return
        for one in tuple(self._open):
            with suppress(RuntimeError):  # one that another task is just stepping ends with it
                await one.aclose()
        await self._transport.close()

    def _opened(self, iteration: _T) -> _T:
        """Note an iteration that is handed out, to be ended with the client."""
        self._open.add(iteration)
        return iteration

    @property
    def transport(self) -> Transport:
        """What carries the requests; in a forked child it raises `WrongProcess`."""
        self._guard.check()
        return self._transport
