"""These tests run in Windows' CPython; `test_wine_inside.py` starts them there."""

from __future__ import annotations

import os

import pytest


@pytest.fixture
def streams_url() -> str:
    """A Redis server on Linux."""
    return os.environ["QMT_STREAMS_URL"]
