"""The errors of QMT Bridge, as ``qmt_protocol.errors`` has them."""

from qmt_protocol.errors import *  # noqa: F403
from qmt_protocol.errors import __all__

__all__ = [*__all__]
