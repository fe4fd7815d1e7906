"""The folder on the Windows box that holds all that is the bridge's own."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import platformdirs

__all__ = ["Home", "find_home"]

_NAME: Final = "qmt-bridge"


@dataclass(frozen=True)
class Home:
    """Where things lie: ``qmt.toml``, the ring, logs, reports.

    Parameters
    ----------
    folder
        The folder itself; made by whoever writes into it first.
    """

    folder: Path

    @property
    def config(self) -> Path:
        """The settings file: ``QMT_CONFIG``, else ``qmt.toml`` in the folder."""
        given = os.environ.get("QMT_CONFIG")
        return Path(given).absolute() if given else self.folder / "qmt.toml"

    @property
    def ring(self) -> Path:
        """What keeps ticks until Redis has them."""
        return self.folder / "ring.sqlite"

    @property
    def suspensions(self) -> Path:
        """What the worker knows of suspended days."""
        return self.folder / "suspensions.sqlite"

    @property
    def functions(self) -> Path:
        """Which functions each terminal was found to have."""
        return self.folder / "functions.json"

    @property
    def calendar(self) -> Path:
        """Holidays and trading days as the people here correct them; they may have made none."""
        return self.folder / "calendar.toml"

    def calendar_of(self, given: Path | None) -> Path:
        """Return the file that the setting ``calendar_file`` names, else the usual one."""
        return self.folder / given if given is not None else self.calendar

    @property
    def logs(self) -> Path:
        """Folder of the logs."""
        return self.folder / "logs"

    @property
    def reports(self) -> Path:
        """Folder of what ``doctor`` writes."""
        return self.folder / "reports"

    @property
    def lock(self) -> Path:
        """File that the running supervisor locks."""
        return self.folder / "supervisor.lock"

    @property
    def record(self) -> Path:
        """Who runs here, in JSON: the supervisor and its children."""
        return self.folder / "supervisor.json"


def find_home(given: Path | None = None) -> Home:
    """Return the home folder: the one given, ``QMT_HOME``, or the user's own data folder.

    On Windows that is ``%LOCALAPPDATA%\\qmt-bridge``.
    """
    named = given or os.environ.get("QMT_HOME")
    if named:
        return Home(Path(named).absolute())
    return Home(Path(platformdirs.user_data_dir(_NAME, appauthor=False)))
