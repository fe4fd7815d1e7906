"""A process full of clients: each reads its own connection and decodes all that it gets.

The moment that counts is when a frame has been decoded. What a client got is checked afterwards,
when no frame has come for a while: the frame is decoded once more, and its ticks are counted and
summed up, to be compared with the terminal's log.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import numpy as np
import numpy.typing as npt
from websockets.asyncio.client import connect
from websockets.typing import Subprotocol

from qmt_client.connections import connect_async
from qmt_client.feed import FeedReader
from qmt_protocol.keys import Keys
from qmt_protocol.live import MSGPACK_SUBPROTOCOL, FromGateway, Live, Subscribe, Welcome
from qmt_protocol.ticks import Tick

from .processes import Child, child

__all__ = ["FRAMES", "TICKS", "Group", "Kind", "Task", "readers"]

Kind = Literal["v1", "realtime", "whole_quote", "redis"]
_QUIET_S: Final = 0.25
FRAMES: Final = np.dtype(
    [
        *((name, np.int64) for name in ("client", "ns", "ticks", "first_ms", "last_ms")),
        *((name, np.int64) for name in ("times", "volumes", "prices", "bytes")),
    ]
)
"""One row per frame: who got it, when it was decoded, and sums over its ticks."""
TICKS: Final = np.dtype([("code", "S12"), ("time", np.int64), ("ns", np.int64)])
"""One row per tick, where a task asks for it."""

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
    output: str = ""


# -- the process ------------------------------------------------------------------------------


class _Client:
    def __init__(self, number: int, task: Task, got: list[tuple[int, int, Any]]) -> None:
        self._number = number
        self._task = task
        self._got = got
        self.subscribed = asyncio.Event()

    async def run(self) -> None:
        if self._task.kind == "redis":
            await self._redis()
        else:
            await self._websocket()

    async def _redis(self) -> None:
        connection = connect_async(self._task.url)
        try:
            reader = FeedReader(connection, Keys(), self._task.markets)
            await reader.start()
            self.subscribed.set()
            async for batch in reader.batches():
                self._got.append((self._number, time.time_ns(), batch))
        finally:
            await connection.aclose()

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
            async for frame in line:
                decoded = decode(frame)
                now_ns = time.time_ns()
                if v1 and not isinstance(decoded, Live):
                    if not isinstance(decoded, Welcome):
                        self.subscribed.set()
                    continue
                self.subscribed.set()
                self._got.append((self._number, now_ns, frame))

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


def _seen(kind: Kind, frame: Any) -> list[Seen]:
    """Return what a frame holds, decoded anew."""
    if kind == "redis":
        return [_of_map(tick.code, tick) for tick in frame]
    if kind == "v1":
        return [(code, row[0], row[7], _scaled(row[1])) for code, _, row in _v1(frame).ticks]
    document = _json(frame)
    if kind == "whole_quote":
        return [_of_map(code, tick) for code, tick in document.items()]
    return [_of_map(code, row) for code, rows in document.items() for row in rows]


def _of_map(code: str, tick: dict[str, Any] | Tick) -> Seen:
    return code, tick["time"], tick["volume"], round(tick["lastPrice"] * 10_000)


def _scaled(price: float) -> int:
    return price if isinstance(price, int) else round(price * 10_000)


class _Checker:
    """Works off what has come in, whenever it is quiet."""

    def __init__(self, task: Task, got: list[tuple[int, int, Any]]) -> None:
        self._task = task
        self._got = got
        self._done = 0
        self.frames: list[tuple[int, ...]] = []
        self.ticks: list[tuple[bytes, int, int]] = []

    async def run(self) -> None:
        while True:
            await asyncio.sleep(_QUIET_S / 4)
            if self._got and time.time_ns() - self._got[-1][1] > _QUIET_S * 1e9:
                while self._done < len(self._got):
                    self.one()
                    await asyncio.sleep(0)

    def finish(self) -> None:
        while self._done < len(self._got):
            self.one()

    def one(self) -> None:
        client, ns, frame = self._got[self._done]
        self._got[self._done] = (client, ns, None)
        self._done += 1
        seen = _seen(self._task.kind, frame)
        if not seen:
            return
        times = [one[1] for one in seen]
        sums = (sum(times), sum(one[2] for one in seen), sum(one[3] for one in seen))
        size = 0 if self._task.kind == "redis" else len(frame)
        self.frames.append((client, ns, len(seen), min(times), max(times), *sums, size))
        if self._task.per_tick:
            self.ticks += [(one[0].encode(), one[1], ns) for one in seen]


async def _main(task: Task) -> None:
    got: list[tuple[int, int, Any]] = []
    clients = [_Client(number, task, got) for number in range(task.clients)]
    running = [asyncio.ensure_future(client.run()) for client in clients]
    subscribed = asyncio.gather(*(client.subscribed.wait() for client in clients))
    failed = asyncio.ensure_future(asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED))
    await asyncio.wait([subscribed, failed], return_when=asyncio.FIRST_COMPLETED)
    if failed.done():
        for one in running:
            if one.done():
                one.result()
        raise RuntimeError("a client ended by itself")
    checker = _Checker(task, got)
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
def readers(directory: Path, task: Task, processes: int = 1) -> Any:
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
