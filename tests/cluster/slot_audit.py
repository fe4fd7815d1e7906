"""What a server was really sent, step by step, and in which slots of a Cluster its keys lie.

A step is what the server does as one: a command, or a transaction. MONITOR tells the steps, the
server itself says which of a command's words are keys, and redis-py which slot a key has.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import redis
from redis.crc import key_slot

__all__ = ["Recording", "Step"]

_LINE: Final = re.compile(rb"\d+\.\d+ \[\d+ ([^\]]+)\] (.*)", re.DOTALL)
_WORD: Final = re.compile(rb'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_ESCAPE: Final = re.compile(rb"\\x([0-9a-f]{2})|\\(.)", re.DOTALL)
_LETTERS: Final = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"a": b"\a", b"b": b"\b"}
_ASKED_AT_ONCE: Final = 500
_NO_KEYS: Final = ("no key arguments", "Invalid command")
"""What the server says of a command without keys, and of one that it does not know and refused."""

Command = tuple[bytes, ...]


@dataclass(frozen=True)
class Step:
    """One command, or all of a transaction."""

    commands: tuple[str, ...]
    keys: tuple[tuple[str, ...], ...]
    """Of each command."""
    is_transaction: bool

    @property
    def slots(self) -> set[int]:
        """Slots of all its keys."""
        return {key_slot(key.encode()) for keys in self.keys for key in keys}

    def __str__(self) -> str:
        told = [f"{name} {' '.join(keys[:4])}" for name, keys in self._pairs()]
        return ("MULTI: " if self.is_transaction else "") + "; ".join(told[:8])

    def _pairs(self) -> list[tuple[str, tuple[str, ...]]]:
        return list(zip(self.commands, self.keys, strict=True))


def _plain(word: bytes) -> bytes:
    """Return a word as it was sent."""

    def sent(found: re.Match[bytes]) -> bytes:
        digits, letter = found.groups()
        return bytes.fromhex(digits.decode()) if digits else _LETTERS.get(letter, letter)

    return _ESCAPE.sub(sent, word)


def _name(command: Command) -> str:
    name = command[0].decode().upper()
    return f"{name} {command[1].decode()}" if name == "FCALL" else name


class Recording:
    """Records a server while it is open; its steps can be asked for when it is closed."""

    def __init__(self, url: str) -> None:
        self._server = redis.Redis.from_url(url, socket_timeout=None)
        self._watch = self._server.connection_pool.get_connection()
        self._lines: list[tuple[bytes, bytes]] = []
        self._end = f"end of recording {id(self)}"
        self._thread = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> Recording:
        self._watch.send_command("MONITOR")
        assert self._watch.read_response() in (b"OK", "OK")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.echo(self._end)
        self._thread.join()
        self._watch.disconnect()

    def close(self) -> None:
        """Close the connections."""
        self._server.close()

    def _read(self) -> None:
        while True:
            line: Any = self._watch.read_response(disable_decoding=True)
            found = _LINE.match(line)
            assert found is not None, line[:200]
            client, words = found.groups()
            if client == b"lua":
                continue  # it may touch no keys but those it was called with
            if self._end.encode() in words:
                return
            self._lines.append((client, words))

    def sent(self) -> dict[bytes, list[Command]]:
        """Return each connection's commands in order."""
        sent: dict[bytes, list[Command]] = {}
        for client, command in self._commands():
            sent.setdefault(client, []).append(command)
        return sent

    def _commands(self) -> Iterator[tuple[bytes, Command]]:
        for client, words in self._lines:
            yield client, tuple(_plain(one) for one in _WORD.findall(words))

    def steps(self) -> list[Step]:
        """Return the different steps that have keys."""
        units: dict[tuple[bool, tuple[Command, ...]], None] = {}
        open_of: dict[bytes, list[Command]] = {}
        for client, command in self._commands():
            name = command[0].upper()
            if name == b"MULTI":
                open_of[client] = []
            elif name in (b"EXEC", b"DISCARD"):
                units[True, tuple(open_of.pop(client))] = None
            elif client in open_of:
                open_of[client].append(command)
            else:
                units[False, (command,)] = None
        keys = self._keys({one for _, commands in units for one in commands})
        steps = {
            Step(
                tuple(_name(one) for one in commands),
                tuple(keys[one] for one in commands),
                is_transaction,
            ): None
            for is_transaction, commands in units
        }
        return [one for one in steps if any(one.keys)]

    def _keys(self, commands: set[Command]) -> dict[Command, tuple[str, ...]]:
        # Redis 7.0 does not take a command without arguments for one.
        found: dict[Command, tuple[str, ...]] = {one: () for one in commands if len(one) == 1}
        asked = list(commands - found.keys())
        for begin in range(0, len(asked), _ASKED_AT_ONCE):
            some = asked[begin : begin + _ASKED_AT_ONCE]
            pipe = self._server.pipeline(transaction=False)
            for command in some:
                pipe.execute_command("COMMAND GETKEYS", *command)
            for command, answer in zip(some, pipe.execute(raise_on_error=False), strict=True):
                if isinstance(answer, Exception):
                    assert any(one in str(answer) for one in _NO_KEYS), (command[0], answer)
                    answer = []
                found[command] = tuple(map(str, answer))
        return found
