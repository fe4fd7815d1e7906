"""What holds connections or an event loop, and the one process in which it may be used."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from qmt_protocol.errors import WrongProcess

if TYPE_CHECKING:
    from .transport import Transport

__all__ = ["Connected", "Maker"]


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

    @property
    def transport(self) -> Transport:
        """What carries the requests; in a forked child it raises `WrongProcess`."""
        self._maker.check()
        return self._transport
