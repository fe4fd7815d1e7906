"""Texts that callers give: names, and how a wrong value is shown in a message."""

from __future__ import annotations

import re
from typing import Final

from .errors import InvalidRequest

__all__ = ["parse_text", "shown"]

_SHOWN: Final = 60
_UNSENDABLE: Final = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def shown(value: object) -> str:
    """Return a value for a message: its ``repr``, cut where it is long."""
    if isinstance(value, (str, bytes)):
        value = value[: _SHOWN + 1]  # a million characters are not written out to be cut
    try:
        text = repr(value)
    except ValueError:  # an int of thousands of digits
        text = f"<{type(value).__name__}>"
    return text if len(text) <= _SHOWN + 2 else f"{text[:_SHOWN]}..."


def parse_text(value: object, field: str, *, most: int, least: int = 1) -> str:
    """Check a text and return it unchanged.

    Parameters
    ----------
    field
        What it is called where it comes from.
    least, most
        How many characters it may have.

    Raises
    ------
    InvalidRequest
        When it is no text of that length, or has control characters or half of a surrogate pair.
    """
    if isinstance(value, str) and least <= len(value) <= most and not _UNSENDABLE.search(value):
        return value
    raise InvalidRequest(
        f"{field}={shown(value)} is not a name.",
        hint=f"Give {least} to {most} characters, none of them a control character.",
        field=field,
    )
