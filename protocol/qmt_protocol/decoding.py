"""JSON that others wrote: decoded into what it must be, within bounds, or refused by name."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from functools import lru_cache
from typing import Any, Final, TypeVar, cast

import msgspec

from .errors import CodecError
from .limits import MAX_CONTAINERS, MAX_DEPTH, MAX_DOCUMENT_BYTES

__all__ = ["DECODE_ERRORS", "check_plain", "decode_document", "printable", "reason_of"]

DECODE_ERRORS: Final = (msgspec.MsgspecError, UnicodeDecodeError, ValueError, RecursionError)
"""What msgspec raises on bytes that are not what its decoder is made for."""
_LEAST, _MOST = -(2**63), 2**64 - 1
_SHOWN: Final = 200
_T = TypeVar("_T")


@lru_cache(maxsize=64)
def _decoder(kind: Hashable) -> Callable[[bytes], Any]:
    return msgspec.json.Decoder(kind).decode


def decode_document(
    data: bytes, kind: type[_T], what: str, *, most_bytes: int = MAX_DOCUMENT_BYTES, hint: str = ""
) -> _T:
    """Decode one JSON document.

    Parameters
    ----------
    kind
        What it must be: anything that msgspec can check.
    what
        Whose it is, for the error: it begins the sentence.
    most_bytes
        How long it may be.

    Raises
    ------
    CodecError
        When it is too long, no JSON, of another shape, or nested deeper than `MAX_DEPTH`.
    """
    try:
        if len(data) > most_bytes:
            raise ValueError(f"it has {len(data)} bytes, and may have {most_bytes}")
        if data.count(b"[") + data.count(b"{") > MAX_CONTAINERS:
            raise ValueError(f"it has more than {MAX_CONTAINERS} arrays and objects")
        data.decode("utf-8")  # msgspec does not look into what nobody asks for
        document: _T = _decoder(cast(Hashable, kind))(data)
        check_plain(document)
    except DECODE_ERRORS as error:
        raise CodecError(
            f"{what} cannot be read: {reason_of(error)}.",
            hint=hint or "Its writer may be of another version.",
        ) from error
    return document


def check_plain(value: Any, depth: int = MAX_DEPTH) -> None:
    """Make sure that a decoded value can be encoded again, as JSON and as msgpack.

    Raises
    ------
    ValueError
        When it is nested deeper than so, or holds what these two do not have.
    """
    if isinstance(value, (str, float, bytes)) or value is None:
        return
    if isinstance(value, int):
        if not _LEAST <= value <= _MOST:
            raise ValueError("a number in it is too large")
        return
    if depth < 1:
        raise ValueError("it is nested too deep")
    for inner in _parts_of(value):
        check_plain(inner, depth - 1)


def _parts_of(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise ValueError("a key in it is no text")
        return value.values()
    if isinstance(value, (list, tuple)):
        return value
    if isinstance(value, msgspec.Struct):
        return (getattr(value, name) for name in value.__struct_fields__)
    if value is msgspec.UNSET:
        return ()
    raise ValueError(f"it holds a {type(value).__name__}")


def reason_of(error: BaseException) -> str:
    """Return why something could not be read, in one line of bounded length."""
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    return printable(str(error).rstrip(".") or type(error).__name__)


def printable(text: bytes | str, most: int = _SHOWN) -> str:
    """Return what others wrote as text for a message: one line, printable, of bounded length."""
    text = text[: 4 * most]  # a character has at most 4 bytes
    decoded = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
    line = " ".join(decoded.split())
    line = "".join(one if one.isprintable() else "\ufffd" for one in line)
    return line if len(line) <= most else f"{line[: most - 1]}…"
