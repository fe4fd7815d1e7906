"""Whether the archive of this very container is well: the image's health check for it.

Its heartbeat in Redis must be fresh, and the heartbeat must say that files can be written: that
is what it does, and Redis away, a full disk and a process that hangs all show there. By the
standard library alone: this is started every few seconds, and a Redis client takes ten times as
long to be imported as all of this takes.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from typing import IO
from urllib.parse import unquote, urlsplit

PREFIX = os.environ.get("QMT_PREFIX", "qmt")
FRESH_MS = 10_000
WITHIN_S = 5


def ask(stream: IO[bytes], *words: str) -> list[bytes]:
    """Send one command and return what it answers, flat.

    Raises
    ------
    OSError
        When Redis refuses it, or goes away.
    """
    parts = [word.encode() for word in words]
    stream.write(b"*%d\r\n" % len(parts))
    stream.writelines(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)
    stream.flush()
    return answer(stream)


def answer(stream: IO[bytes]) -> list[bytes]:
    """Read one answer."""
    line = stream.readline().rstrip()
    kind, rest = line[:1], line[1:]
    if kind == b"*":
        return [one for _ in range(int(rest)) for one in answer(stream)]
    if kind == b"$":
        return [] if rest == b"-1" else [stream.read(int(rest) + 2)[:-2]]
    if kind in (b"+", b":"):
        return [rest]
    raise OSError(rest.decode() or "Redis went away")


def trouble(url: str, host: str) -> str:
    """Return what is wrong with the archive that runs on a host, or nothing."""
    at = urlsplit(url)
    with (
        socket.create_connection((at.hostname or "", at.port or 6379), WITHIN_S) as connection,
        connection.makefile("rwb") as stream,
    ):
        ask(stream, "AUTH", unquote(at.username or "default"), unquote(at.password or ""))
        seconds, micros = map(int, ask(stream, "TIME"))
        since_ms = seconds * 1000 + micros // 1000 - FRESH_MS
        alive = ask(stream, "ZRANGE", f"{PREFIX}:seen", str(since_ms), "+inf", "BYSCORE")
        mine = [one for one in map(bytes.decode, alive) if one.startswith(f"archive:{host}:")]
        if not mine:
            return f"no heartbeat within {FRESH_MS // 1000} s"
        (beat,) = ask(stream, "HGET", f"{PREFIX}:status", mine[0])
        figures = json.loads(beat).get("figures", {})
        return "" if figures.get("writable") else f"not writable: {figures.get('error')}"


if __name__ == "__main__":
    try:
        found = trouble(os.environ["QMT_STREAMS_URL"], socket.gethostname())
    except OSError as error:
        found = f"Redis: {error}"
    sys.exit(found or 0)  # a message is printed and makes it 1
