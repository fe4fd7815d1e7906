"""Who writes on the Linux side while a server is struck: each of the house's ways, and its log.

Every write carries a text of its own. Acknowledged, refused or unknown (the connection broke before
the answer) is all that is noted; where it must lie afterwards is the judge's.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal

import redis
from restart_stack import Stack
from rq import Queue
from rq.serializers import JSONSerializer

__all__ = ["MULTI_KEYS", "QUEUE", "WAYS", "Write", "Writers"]

State = Literal["acknowledged", "refused", "unknown"]
WAYS: Final = {
    **{"XADD": "streams", "MULTI": "streams", "ZADD": "streams"},
    **{"job": "jobs", "result": "jobs"},
}
"""The way, and the server it goes to."""
MULTI_KEYS: Final = ("{qmt:XX}:tick:000001.XX", "{qmt:XX}:tick:000002.XX")
"""Two streams that one transaction writes to."""
QUEUE: Final = "qmt-query"
_EVERY_S: Final = 0.03
_REASON: Final = re.compile(r"\b(maxmemory|MISCONF|NOPERM|LOADING|EXECABORT)\b")


@dataclass
class Write:
    """One write, as its writer knows it."""

    way: str
    text: str
    state: State
    at: float = field(default_factory=time.monotonic)


class Writers:
    """A thread that writes in turn by each way, through faults, until told to stop."""

    def __init__(self, stack: Stack) -> None:
        self._archive = stack.streams.connect("archive")
        self._producer = stack.streams.connect("producer")
        self._worker = stack.jobs.connect("worker")
        self._gateway = stack.jobs.connect("gateway")
        self._queue = Queue(QUEUE, connection=self._gateway, serializer=JSONSerializer)
        self._ways: dict[str, Callable[[str], object]] = {
            "XADD": self._xadd,
            "MULTI": self._multi,
            # Seen just now: what was seen long ago is forgotten by every producer.
            "ZADD": lambda text: self._archive.zadd("qmt:seen", {text: time.time() * 1000}),
            "job": self._job,
            "result": self._result,
        }
        self.done: list[Write] = []
        self.counts: Counter[tuple[str, State]] = Counter()
        self.errors: Counter[str] = Counter()
        """What was answered instead, by a word of it."""
        self.forbidden = ""
        """A right that a role lacks; nothing more is written then."""
        self._number = 0
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin a round's writes with an empty log."""
        self.done, self.counts = [], Counter()
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> list[Write]:
        """End the round's writes and return them."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        return self.done

    def close(self) -> None:
        """End all."""
        self.stop()
        for one in (self._archive, self._producer, self._worker, self._gateway):
            one.close()

    def _run(self) -> None:
        while not self._stopping.wait(_EVERY_S) and not self.forbidden:
            self.once()

    def once(self) -> None:
        """Write once by each way."""
        for way, write in self._ways.items():
            self._number += 1
            text = f"{way}-{self._number:07}"
            state: State = "acknowledged"
            try:
                write(text)
            except redis.exceptions.BusyLoadingError:
                state = "refused"
            except (redis.ConnectionError, redis.TimeoutError):
                state = "unknown"
            except redis.exceptions.NoPermissionError as error:
                self.forbidden = str(error)
                return
            except redis.ResponseError as error:
                state = "refused"
                found = _REASON.search(str(error))
                self.errors[found[0] if found else str(error)] += 1
            self.done.append(Write(way, text, state))
            self.counts[WAYS[way], state] += 1

    def _xadd(self, text: str) -> None:
        event = json.dumps({"kind": "note", "at_ms": time.time_ns() // 1_000_000, "text": text})
        self._archive.xadd("qmt:events:archive", {"e": event})

    def _multi(self, text: str) -> None:
        with self._producer.pipeline(transaction=True) as pipe:
            for key in MULTI_KEYS:
                pipe.xadd(key, {"t1": text})
            pipe.execute()

    def _job(self, text: str) -> None:
        self._queue.enqueue("operator.add", 1, 2, job_id=text, result_ttl=3600)

    def _result(self, text: str) -> None:
        with self._worker.pipeline(transaction=True) as pipe:
            pipe.set(f"qmt:result:{text}", text, ex=3600)
            pipe.xadd(f"qmt:job:{text}:progress", {"p": text}, maxlen=100)
            pipe.execute()
