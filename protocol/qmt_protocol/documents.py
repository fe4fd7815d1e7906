"""Documents that callers send, as JSON or msgpack: read strictly, so that all readers agree.

What two readers would take differently is refused: a key that stands twice, NaN, a number out of
range, half of a surrogate pair, bytes that are not UTF-8.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any, Final

import msgpack
import msgspec

from .errors import InvalidRequest
from .texts import shown

__all__ = ["field_of", "parse_json", "parse_msgpack"]

_check: Final = msgspec.json.Decoder().decode
_PLACE: Final = re.compile(r" - at `(?:key in )?\$\.?(.*)`$")


def parse_json(data: bytes | str, field: str = "body") -> Any:
    """Return what a JSON text says.

    Parameters
    ----------
    field
        What the whole is called in errors; a repeated key is named itself.

    Raises
    ------
    InvalidRequest
        When it is not JSON (RFC 8259, in UTF-8), nested deeply, or names a key twice.
    """
    try:
        _check(data)
        return json.loads(data, object_pairs_hook=_once)
    except RecursionError:
        raise _too_deep(field) from None
    except (msgspec.MsgspecError, ValueError) as error:
        raise _unreadable("JSON", error, field) from None


def parse_msgpack(data: bytes, field: str = "body") -> Any:
    """Return what msgpack bytes say.

    Raises
    ------
    InvalidRequest
        When they are not msgpack, nested deeply, or name a key twice.
    """
    try:
        return msgpack.unpackb(data, object_pairs_hook=_once)
    except (RecursionError, msgpack.StackError):
        raise _too_deep(field) from None
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise _unreadable("msgpack", error, field) from None


def field_of(error: msgspec.MsgspecError, default: str = "body") -> str:
    """Return which field of a document an error is about, as ``codes.0``."""
    found = _PLACE.search(str(error))
    place = found[1] if found else ""
    return re.sub(r"\[(.*?)\]", r".\1", place).strip(".") or default


def _once(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    document = dict(pairs)
    if len(document) < len(pairs):
        key = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise InvalidRequest(
            f"The key {shown(key)} stands twice.",
            hint="Which of the two is meant cannot be told: send one.",
            field=shown(key)[1:-1],
        )
    return document


def _too_deep(field: str) -> InvalidRequest:
    return InvalidRequest(
        "The document is nested too deeply.", hint="No request needs that.", field=field
    )


def _unreadable(what: str, error: Exception, field: str) -> InvalidRequest:
    reason = str(error).rstrip(".") or type(error).__name__
    return InvalidRequest(
        f"This is no {what}: {reason[:200]}.", hint="Send one document.", field=field
    )
