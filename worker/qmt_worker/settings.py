"""Settings of `qmt-worker`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from qmt_protocol.settings import PathOrNone, RedisSettings, TerminalSettings

__all__ = ["WorkerSettings"]


class WorkerSettings(RedisSettings, TerminalSettings):
    """Answer history, download and reference jobs from the QMT terminal on this machine."""

    queue: Literal["", "qmt-query", "qmt-download"] = Field(
        "", description="serve this one queue in this process; empty: a process for each queue"
    )
    suspensions_file: PathOrNone = Field(
        None, description="file that keeps which days codes were suspended; empty: in memory"
    )
    exit_with_stdin: bool = Field(
        False, description="end when standard input closes, as when the parent process is killed"
    )
