"""What strikes the servers while everybody writes, and what may be missing because of it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from restart_aof import entries_of, units
from restart_judge import Ticks, entries_cut
from restart_stack import KINDS, Server
from waiting import wait_for

if TYPE_CHECKING:
    from restart_cell import Cell

__all__ = ["FAULTS", "Struck"]

_TAIL_S: Final = (1.0, 2.0)
_REWRITE_S: Final = 3.0
_HELD_S: Final = 2.5


@dataclass
class Struck:
    """What a fault leaves to be judged."""

    variant: str
    before: Ticks
    """What was there right before the end."""
    may_lack: set[tuple[str, str]] = field(default_factory=set)
    """Keys and ids of entries that were cut off, or never on disk."""
    may_lack_texts: dict[str, set[str]] = field(
        default_factory=lambda: {kind: set() for kind in KINDS}
    )
    held: set[tuple[str, str]] = field(default_factory=set)
    """Entries of the last moment that were acknowledged and not yet written: Redis holds writes
    back for up to 2 s while an fsync goes on, which on a busy machine may be at any kill."""
    held_texts: dict[str, set[str]] = field(default_factory=lambda: {kind: set() for kind in KINDS})
    start: Callable[[], None] | None = None
    """How the servers come back, where that is not the plain way."""
    relieve: Callable[[], None] = lambda: None
    """Ends what goes on behind the restart."""


def _end(cell: Cell, variant: str) -> Struck:
    """Look a last time, then kill servers and, where it goes, the Windows box, in either order."""
    box_first = cell.random.random() < 0.5
    if cell.away and box_first:
        cell.box.kill()
    struck = Struck(variant, Ticks.read(cell.stack.streams))
    cell.stack.kill()
    since = time.monotonic() - _HELD_S
    since_ms = int((time.time() - _HELD_S) * 1000)
    if cell.away:
        cell.box.kill()
    for server in cell.stack.servers:
        data = b"".join(path.read_bytes() for path in server.aof())
        struck.held_texts[server.kind] = {
            one.text
            for one in list(cell.writers.done)
            if one.at > since and one.text.encode() not in data
        }
        if server.kind == "streams":
            struck.held = {
                (f"{{qmt:{code.rpartition('.')[2]}}}:tick:{code}", entry_id)
                for code, rows in struck.before.streams.items()
                for entry_id, t1 in rows
                if int(entry_id.partition("-")[0]) > since_ms and t1 not in data
            }
    return struck


def term(cell: Cell) -> Struck:
    """SIGTERM, as `docker stop` sends it."""
    if cell.away:
        cell.box.kill()
    before = Ticks.read(cell.stack.streams)
    codes = [server.terminate() for server in cell.stack.servers]
    if codes != [0, 0]:
        raise RuntimeError(f"after SIGTERM the servers ended with {codes}")
    return Struck("term", before)


def kill(cell: Cell) -> Struck:
    """Killed at any moment."""
    return _end(cell, "kill")


def rewrite(cell: Cell) -> Struck:
    """Killed while the append-only file is rewritten, as that ends, and after it."""
    variant = cell.random.choice(["running", "ending", "finished"])
    slow_s = {"running": _REWRITE_S, "ending": 0.2, "finished": 0.0}[variant]
    for server in cell.stack.servers:
        keys = max(1, server.judge.dbsize())
        server.judge.config_set("rdb-key-save-delay", int(slow_s * 1e6 / keys))
        server.judge.bgrewriteaof()
    if variant == "running":
        for server in cell.stack.servers:
            wait_for(lambda one=server: _rewriting(one), "a rewrite runs")  # type: ignore[misc]
        time.sleep(cell.random.uniform(0, 0.3))
        struck = _end(cell, variant)
    else:
        for server in cell.stack.servers:
            wait_for(
                lambda one=server: not _rewriting(one),  # type: ignore[misc]
                "the rewrite ends",
            )
        if variant == "finished":
            time.sleep(cell.random.uniform(0, 0.2))
        struck = _end(cell, variant)
    return struck


def _rewriting(server: Server) -> bool:
    told = server.judge.info("persistence")
    return bool(told["aof_rewrite_in_progress"] or told["aof_rewrite_scheduled"])


def memory(cell: Cell) -> Struck:
    """The memory limit is reached, killed, and reached again from the start."""
    for server in cell.stack.servers:
        used = int(server.judge.info("memory")["used_memory"])
        server.memory = str(used // 2)
        server.judge.config_set("maxmemory", server.memory)
    cell.wait_refused("maxmemory")
    struck = _end(cell, "full")

    def relieve() -> None:
        for server in cell.stack.servers:
            server.memory = "256mb"
            server.judge.config_set("maxmemory", server.memory)

    struck.relieve = relieve
    return struck


def disk(cell: Cell) -> Struck:
    """The disk is full: room comes back, or the end comes first, or the start finds it full."""
    variant = cell.random.choice(["room", "killed", "killed, started"])
    if variant == "killed, started" and not cell.stack.disks:
        variant = "killed"
    safe, seen = Ticks.read(cell.stack.streams), len(cell.writers.done)
    fillers = [_fill(cell, server) for server in cell.stack.servers]

    def free() -> None:
        for empty in fillers:
            empty()

    cell.wait_refused("MISCONF")
    if variant == "room":
        free()
        cell.wait_acknowledged()
        return _end(cell, variant)
    struck = _end(cell, variant)
    _note_unwritten(cell, struck, safe, seen)
    if variant == "killed":
        if cell.stack.disks:
            free()
    else:
        struck.start = lambda: _start_full(cell, free)
        struck.relieve = free
    return struck


def _fill(cell: Cell, server: Server) -> Callable[[], None]:
    """Leave no room where a server writes; returns what gives it back."""
    if server.kind in cell.stack.disks:
        cell.stack.disks[server.kind].fill()
        return cell.stack.disks[server.kind].free
    server.limit_files(server.aof()[-1].stat().st_size + 4096)
    return lambda: server.limit_files(None)


def _start_full(cell: Cell, free: Callable[[], None]) -> None:
    """Start on a full disk; a server that ends at once is started again when there is room."""
    for server in cell.stack.servers:
        server.launch()
    for server in cell.stack.servers:
        if not server.answers():
            cell.figures["did not start on a full disk"] += 1
            server.kill()
            free()
            server.launch()
            if not server.answers():
                raise RuntimeError(f"{server.kind} did not start with room on its disk either")


def _note_unwritten(cell: Cell, struck: Struck, safe: Ticks, seen: int) -> None:
    """Note what was acknowledged when the disk was full already, and never came to lie on it."""
    data = b"".join(path.read_bytes() for path in cell.stack.streams.aof())
    kept = {entry for _, commands in units(data) for entry in entries_of(commands)}
    there = {code: {row[0] for row in rows} for code, rows in safe.streams.items()}
    struck.may_lack = {
        entry
        for code, rows in struck.before.streams.items()
        for entry_id, _ in rows
        if entry_id not in there.get(code, ())
        for entry in [(f"{{qmt:{code.rpartition('.')[2]}}}:tick:{code}", entry_id)]
        if entry not in kept
    }
    for server in cell.stack.servers:
        data = b"".join(path.read_bytes() for path in server.aof())
        whole = data[: max((end for end, _ in units(data)), default=0)]
        struck.may_lack_texts[server.kind] = {
            one.text for one in cell.writers.done[seen:] if one.text.encode() not in whole
        }


def tail(cell: Cell) -> Struck:
    """The power fails: the last 1 to 2 seconds of the append-only file are gone, at any byte."""
    variant = cell.random.choice(["plain", "plain", "just rewritten"])
    seconds = cell.random.uniform(*_TAIL_S)
    cell.wait_written_for(_TAIL_S[1] + 0.3)
    if variant == "just rewritten":
        for server in cell.stack.servers:
            server.judge.config_set("rdb-key-save-delay", 0)
            server.judge.bgrewriteaof()
        cell.wait_written_for(_TAIL_S[1] + 0.3 + cell.random.uniform(0.2, 1.5))
    struck = _end(cell, variant)
    moment = time.monotonic() - seconds
    for server in cell.stack.servers:
        path = server.aof()[-1]
        data = path.read_bytes()
        known = min(cell.stack.size_at(server, moment), len(data))
        later = min(cell.stack.size_at(server, moment + 0.06), len(data))
        cut = cell.random.randint(known, max(known, later))
        gone, boundary = entries_cut(data, cut)
        os.truncate(path, cut)
        cell.figures["bytes cut"] += len(data) - cut
        if server.kind == "streams":
            struck.may_lack = gone
        struck.may_lack_texts[server.kind] = {
            one.text
            for one in cell.writers.done
            if one.text.encode() in data[boundary:] and one.text.encode() not in data[:boundary]
        }
    return struck


FAULTS: Final = {
    "term": term,
    "kill": kill,
    "rewrite": rewrite,
    "memory": memory,
    "disk": disk,
    "tail": tail,
}
