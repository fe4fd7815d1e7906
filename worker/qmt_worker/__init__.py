"""Answers jobs against the QMT terminal of this machine: history, downloads, reference data.

A queue's RQ process never touches xtdata: it drives one child process that owns the terminal
connection and can be killed, because a native call cannot be interrupted. This package imports
terminal and protocol; nothing imports it.
"""

from .settings import WorkerSettings

__all__ = ["WorkerSettings"]
