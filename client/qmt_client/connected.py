"""What holds connections or an event loop, and the one process in which it may be used."""

from __future__ import annotations

import os
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from qmt_protocol.errors import WrongProcess

if TYPE_CHECKING:
    from .transport import Transport

__all__ = ["Connected", "Maker"]

_T = TypeVar("_T")


class Maker:
    """The process that made something which no fork carries over: a loop, a connection.

    A child that used them would wait for a thread that it does not have, and read from sockets
    that are its parent's too.
    """

    __slots__ = ("_pid",)

    def __init__(self) -> None:
        self._pid = os.getpid()

    @property
    def is_here(self) -> bool:
        """Whether this is that process."""
        return os.getpid() == self._pid

    def check(self) -> None:
        """Raise in every other process.

        Raises
        ------
        WrongProcess
        """
        if not self.is_here:
            raise WrongProcess(
                f"This client, or what it gave, was made in process {self._pid} and is used in "
                f"{os.getpid()}, which was forked from it.",
                hint="Make the QMTClient in the child, for instance in the pool's initializer, or "
                "use multiprocessing's 'spawn'.",
                made_in=self._pid,
            )


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
        self._maker = Maker()
        self._open: weakref.WeakSet[Any] = weakref.WeakSet()
        """Iterations that were handed out, each with an ``aclose``."""

    async def close(self) -> None:
        """End the iterations that are still open, and close all connections.

        A job that still runs for a waiting caller is not touched. In a forked child it does
        nothing: what is open is the parent's.
        """
        if not self._maker.is_here:
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
        self._maker.check()
        return self._transport
