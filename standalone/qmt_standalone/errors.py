"""What can go wrong while parts are started."""

from __future__ import annotations

from qmt_protocol.errors import Unavailable

__all__ = ["PartFailed"]


class PartFailed(Unavailable):
    """A part ended or did not become healthy; the message has the end of its log."""

    slug = "part-failed"
