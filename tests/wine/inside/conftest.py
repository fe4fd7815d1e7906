"""These tests run in Windows' CPython; `test_wine_inside.py` starts them there."""

from __future__ import annotations

import os

import pytest


@pytest.fixture
def streams_url() -> str:
    """A Redis server on Linux."""
    if "QMT_STREAMS_URL" not in os.environ:
        pytest.skip("no Redis server is named by QMT_STREAMS_URL")
    return os.environ["QMT_STREAMS_URL"]
