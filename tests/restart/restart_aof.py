"""Reads append-only files by themselves: which entries stand where, whole transactions at once.

The format is the protocol's own: each command an array of texts; MULTI to EXEC is one unit.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

__all__ = ["Entry", "entries_of", "units"]

Entry = tuple[str, str]
"""A stream's key and an entry's id."""

_TRIM: Final = {b"MAXLEN", b"MINID"}


def _commands(data: bytes) -> Iterator[tuple[int, list[bytes]]]:
    """Yield each whole command with where it ends; stops at what is cut off."""
    at = 0
    while at < len(data):
        if data[at : at + 1] == b"#":  # a timestamp, where a server writes them
            at = data.find(b"\r\n", at) + 2
            if at < 2:
                return
            continue
        end = data.find(b"\r\n", at)
        if data[at : at + 1] != b"*" or end < 0:
            return
        words: list[bytes] = []
        count, at = int(data[at + 1 : end]), end + 2
        for _ in range(count):
            end = data.find(b"\r\n", at)
            if end < 0 or data[at : at + 1] != b"$":
                return
            size = int(data[at + 1 : end])
            if end + 2 + size + 2 > len(data):
                return
            words.append(data[end + 2 : end + 2 + size])
            at = end + 2 + size + 2
        yield at, words


def units(data: bytes) -> Iterator[tuple[int, list[list[bytes]]]]:
    """Yield where each unit ends, and its commands: what is loaded whole or not at all."""
    block: list[list[bytes]] | None = None
    for end, words in _commands(data):
        name = words[0].upper()
        if name == b"MULTI":
            block = []
        elif name == b"EXEC" and block is not None:
            yield end, block
            block = None
        elif block is not None:
            block.append(words)
        else:
            yield end, [words]


def entries_of(commands: list[list[bytes]]) -> Iterator[Entry]:
    """Yield the stream entries that commands add."""
    for words in commands:
        if words[0].upper() != b"XADD":
            continue
        at = 2
        while True:
            word = words[at].upper()
            if word == b"NOMKSTREAM":
                at += 1
            elif word in _TRIM:
                at += 3 if words[at + 1] in (b"=", b"~") else 2
            elif word == b"LIMIT":
                at += 2
            else:
                break
        yield words[1].decode(), words[at].decode()
