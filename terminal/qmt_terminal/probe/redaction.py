"""Takes out of a report what would tell who sent it: names, accounts, folders, hosts, addresses."""

from __future__ import annotations

import getpass
import os
import re
import socket
from collections.abc import Mapping
from typing import Any, Final

__all__ = ["Redactor"]

_ADDRESS: Final = re.compile(
    r"(?<![\w.])(?!127\.)(?!0\.0\.0\.0)(?:\d{1,3}\.){3}\d{1,3}(?![\w.]*\d)"
)
_ADDRESS_6: Final = re.compile(
    r"(?<![\w:])(?:(?:[0-9a-f]{1,4}:){7}[0-9a-f]{1,4}|(?!::1\b)[0-9a-f:]*::[0-9a-f:]*[0-9a-f])(?![\w:])",
    re.IGNORECASE,
)
_HARDWARE: Final = re.compile(r"(?<!\w)(?:[0-9a-f]{2}[:-]){5}[0-9a-f]{2}(?!\w)", re.IGNORECASE)
_HOME: Final = re.compile(
    r"""(?<![\w.~)-])(?:[A-Za-z]:)?[\\/]+(?:users|home|documents\ and\ settings)
        [\\/]+[^\\/"'<>|\r\n]+""",
    re.IGNORECASE | re.VERBOSE,
)
_SHARE: Final = re.compile(r"\\\\[^\\/\s]+")
_MAIL: Final = re.compile(r"[\w.+-]+@[\w-]+\.[\w.-]+")
_DIGITS: Final = re.compile(r"(?<![\d.])\d{6,}(?!\d)(?!\.[A-Z]{2,5}\b)")
_DATE: Final = re.compile(r"(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])")
_CLOCK: Final = re.compile(r"(?:[01]\d|2[0-3])[0-5]\d[0-5]\d")
_MS: Final = re.compile(r"1[0-9]\d{11}")
_FEWEST_CHARACTERS: Final = 3
"""Shorter names occur in ordinary words; they are taken out of paths alone."""
_MARKS: Final = frozenset({"2147483647", "99999999", "58610"})
_PLAIN_NAMES: Final = frozenset({"user", "admin", "administrator", "root", "localhost", "default"})


class Redactor:
    """Replaces private parts of text, in whole documents.

    Parameters
    ----------
    environment
        Where the user's name and home are looked up, and the computer's name.
    host
        The computer's name; default: this one's.
    """

    def __init__(self, environment: Mapping[str, str] | None = None, host: str = "") -> None:
        known = os.environ if environment is None else environment
        try:
            login = getpass.getuser()
        except (OSError, KeyError, ImportError):
            login = ""
        users = {known.get("USERNAME", ""), known.get("USER", ""), known.get("LOGNAME", ""), login}
        hosts = {
            known.get("COMPUTERNAME", ""),
            known.get("HOSTNAME", ""),
            host or socket.gethostname(),
        }
        homes = {known.get("USERPROFILE", ""), known.get("HOME", ""), os.path.expanduser("~")}
        self._rules = [
            *(self._folder(home) for home in sorted(homes, key=len, reverse=True) if len(home) > 3),
            (_HOME, "~"),
            (_SHARE, r"\\\\<host>"),
            *(self._word(name, "<user>") for name in users),
            *(self._word(name, "<host>") for name in hosts),
            (_MAIL, "<mail>"),
            (_ADDRESS, "<address>"),
            (_ADDRESS_6, "<address>"),
            (_HARDWARE, "<address>"),
        ]

    @staticmethod
    def _folder(path: str) -> tuple[re.Pattern[str], str]:
        parts = [re.escape(part) for part in re.split(r"[\\/]+", path.rstrip("\\/"))]
        return re.compile(r"[\\/]+".join(parts) + r"(?![^\\/\s\"'])", re.IGNORECASE), "~"

    @staticmethod
    def _word(name: str, mark: str) -> tuple[re.Pattern[str], str]:
        short = len(name) < _FEWEST_CHARACTERS or name.lower() in _PLAIN_NAMES
        if short and not re.search(r"[^\x00-\x7f]", name):
            return re.compile(r"(?!)"), ""  # matches nothing
        return re.compile(rf"(?<!\w){re.escape(name)}(?!\w)", re.IGNORECASE), mark

    def text(self, text: str) -> str:
        """Return text without its private parts."""
        for pattern, mark in self._rules:
            text = pattern.sub(mark, text)
        return _DIGITS.sub(_number, text)

    def document(self, value: Any) -> Any:
        """Return a JSON document with all its text redacted, its keys included."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {self.text(str(key)): self.document(inner) for key, inner in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.document(inner) for inner in value]
        return value


def _number(match: re.Match[str]) -> str:
    """Keep dates, times and marks; a number of six digits and more may be an account."""
    digits = match[0]
    if digits in _MARKS or set(digits) == {"9"}:
        return digits
    if len(digits) == 8 and _DATE.fullmatch(digits):
        return digits
    if len(digits) == 14 and _DATE.fullmatch(digits[:8]) and _CLOCK.fullmatch(digits[8:]):
        return digits
    return digits if _MS.fullmatch(digits) else "<number>"
