"""The control channel of a simulated terminal: faults, bursts, its clock and its end."""

from __future__ import annotations

import os
import signal
import socket
import threading
from types import TracebackType
from typing import Any

from qmt_simulator import wire

__all__ = ["Control", "ControlError"]


class ControlError(RuntimeError):
    """The terminal refused a command, or is gone."""


class Control:
    """A synchronous client of the control channel; use it as a context manager.

    Parameters
    ----------
    port : int
        The terminal's port.
    host : str
        Its address.
    timeout_s : float
        How long one command may take.
    """

    def __init__(self, port: int, host: str = "127.0.0.1", *, timeout_s: float = 60.0) -> None:
        self._lock = threading.Lock()
        self._number = 0
        try:
            self._sock = socket.create_connection((host, port), timeout=timeout_s)
        except OSError as error:
            raise ControlError(f"no terminal at {host}:{port}: {error}") from error
        self.pid: int = self.call("hello", "control", os.getpid())
        """The terminal's process id."""

    def __enter__(self) -> Control:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the channel; faults stay as they are."""
        self._sock.close()

    def call(self, function: str, *args: Any) -> Any:
        """Send one request and return its value; `ControlError` where it is refused."""
        with self._lock:
            self._number += 1
            try:
                self._sock.sendall(wire.pack(wire.REQUEST, self._number, function, args))
                frame = wire.receive(self._sock)
                while frame[0] != wire.RESPONSE or frame[1] != self._number:
                    frame = wire.receive(self._sock)
            except OSError as error:
                raise ControlError(f"{function}: terminal is gone: {error}") from error
        _kind, _number, ok, value, _lines = frame
        if not ok:
            raise ControlError(str(value))
        return value

    def now(self) -> int:
        """Return the market time in ms since the epoch."""
        return int(self.call("control.now"))

    def status(self) -> dict[str, Any]:
        """Return pid, profile, seed, now_ms, last_seq, push_log, clients and subscriptions."""
        return dict(self.call("control.status"))

    def set_fault(self, name: str, **params: Any) -> int:
        """Switch a fault on, or make a momentary one happen.

        Lasting: `deaf` (role=, pid=), `stuck_download`, `empty_failure_download`,
        `failed_download` (message=), `not_realized` (func=), `latency` (func=, s=), `tick_time`
        (kind='missing'|'zero'|'repeated'|'backward'|'future', codes=, shift_ms=),
        `auction_zero` (codes=), `not_logged_in` (native clients are dropped and turned away),
        `quote_server_down` (no pushes, downloads fail).

        Momentary: `server_switch` (back_ms=), `abort_client` (role=, pid=), `drop_connection`
        (role=, pid=).

        Returns
        -------
        int
            Momentary faults: how many ticks were sent again, or clients hit. Otherwise 0.
        """
        return int(self.call("control.set_fault", name, params))

    def clear_fault(self, name: str = "") -> None:
        """Switch every fault of that name off; without a name all of them."""
        self.call("control.clear_fault", name)

    def burst(self) -> dict[str, int]:
        """Make the whole market tick in one push; returns first_seq, last_seq and wall_ms.

        One tick interval is held back first, so it takes that long.
        """
        return dict(self.call("control.burst"))

    def kill(self) -> None:
        """Kill the terminal's process as a crash would."""
        os.kill(self.pid, getattr(signal, "SIGKILL", signal.SIGTERM))
