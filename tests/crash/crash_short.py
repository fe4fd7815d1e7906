"""What the short crash tests share; they lie in several files, so that they run side by side."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from crash_rig import Result

__all__ = ["SEED", "fail_on"]

SEED: Final = 20261122


def fail_on(result: Result, directory: Path) -> None:
    """Fail with what is wrong; the files of a good run go."""
    assert result.ok, "\n".join(result.problems)
    shutil.rmtree(directory)
