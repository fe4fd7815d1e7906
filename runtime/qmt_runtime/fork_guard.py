"""The one process in which a connection or an event loop may be used."""

from __future__ import annotations

import os

from qmt_protocol.errors import WrongProcess

__all__ = ["ForkGuard"]


class ForkGuard:
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
