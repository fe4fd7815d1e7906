"""A process full of clients: each reads its own connection and decodes all that it gets.

The moment that counts is when a frame has been decoded. What a client got is checked afterwards,
as a rule when no frame has come for a while: the frame is decoded once more, and its ticks are
counted and summed up, to be compared with what was published.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import struct
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import numpy as np
import numpy.typing as npt
from websockets.asyncio.client import connect
from websockets.typing import Subprotocol

from qmt_protocol.live import MSGPACK_SUBPROTOCOL, FromGateway, Live, Subscribe, Welcome
from qmt_protocol.ticks import Tick

from .processes import Child, child

__all__ = ["FRAMES", "TICKS", "Group", "Kind", "Task", "readers"]

Kind = Literal["v1", "realtime", "whole_quote", "redis"]
_QUIET_S: Final = 0.25
_BEGUN_S: Final = 1.5
"""Where nothing says that a subscription has begun; it takes some ms."""
FRAMES: Final = np.dtype(
    [
        *((name, np.int64) for name in ("client", "ns", "ticks", "first_ms", "last_ms")),
        *((name, np.int64) for name in ("times", "volumes", "prices", "bytes")),
    ]
)
"""One row per frame: who got it, when it was decoded, and sums over its ticks."""
TICKS: Final = np.dtype([("code", "S12"), ("time", np.int64), ("ns", np.int64)])
"""One row per tick, where a task asks for it."""

_COMING: Final = 20
"""Clients that connect at the same time."""
_COUNT: Final = struct.Struct("<q")
Seen = tuple[str, int, int, int]
"""Code, time, volume and price in 1/10000 yuan."""


@dataclass
class Task:
    """What a process of clients does."""

    kind: Kind
    url: str
    """``host:port`` of a gateway, or a Redis URL."""
    clients: int
    codes: list[list[str]] = field(default_factory=list)
    """Codes of each client; one list: the same for all."""
    markets: list[str] = field(default_factory=lambda: ["SH", "SZ", "BJ"])
    per_tick: bool = False
    at_once: bool = False
    """Check what comes while more is coming: where the rate is asked for, not the latency."""
    output: str = ""


# -- the process ------------------------------------------------------------------------------


class _Client:
    def __init__(self, number: int, task: Task, checker: _Checker) -> None:
        self._number = number
        self._task = task
        self._checker = checker
        self.subscribed = asyncio.Event()

    async def run(self, door: asyncio.Semaphore) -> None:
        """Read until the process ends; clients come a few at a time."""
        await door.acquire()
        waiting = asyncio.ensure_future(self.subscribed.wait())
        waiting.add_done_callback(lambda _: door.release())
        if self._task.kind == "redis":
            await self._redis()
        else:
            await self._websocket()

    async def _redis(self) -> None:
        # Ticks come one by one: those of the same ms are noted together, at the last one's time.
        from qmt_client import AsyncQMTClient  # only where it is needed: it brings pandas along

        run: list[Tick] = []
        first_ns = last_ns = 0

        def note() -> None:
            if run:
                self._checker.take(self._number, last_ns, run.copy(), None)
                run.clear()

        async def note_what_is_left() -> None:
            while True:
                await asyncio.sleep(_QUIET_S / 4)
                note()

        client = AsyncQMTClient(self._task.url, jobs_url=self._task.url)
        asyncio.get_running_loop().call_later(_BEGUN_S, self.subscribed.set)
        left = asyncio.ensure_future(note_what_is_left())
        try:
            async for tick in client.ticks(markets=self._task.markets):
                now_ns = time.time_ns()
                if run and now_ns - first_ns > 1_000_000:
                    note()
                if not run:
                    first_ns = now_ns
                run.append(tick)
                last_ns = now_ns
        finally:
            left.cancel()
            await client.close()

    async def _websocket(self) -> None:
        task, decode = self._task, _DECODE[self._task.kind]
        v1 = task.kind == "v1"
        path = {"v1": "v1", "realtime": "realtime", "whole_quote": "whole_quote"}[task.kind]
        async with connect(
            f"ws://{task.url}/ws/{path}",
            subprotocols=[Subprotocol(MSGPACK_SUBPROTOCOL)] if v1 else None,
            compression=None,
            max_size=None,
            proxy=None,
            open_timeout=60,
            ping_interval=None,
        ) as line:
            await line.send(self._subscription())
            if not v1:  # these do not answer, and nothing may come for long
                asyncio.get_running_loop().call_later(_BEGUN_S, self.subscribed.set)
            async for frame in line:
                decoded = decode(frame)
                now_ns = time.time_ns()
                if v1 and not isinstance(decoded, Live):
                    if not isinstance(decoded, Welcome):
                        self.subscribed.set()
                    continue
                self._checker.take(self._number, now_ns, frame, decoded)

    def _subscription(self) -> bytes | str:
        task = self._task
        codes = task.codes[self._number % len(task.codes)] if task.codes else []
        if task.kind == "v1":
            markets = [] if codes else task.markets
            wish = Subscribe(id="1", codes=codes, markets=markets, snapshot=False)
            return msgspec.msgpack.encode(wish)
        if task.kind == "realtime":
            return json.dumps({"stocks": codes})
        return json.dumps({"codes": codes or task.markets})


_v1: Final = msgspec.msgpack.Decoder(FromGateway).decode
_json: Final = msgspec.json.Decoder().decode
_DECODE: Final[dict[str, Callable[[Any], Any]]] = {
    "v1": _v1,
    "realtime": _json,
    "whole_quote": _json,
}


def _seen(kind: Kind, decoded: Any) -> list[Seen]:
    """Return what a decoded frame holds."""
    if kind == "redis":
        return [_of_map(tick.code, tick) for tick in decoded]
    if kind == "v1":
        return [(code, row[0], row[7], _scaled(row[1])) for code, _, row in decoded.ticks]
    if kind == "whole_quote":
        return [_of_map(code, tick) for code, tick in decoded.items()]
    return [_of_map(code, row) for code, rows in decoded.items() for row in rows]


def _of_map(code: str, tick: dict[str, Any] | Tick) -> Seen:
    return code, tick["time"], tick["volume"], round(tick["lastPrice"] * 10_000)


def _scaled(price: float) -> int:
    return price if isinstance(price, int) else round(price * 10_000)


class _Checker:
    """Checks what came: at once, or whenever it is quiet."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._waiting: deque[tuple[int, int, Any]] = deque()
        self._last_ns = 0
        self._count = os.open(f"{task.output}.count", os.O_RDWR | os.O_CREAT, 0o600)
        self._ticks = 0
        self.frames: list[tuple[int, ...]] = []
        self.ticks: list[tuple[bytes, int, int]] = []

    def take(self, client: int, ns: int, frame: Any, decoded: Any) -> None:
        """Take one decoded frame of a client."""
        if self._task.at_once:
            self._check(client, ns, len(frame), frame if decoded is None else decoded)
        else:  # what is decoded would fill the memory
            self._waiting.append((client, ns, frame))
            self._last_ns = ns

    async def run(self) -> None:
        while True:
            await asyncio.sleep(_QUIET_S / 4)
            while self._waiting and time.time_ns() - self._last_ns > _QUIET_S * 1e9:
                self._one()
                await asyncio.sleep(0)

    def finish(self) -> None:
        """Check what is left."""
        while self._waiting:
            self._one()

    def _one(self) -> None:
        client, ns, frame = self._waiting.popleft()
        decode = _DECODE.get(self._task.kind)
        if decode is not None:
            self._check(client, ns, len(frame), decode(frame))
            return
        # Over Redis no frame says which push a tick came with: each counts by itself.
        for tick in frame:
            self._check(client, ns, 1, [tick])

    def _check(self, client: int, ns: int, size: int, decoded: Any) -> None:
        seen = _seen(self._task.kind, decoded)
        if not seen:
            return
        times = [one[1] for one in seen]
        sums = (sum(times), sum([one[2] for one in seen]), sum([one[3] for one in seen]))
        self.frames.append((client, ns, len(seen), min(times), max(times), *sums, size))
        if self._task.per_tick:
            self.ticks += [(one[0].encode(), one[1], ns) for one in seen]
        self._ticks += len(seen)
        os.pwrite(self._count, _COUNT.pack(self._ticks), 0)


