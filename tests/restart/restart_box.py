"""Starts and kills the Windows box of a cell, and waits for what it does."""

from __future__ import annotations

import multiprocessing
import os
import sys
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Final

import redis
import restart_windows
from restart_stack import Server
from waiting import WITHIN_S, wait_for

__all__ = ["Box"]

# Its imports once, not in each of hundreds of starts. The fork server looks for them where every
# Python does, and says nothing where it does not find them.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
FORKS: Final = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["restart_windows"])


class Box:
    """The process of `restart_windows`, on a ring and a log that outlive it."""

    def __init__(self, server: Server, folder: Path, seed: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / "pushed"
        self._server = server
        self._folder = folder
        self._seed = seed
        self._process: ForkServerProcess | None = None
        self._orders: Connection | None = None

    def start(self) -> None:
        """Start it, and wait until it pushes."""
        self._seed += 1
        self._orders, theirs = FORKS.Pipe()
        self._process = FORKS.Process(
            target=restart_windows.run,
            args=(self._server.url("producer"), self._folder, self._seed, theirs),
        )
        self._process.start()
        theirs.close()
        self._await("ready")

    def _await(self, word: str) -> None:
        assert self._orders is not None
        if not self._orders.poll(WITHIN_S) or self._orders.recv() != word:
            raise RuntimeError(f"the Windows box did not say {word!r}; see box.log")

    def last_words(self) -> str:
        """Return the end of its log."""
        log = self._folder / "box.log"
        return log.read_text("utf-8", "replace")[-2000:] if log.exists() else "no log"

    @property
    def running(self) -> bool:
        """Whether it was started and not killed."""
        return self._process is not None

    def pause(self) -> None:
        """Let it push nothing more; what it pushed is all in its log then."""
        assert self._orders is not None
        self._orders.send("pause")
        self._await("paused")

    def go(self) -> None:
        """Let it push again."""
        assert self._orders is not None
        self._orders.send("go")

    def kill(self) -> None:
        """Kill it, as the power goes off."""
        if self._process is None or self._orders is None:
            return
        self._process.kill()
        self._process.join(10)
        self._process.close()
        self._orders.close()
        self._process = self._orders = None

    def wait_drained(self) -> None:
        """Wait until the last tick of each code that it kept is in Redis."""
        last: dict[str, str] = {}
        waiting: dict[str, str] = {}
        for line in self.log.read_text("utf-8").splitlines():
            kind, *rest = line.split(" ")
            if kind == "push" and len(rest) == 3:
                waiting[rest[0]] = f"{rest[1]}-0"
            elif kind == "kept":
                last.update(waiting)
            if kind in {"kept", "begin"}:
                waiting = {}

        def drained() -> bool:
            try:
                with self._server.judge.pipeline(transaction=False) as pipe:
                    for code in last:
                        market = code.rpartition(".")[2]
                        pipe.xrevrange(f"{{qmt:{market}}}:tick:{code}", count=1)
                    tails = pipe.execute()
            except redis.ConnectionError:
                return False
            return all(
                tail and _id_key(tail[0][0].decode()) >= _id_key(wanted)
                for tail, wanted in zip(tails, last.values(), strict=True)
            )

        wait_for(drained, "all that the Windows box pushed is in Redis")


def _id_key(entry_id: str) -> tuple[int, ...]:
    return tuple(map(int, entry_id.split("-")))
