"""Fixtures of the Windows box's tests."""

from collections.abc import Iterator

import pytest
from windows_rig import Receiver


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A webhook receiver."""
    one = Receiver()
    yield one
    one.stop()