async def _main(task: Task) -> None:
    checker = _Checker(task)
    clients = [_Client(number, task, checker) for number in range(task.clients)]
    door = asyncio.Semaphore(_COMING)
    running = [asyncio.ensure_future(client.run(door)) for client in clients]
    subscribed = asyncio.gather(*(client.subscribed.wait() for client in clients))
    failed = asyncio.ensure_future(asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED))
    first: set[asyncio.Future[Any]] = {subscribed, failed}
    await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
    if failed.done():
        for one in running:
            if one.done():
                one.result()
        raise RuntimeError("a client ended by itself")
    checking = asyncio.ensure_future(checker.run())
    gc.collect()
    gc.disable()  # what is decoded holds no cycles
    print(json.dumps({"ready": True}), flush=True)
    await _stdin_line()
    checking.cancel()
    checker.finish()
    ended = sum(one.done() for one in running)
    np.save(f"{task.output}.frames.npy", np.array(checker.frames, dtype=FRAMES))
    np.save(f"{task.output}.ticks.npy", np.array(checker.ticks, dtype=TICKS))
    print(json.dumps({"ended": ended}), flush=True)
    os._exit(0)  # a thousand closing handshakes prove nothing


async def _stdin_line() -> None:
    loop = asyncio.get_running_loop()
    told = loop.create_future()

    def read() -> None:
        os.read(0, 4096)
        loop.call_soon_threadsafe(told.set_result, None)

    threading.Thread(target=read, daemon=True).start()
    await told


