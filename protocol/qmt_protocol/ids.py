"""Ids that callers bring back: of stream entries and of jobs."""

from __future__ import annotations

import re
from typing import Final

from .errors import InvalidRequest
from .texts import shown

__all__ = [
    "BEGINNING",
    "ENTRY_ID",
    "JOB_ID",
    "id_key",
    "is_behind",
    "is_stream_id",
    "parse_entry_id",
    "parse_job_id",
]

BEGINNING: Final = "0-0"
"""Entry id before every entry."""

ENTRY_ID: Final = "^[0-9]{1,20}-[0-9]{1,20}$"
_DASH: Final = slice(13, 14)
JOB_ID: Final = "^[0-9A-Za-z_-]{1,64}$"
"""Patterns as OpenAPI spells them."""
_ENTRY: Final = re.compile(ENTRY_ID.removeprefix("^").removesuffix("$"))
_JOB: Final = re.compile(JOB_ID.removeprefix("^").removesuffix("$"))
_LAST_NUMBER: Final = 2**64 - 1


def id_key(entry_id: str) -> tuple[int, int]:
    """Return an entry id as numbers that compare as Redis orders them."""
    ms, _, number = entry_id.partition("-")
    return int(ms or 0), int(number or 0)


def is_behind(entry_id: str, other: str) -> bool:
    """Whether an entry comes behind another one of its stream; any does behind the empty id."""
    if len(entry_id) == len(other) and entry_id[_DASH] == "-" == other[_DASH]:
        return entry_id > other  # as most ids since 2001: a quarter of the time
    return not other or id_key(entry_id) > id_key(other)


def is_stream_id(text: str) -> bool:
    """Whether a text is an entry id that Redis may have given."""
    return _ENTRY.fullmatch(text) is not None and max(id_key(text)) <= _LAST_NUMBER


def parse_entry_id(value: object, field: str) -> str:
    """Check the id of a stream entry, ``<ms>-<number>``, and return it unchanged.

    Raises
    ------
    InvalidRequest
        When Redis could not have given it.
    """
    if isinstance(value, str) and is_stream_id(value):
        return value
    raise InvalidRequest(
        f"{field}={shown(value)} is not an entry id.",
        hint="Send what an answer gave, such as 1767576600000-0.",
        field=field,
    )


def parse_job_id(value: object, field: str = "id") -> str:
    """Check a job's id and return it unchanged.

    Raises
    ------
    InvalidRequest
        When it is none.
    """
    if isinstance(value, str) and _JOB.fullmatch(value):
        return value
    raise InvalidRequest(
        f"{field}={shown(value)} is not a job's id.",
        hint="Send what the submission gave.",
        field=field,
    )
