"""Plain values out of what a terminal sends: BSON's Int64 to int, no-value marks to None."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from qmt_protocol.numbers import NO_FLOAT

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["clean", "clean_frame"]

NO_INT: Final = 2_147_483_647
"""What the terminal writes where an integer has no value."""


def clean(value: Any) -> Any:
    """Return a document with plain numbers, and None where the terminal has no value."""
    if isinstance(value, dict):
        return {str(key): clean(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [clean(inner) for inner in value]
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        return None if value == NO_INT else int(value)
    if isinstance(value, float):
        return None if abs(value) >= NO_FLOAT else value
    # Dates come as text made of an int, the no-value mark included.
    return None if value == str(NO_INT) else value


def clean_frame(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a frame whose float columns have NaN where the terminal has no value."""
    floats = frame.select_dtypes("float")
    marks = floats.abs() >= NO_FLOAT
    if not marks.to_numpy().any():
        return frame
    frame = frame.copy()
    frame[floats.columns] = floats.mask(marks)
    return frame
