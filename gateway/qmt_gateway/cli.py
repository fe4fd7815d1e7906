"""``qmt-gateway keys``: add, list and revoke the keys that lie in the file."""

from __future__ import annotations

import argparse
import datetime as dt
import re
import sys
from pathlib import Path
from typing import Final

from qmt_protocol.errors import ConfigurationError, InvalidRequest
from qmt_protocol.settings import load_settings
from qmt_protocol.times import CHINA, parse_end

from .key_file import StoredKey, new_entry, new_key, read_keys, writing_keys
from .limits import Limits, parse_limits
from .scopes import SCOPES
from .settings import GatewaySettings

__all__ = ["keys_command"]

_DAYS: Final = re.compile(r"\d{1,5}", re.ASCII)
_NEVER: Final = "never"
_ABOUT: Final = """\
Keys that open the gateway. The file (QMT_BRIDGE_KEYS_FILE) holds their hashes; a key itself is
shown once, when it is added. A running gateway takes a change up within two seconds: nothing is
restarted, and a revoked key's connections end.
"""


def keys_command(arguments: list[str]) -> None:
    """Do what a command line after ``qmt-gateway keys`` says.

    Raises
    ------
    ConfigurationError
        When it cannot be done; the message says why.
    """
    asked = _parser().parse_args(arguments)
    path: Path = asked.file or load_settings(GatewaySettings, []).bridge_keys_file
    path = path.absolute()
    if asked.command == "add":
        _add(path, asked)
    elif asked.command == "list":
        _list(path)
    else:
        _revoke(path, asked.name)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "qmt-gateway keys",
        description=_ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--file", type=Path, help="in place of QMT_BRIDGE_KEYS_FILE")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add = commands.add_parser("add", help="make a key, and show it once")
    add.add_argument("name", metavar="NAME", help="what it is called in lists and logs")
    add.add_argument(
        "--scope", choices=SCOPES, default="read", help="each includes those before it; read"
    )
    add.add_argument(
        "--expires",
        default="365",
        metavar="DATE|DAYS",
        help="its last day (2027-01-31), for how many days, or 'never'; 365",
    )
    add.add_argument(
        "--limit",
        action="append",
        default=[],
        metavar="NAME=FIGURE",
        help=f"in place of the gateway's own, 0 for none: {', '.join(Limits.__struct_fields__)}",
    )
    commands.add_parser("list", help="show all, without the keys themselves")
    revoke = commands.add_parser("revoke", help="take one out; its connections end")
    revoke.add_argument("name", metavar="NAME")
    return parser


def _add(path: Path, asked: argparse.Namespace) -> None:
    now = dt.datetime.now(CHINA)
    key = new_key()
    entry = new_entry(
        key, asked.name, asked.scope, now, _expiry(asked.expires, now), parse_limits(asked.limit)
    )
    with writing_keys(path) as file:
        if file.find(asked.name) is not None:
            raise ConfigurationError(
                f"There is a key {asked.name} already.",
                hint="Revoke it first, or take another name.",
            )
        file.keys.append(entry)
    print(
        f"{entry.name}: {', '.join(entry.scopes)}; expires {entry.expires or _NEVER}.\n"
        f"Its hash is in {path}. The key, shown this once:",
        file=sys.stderr,
        flush=True,
    )
    print(key, flush=True)


def _expiry(text: str, now: dt.datetime) -> str | None:
    """Return the last day as the file has it.

    Raises
    ------
    ConfigurationError
        When it is no day to come.
    """
    if text == _NEVER:
        return None
    if _DAYS.fullmatch(text):
        return (now.date() + dt.timedelta(days=int(text))).isoformat()
    try:
        end_ms = parse_end(text)
    except InvalidRequest:
        end_ms = None
    if end_ms is None or end_ms < now.timestamp() * 1000:
        raise ConfigurationError(
            f"--expires {text!r} is no day to come.",
            hint="Give a day such as 2027-01-31, a number of days, or never.",
        )
    return text


def _list(path: Path) -> None:
    file = read_keys(path)
    if file is None or not file.keys:
        print(f"No keys in {path}.")
        return
    rows = [("name", "scopes", "created", "expires", "limits"), *map(_row, file.keys)]
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    for row in rows:
        print("  ".join(map(str.ljust, row, widths)).rstrip())


def _row(key: StoredKey) -> tuple[str, ...]:
    expires = key.expires or _NEVER
    if key.has_expired(dt.datetime.now(CHINA).timestamp() * 1000):
        expires += " (expired)"
    limits = ",".join(f"{name}={figure:g}" for name, figure in key.limits.items())
    return key.name, ",".join(key.scopes), key.created, expires, limits or "-"


def _revoke(path: Path, name: str) -> None:
    if read_keys(path) is None:
        raise ConfigurationError(f"There is no file {path}.", hint="See QMT_BRIDGE_KEYS_FILE.")
    with writing_keys(path) as file:
        found = file.find(name)
        if found is None:
            raise ConfigurationError(
                f"There is no key {name}.",
                hint=f"There is {', '.join(one.name for one in file.keys) or 'none'}.",
            )
        file.keys.remove(found)
    print(f"{name} is revoked.")
