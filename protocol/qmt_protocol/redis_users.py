"""Redis users: what each role may do on each server, and the ACL files made from it.

This is the one description. ``scripts/redis-acl`` writes ``docker/redis/*.acl`` from it, for the
prefix ``qmt`` and for replays (``replay-...``); with ``--print streams --prefix other`` it prints
the same for another one. Every role begins with nothing (``-@all``); a grant is a selector:
these commands on these keys, and on no others.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

__all__ = ["FUNCTIONS", "LIBRARY", "USERS", "Grant", "Server", "User", "acl_file", "main"]

Server = Literal["streams", "jobs"]
Dialect = Literal["", "7.0"]

LIBRARY: Final = "qmt3"
"""Name in Redis of the producer's function library, and how its functions' names begin. Another
number with each change of ``functions.lua``: a producer finds the code that it was built with."""
FUNCTIONS: Final = ("append", "file", "lease", "complete", "epoch", "release")

_PREFIXES: Final = ("{prefix}", "replay-*")
_UNKNOWN_TO_7_0: Final = {"client|setinfo"}
"""Commands that an ACL file for Redis 7.0 must not name; it refuses the whole file."""

_CONNECT: Final = ("ping", "hello", "select", "client|setinfo", "client|setname", "time")
_TRANSACTION: Final = ("multi", "exec", "discard")
_WATCH: Final = ("watch", "unwatch", *_TRANSACTION)


@dataclass(frozen=True)
class Grant:
    """Commands on keys.

    Parameters
    ----------
    keys
        Patterns; ``@:`` stands for the prefix and its colon, ``@{`` for the braces that hold prefix
        and market. ``R `` in front: reading only, ``W ``: writing only; ``&``: a channel.
    commands
        Names, with ``|`` before a subcommand or a function.
    why
        What for.
    """

    keys: tuple[str, ...]
    commands: tuple[str, ...]
    why: str


@dataclass(frozen=True)
class User:
    """One role on one server.

    Parameters
    ----------
    commands
        What it may call that has no key.
    """

    role: str
    server: Server
    commands: tuple[str, ...]
    grants: tuple[Grant, ...]
    why: str


_MARKET_READS: Final = (
    *("get", "exists", "hget", "hmget", "hgetall", "hkeys", "hstrlen"),
    *("zrange", "xread", "xrange", "xrevrange", "xinfo|stream"),
)
_READS: Final = Grant(("R @{*", "R @:*"), _MARKET_READS, "reads all that is published")
_DEMAND: Final = Grant(
    ("&@:demand",), ("publish",), "says which codes and bars it demands beyond the standing ones"
)
_LIVES: Final = (
    Grant(("@:status",), ("hset",), "says that it lives"),
    Grant(("@:seen",), ("zadd",), "and when it did"),
)
_GATEWAY_LIVES: Final = (
    Grant(("@:status:gateway",), ("hset",), "says that it lives, where no other role says so"),
    Grant(("@:seen:gateway",), ("zadd",), "and when it did"),
)
_HEARD: Final = Grant(
    ("R @:status", "R @:seen", "R @:status:gateway", "R @:seen:gateway"),
    ("hget", "hmget", "hgetall", "hvals", "hkeys", "hstrlen", "zrange", "zrangebyscore"),
    "knows who lives",
)
_FORGETS: Final = (
    Grant(("@:status", "@:status:gateway"), ("hdel",), "removes what ended long ago"),
    Grant(("@:seen", "@:seen:gateway"), ("zrem",), "and when that was"),
)

_ENQUEUES: Final = (
    Grant(
        ("rq:job:*",),
        ("hset", "expire", "persist", "hget", "hmget", "exists"),
        "puts a job down and looks at it",
    ),
    Grant(("rq:queues",), ("sadd",), "names its queue"),
    Grant(
        ("rq:queue:qmt-query", "rq:queue:qmt-download"),
        ("rpush", "lrem", "llen"),
        "queues it, takes it back",
    ),
    Grant(
        ("@:job:*",),
        ("xread", "xrevrange", "exists", "set", "xadd", "expire"),
        "follows it, cancels it",
    ),
    Grant(("R @:result:*",), ("get", "exists", "strlen"), "reads its result, its length first"),
)
# RQ names keys by worker, job and registry; all of them are its own.
_RQ: Final = (
    *("get", "set", "del", "exists", "expire", "persist", "ttl", "type", "rename"),
    *("hset", "hget", "hmget", "hgetall", "hdel", "hexists", "hincrby", "hincrbyfloat"),
    *("hstrlen", "ltrim", "memory|usage"),
    *("sadd", "srem", "smembers", "scard", "sismember"),
    *("zadd", "zrem", "zrange", "zrangebyscore", "zremrangebyscore", "zremrangebyrank"),
    *("zscore", "zcard"),
    *("rpush", "lpush", "lpop", "lrem", "lrange", "llen", "lpos", "blpop", "lmove", "blmove"),
    *("xadd", "xread", "xrevrange", "xlen", "watch"),
)

USERS: Final = (
    User(
        "producer",
        "streams",
        (*_CONNECT, *_WATCH, "scan", "info", "function|list"),
        (
            Grant(
                ("@{*",),
                (
                    *(f"fcall|{LIBRARY}_{name}" for name in FUNCTIONS),
                    *("get", "set", "del", "unlink", "pexpire", "pttl", "exists", "memory|usage"),
                    *("hget", "hmget", "hgetall", "hkeys", "hlen", "hset"),
                    *("xadd", "xtrim", "xlen", "xrange", "xrevrange", "xinfo|stream"),
                ),
                "publishes under its lease, trims what is old; reads a day to replay it",
            ),
            Grant(("@:schema",), ("hset", "hget"), "describes what it publishes"),
            Grant(
                ("@:events", "@:events:producer", "@:events:refused"),
                ("xadd",),
                "tells gaps, what happened, what it refused",
            ),
            Grant(("&@:demand",), ("subscribe",), "learns what is demanded"),
            Grant(("@:refused",), ("hset", "hdel", "hkeys", "unlink"), "says what it cannot serve"),
            *_LIVES,
            _HEARD,
            *_FORGETS,
            Grant(("@:replay",), ("set", "get", "exists"), "marks a replay's prefix"),
            Grant(("replay-*:*",), ("unlink",), "takes a replay away again"),
        ),
        "Publishes ticks and bars; `qmt-windows` looks after it with the same user.",
    ),
    User(
        "worker",
        "streams",
        (*_CONNECT, *_TRANSACTION),
        _LIVES,
        "On this server a worker only says that it lives.",
    ),
    User(
        "gateway",
        "streams",
        (*_CONNECT, *_TRANSACTION),
        (_READS, _DEMAND, *_GATEWAY_LIVES),
        "Reads everything; says that it lives, and which series its callers demand.",
    ),
    User(
        "archive",
        "streams",
        (*_CONNECT, *_WATCH, "scan"),
        (
            Grant(("R @{*", "R @:*"), (*_MARKET_READS, "hvals"), "reads all that is published"),
            Grant(("W @{*}:archived",), ("set",), "says how far it has stored"),
            Grant(("@:archive",), ("set", "get", "del", "pexpire", "watch"), "a bucket's lease"),
            Grant(("@:events:archive",), ("xadd",), "tells what happened to it, in its own stream"),
            *_LIVES,
        ),
        "Stores what is published.",
    ),
    User(
        "client",
        "streams",
        (*_CONNECT, *_TRANSACTION),
        (_READS, _DEMAND),
        "QMTClient over Redis: reads, stores nothing, and says which series it demands.",
    ),
    User(
        "reader",
        "streams",
        (*_CONNECT, *_TRANSACTION),
        (
            Grant(
                ("R @{*", "R @:*"),
                (
                    *_MARKET_READS,
                    *("type", "hlen", "hvals", "hscan", "xlen"),
                    *("zscore", "zrangebyscore", "zrevrange"),
                ),
                "reads all that is published",
            ),
        ),
        "XREAD from any language: reads, and nothing else.",
    ),
    User(
        "worker",
        "jobs",
        (*_CONNECT, *_WATCH, "info", "client|info"),
        (
            Grant(("rq:*",), _RQ, "takes RQ's jobs and keeps its books"),
            Grant(("@:job:*",), ("xadd", "exists", "expire"), "tells progress"),
            Grant(("@:claim:*",), ("set", "get"), "runs an id once"),
            Grant(("@:jobs:dead",), ("xadd",), "tells what it could not run"),
            Grant(("@:result:*",), ("set", "expire", "del"), "writes results"),
        ),
        "Runs the catalogue's jobs: whoever may enqueue can name no others.",
    ),
    *(
        User(
            role,
            "jobs",
            (*_CONNECT, *_TRANSACTION, "info"),
            _ENQUEUES,
            why,
        )
        for role, why in (
            ("gateway", "Enqueues jobs for its callers and reads their results."),
            ("archive", "Asks for what was not recorded."),
            ("client", "QMTClient over Redis: enqueues jobs and reads their results."),
        )
    ),
)


def _patterns(key: str, prefix: str) -> list[str]:
    access, _, pattern = key.rpartition(" ")
    if pattern.startswith("&"):
        return [
            f"&{pattern[1:].replace('@:', f'{one.format(prefix=prefix)}:')}" for one in _PREFIXES
        ]
    names = [one.format(prefix=prefix) for one in _PREFIXES]
    if "@" in pattern:
        found = [pattern.replace("@{", f"{{{one}:").replace("@:", f"{one}:") for one in names]
    else:
        found = [pattern]
    return [f"%{access}~{one}" if access else f"~{one}" for one in found]


def _allowed(commands: Sequence[str], dialect: Dialect) -> list[str]:
    return [f"+{one}" for one in commands if dialect != "7.0" or one not in _UNKNOWN_TO_7_0]


def _lines(user: User, prefix: str, dialect: Dialect) -> list[str]:
    words = " ".join(_allowed(user.commands, dialect))
    lines = [f"user {user.role} on @{user.role.upper()}@ resetchannels -@all {words}"]
    for grant in user.grants:
        keys = [one for key in grant.keys for one in _patterns(key, prefix)]
        lines.append(f"({' '.join([*keys, *_allowed(grant.commands, dialect)])})")
    return lines


def acl_file(server: Server, *, prefix: str = "qmt", dialect: Dialect = "") -> str:
    """Return a server's ACL file; ``@ROLE@`` stands for a password's hash (``#...``).

    Parameters
    ----------
    server
        Which of the two.
    prefix
        The bridge's keys begin with it; prefixes of replays are there besides.
    dialect
        ``"7.0"`` for Redis 7.0, which knows some commands not yet.
    """
    newer = "Redis 7.2 or later, or Valkey" if not dialect else f"Redis {dialect}"
    text = [
        f"# Users of the {server} server, for {newer}. Written by scripts/redis-acl from",
        "# protocol/qmt_protocol/redis_users.py: change that. Each begins with nothing (-@all).",
        "#",
        "# The default user is off, and still has every right: while it loads its append-only file",
        "# Redis checks transactions as that user, and drops what it may not do.",
        "user default off ~* &* +@all",
        "",
        "# SHUTDOWN, SCRIPT KILL, FUNCTION LOAD, backups: for who runs the server.",
        "user admin on @ADMIN@ ~* &* +@all",
    ]
    for user in USERS:
        if user.server != server:
            continue
        text += ["", f"# {user.why}"]
        text.append(" \\\n    ".join(_lines(user, prefix, dialect)))
    return "\n".join(text) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the files into a folder, or print one server's."""
    parser = argparse.ArgumentParser(prog="redis-acl", description=main.__doc__)
    parser.add_argument("--prefix", default="qmt")
    parser.add_argument("--print", choices=("streams", "jobs"))
    parser.add_argument("--dialect", choices=("", "7.0"), default="")
    parser.add_argument("--folder", type=Path, default=Path())
    asked = parser.parse_args(arguments)
    if asked.print:
        sys.stdout.write(acl_file(asked.print, prefix=asked.prefix, dialect=asked.dialect))
        return 0
    for server, dialect, name in FILES:
        text = acl_file(server, prefix=asked.prefix, dialect=dialect)
        (asked.folder / name).write_text(text, encoding="utf-8", newline="\n")
    return 0


FILES: Final[tuple[tuple[Server, Dialect, str], ...]] = (
    ("streams", "", "streams.acl"),
    ("streams", "7.0", "streams-7.0.acl"),
    ("jobs", "", "jobs.acl"),
    ("jobs", "7.0", "jobs-7.0.acl"),
)
"""Server, dialect and name of each file in ``docker/redis``."""


if __name__ == "__main__":
    raise SystemExit(main())