# -- the benchmark's side ----------------------------------------------------------------------


@dataclass
class Group:
    """Processes of clients that are reading."""

    children: list[Child]
    outputs: list[Path]
    _loaded: tuple[npt.NDArray[Any], npt.NDArray[Any]] | None = None
    ended: int = 0
    """Clients whose connection had ended when the group was stopped."""

    @property
    def pids(self) -> dict[str, int]:
        """Name to process id."""
        return {f"clients {n + 1}": one.pid for n, one in enumerate(self.children)}

    @property
    def received_ticks(self) -> int:
        """Ticks decoded and checked so far, all clients together."""
        counts = (output.with_suffix(".count").read_bytes() for output in self.outputs)
        return sum(_COUNT.unpack(count)[0] for count in counts if count)

    def stop(self) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """End the reading; return all frames and, where asked for, all ticks."""
        if self._loaded is None:
            for one in self.children:
                one.tell("stop")
            self.ended = sum(one.line()["ended"] for one in self.children)
            frames = [np.load(f"{output}.frames.npy") for output in self.outputs]
            for number, part in enumerate(frames):
                part["client"] = part["client"] * len(frames) + number
            ticks = [np.load(f"{output}.ticks.npy") for output in self.outputs]
            self._loaded = np.concatenate(frames), np.concatenate(ticks)
        return self._loaded


@contextmanager
def readers(directory: Path, task: Task, processes: int = 1) -> Iterator[Group]:
    """Start clients in so many processes; yield their `Group` once all are subscribed."""
    with ExitStack() as stack:
        children, outputs = [], []
        for number in range(processes):
            share = len(range(number, task.clients, processes))
            output = directory / f"readers-{time.monotonic_ns()}"
            part = Task(**{**asdict(task), "clients": share, "output": str(output)})
            part.codes = task.codes[number::processes] if len(task.codes) > 1 else task.codes
            path = output.with_suffix(".json")
            path.write_text(json.dumps(asdict(part)), encoding="utf-8")
            outputs.append(output)
            children.append(
                stack.enter_context(
                    child(["benchmarks.readers", path], log=directory / "readers.log")
                )
            )
        yield Group(children, outputs)


if __name__ == "__main__":
    asyncio.run(_main(Task(**json.loads(Path(sys.argv[1]).read_text("utf-8")))))
