"""What the archive's tests share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where an archive is to be; it is not there yet."""
    return tmp_path / "archive"
