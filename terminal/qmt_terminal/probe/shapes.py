"""Names for kinds of values, so that two terminals' answers can be laid side by side."""

from __future__ import annotations

import math
from typing import Any, Final

from qmt_protocol.numbers import NO_FLOAT

__all__ = ["frame_shape", "kind_of", "sentinel_of", "shape_of"]

_NO_INT: Final = 2_147_483_647
_MOST_KEYS: Final = 3


def kind_of(value: Any) -> str:
    """Return ``int``, ``float``, ``text``, ``list of float`` and the like.

    Zero tells nothing of a list's kind in JSON text, so a list takes that of its widest entry.
    """
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int"
    if isinstance(value, float):
        return "float"
    if isinstance(value, (str, bytes)):
        return "text" if isinstance(value, str) else "bytes"
    if isinstance(value, (list, tuple)):
        kinds = {kind_of(item) for item in value}
        inner = "float" if kinds == {"int", "float"} else "/".join(sorted(kinds)) or "nothing"
        return f"{len(value)} of {inner}"
    return "mapping" if isinstance(value, dict) else type(value).__name__


def sentinel_of(value: Any) -> str:
    """Return which mark for 'no value' this is, ``""`` for none."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return ""
    if isinstance(value, int) and value == _NO_INT:
        return "largest int32"
    if isinstance(value, float):
        if math.isnan(value):
            return "nan"
        if abs(value) >= NO_FLOAT:
            return "largest double"
    return value if value in ("99999999", str(_NO_INT)) else ""


def frame_shape(frame: Any) -> str:
    """Return a table's size in words: whether it has rows, and columns."""
    rows, columns = frame.shape
    if not rows:
        return "no rows" if columns else "no rows, no columns"
    return "rows"


def shape_of(value: Any) -> str:
    """Return an answer of xtdata's in a few words; codes and numbers are left out."""
    if value is None:
        return "none"
    if hasattr(value, "shape"):
        return f"table: {frame_shape(value)}"
    if isinstance(value, dict):
        inner = sorted({shape_of(item) for item in value.values()})[:_MOST_KEYS]
        return f"mapping of {' / '.join(inner)}" if inner else "empty mapping"
    if isinstance(value, (list, tuple)):
        return "list" if value else "empty list"
    return kind_of(value)
