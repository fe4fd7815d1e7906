"""The description of ``t1``, ``k1``, ``b1`` and ``c1`` that lies in Redis beside the data."""

from __future__ import annotations

import json
from typing import Any, Final

from .bars import BAR_FIELDS
from .decoding import decode_document
from .errors import CodecError, WrongVersion
from .numbers import PRICE_SCALE, PRICE_TOLERANCE
from .texts import shown
from .ticks import PHASES, TICK_FIELDS, TickFlag

__all__ = ["FEED", "WIRE_VERSION", "check_job_version", "check_version", "schema_documents"]

WIRE_VERSION: Final = 2
FEED: Final = "b1"
"""Field of ``<prefix>:schema`` by which versions are compared."""

_KINDS: Final = {
    "time": "int",
    "int": "int (a literal float where the terminal sent a fraction)",
    "ints": "array of int",
    "float": "number (whole values as int)",
    "price": "price",
    "prices": "array of price",
    "bool": "bool",
}


def schema_documents() -> dict[str, str]:
    """Return schema name to JSON text, as the producer writes it to ``<prefix>:schema``."""
    price = {
        "price_scale": PRICE_SCALE,
        "price_rule": "an integer is a price times price_scale, a float is the price itself",
        "price_tolerance_yuan": PRICE_TOLERANCE,
        "missing": "nil",
    }
    sizes = {"sizes": "beside it, field sizes: the bytes of each, u32 with the highest byte first"}
    documents: dict[str, dict[str, Any]] = {
        "t1": {
            "what": "one tick: the value of field t1 in a tick stream",
            "encoding": "msgpack array, elements in this order",
            **price,
            "fields": [
                *_described(TICK_FIELDS),
                {"name": "extra", "type": "map or nil", "unit": "keys not named above"},
                {
                    "name": "flags",
                    "type": "int",
                    "unit": "bits",
                    "bits": {str(int(flag)): str(flag.name).lower() for flag in TickFlag},
                },
            ],
            "phases": {str(code): name for code, name in PHASES.items()},
        },
        "k1": {
            "what": "one bar: the value of field k1 in a bar stream",
            "encoding": "msgpack array, elements in this order",
            **price,
            "fields": [
                *_described(BAR_FIELDS),
                {"name": "extra", "type": "map or nil", "unit": "keys not named above"},
            ],
        },
        "b1": {
            "what": "one batch: the value of field b1 in a market's feed",
            "encoding": "msgpack array of [code, entry id, t1 array]",
            **sizes,
        },
        "c1": {
            "what": "one batch of bars: the value of field c1 in a market's feed",
            "encoding": "msgpack array of [code, period, entry id, k1 array]",
            **sizes,
        },
    }
    return {
        name: json.dumps({"version": WIRE_VERSION, **document}, ensure_ascii=False)
        for name, document in documents.items()
    }


def check_job_version(version: Any, what: str) -> None:
    """Look whether a job, or its result, is of this program's version of the wire.

    Raises
    ------
    WrongVersion
    """
    if version != WIRE_VERSION:
        raise WrongVersion(
            f"{what} is of version {shown(version)} of the wire; this program reads and writes "
            f"version {WIRE_VERSION}.",
            hint="Give all parts of the bridge one version.",
        )


def check_version(document: bytes | None, prefix: str, address: str) -> None:
    """Look whether what lies in Redis is what this program reads and writes.

    Parameters
    ----------
    document
        The field `FEED` of the schema; what is none says nothing.

    Raises
    ------
    WrongVersion
        When it names another version.
    """
    try:
        version = decode_document(document or b"{}", dict[str, Any], "The schema").get("version")
    except CodecError:
        return
    if isinstance(version, int) and version != WIRE_VERSION:
        raise WrongVersion(
            f"Under the prefix {prefix} in Redis at {address} lies version {version} of the wire; "
            f"this program reads and writes version {WIRE_VERSION}.",
            hint="Give all parts of the bridge one version; then remove the old keys, or choose "
            "another QMT_PREFIX.",
        )


def _described(fields: tuple[tuple[str, str, str], ...]) -> list[dict[str, str]]:
    return [{"name": name, "type": _KINDS[kind], "unit": unit} for name, kind, unit in fields]
