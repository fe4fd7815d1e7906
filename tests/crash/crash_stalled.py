"""Scenario: one reader holds ``*`` and never reads its socket, beside 50 that read."""

from __future__ import annotations

import contextlib
import json
import math
import socket
import statistics
import time
from pathlib import Path
from typing import Any, Final

import msgpack
import psutil
from crash_rig import HERE, Result, Rig
from crash_scale import Scale
from waiting import wait_for

__all__ = ["stalled_reader"]

READERS: Final = 50
SUBPROTOCOL: Final = "qmt.v1.msgpack"
STALLED: Final = 4408
MOST_GROWTH_BYTES: Final = 64_000_000
_STUDENT_95: Final = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 9: 2.26, 14: 2.14, 19: 2.09}


def stalled_reader(directory: Path, seed: int, scale: Scale) -> Result:
    """Runs with and without the stalled one in pairs, the order drawn by lot."""
    result = Result("stalled_reader")
    ratios, with_it, without = [], [], []
    closes: list[dict[str, Any]] = []
    memory: list[int] = []
    with Rig(directory, seed) as rig:
        rig.start_producer("producer1")
        rig.wait_flowing()
        rig.start_gateway(QMT_BRIDGE_WS_STALL_S=str(scale.run_s + 2))
        rig.wait_gateway()
        url = rig.gateway_url.replace("http", "ws") + "/ws/v1"
        crowd = start_crowd(rig, url)
        process = psutil.Process(rig.pid("gateway"))
        time.sleep(3)
        memory.append(process.memory_info().rss)
        for _ in range(scale.pairs):
            p99: dict[bool, float] = {}
            for stalled in rig.random.sample([True, False], 2):
                if stalled:
                    begun_ms, end_ms = one_stalled(rig, url, scale.run_s, closes, memory, process)
                else:
                    begun_ms = time.time() * 1000
                    time.sleep(scale.run_s)
                    end_ms = time.time() * 1000
                p99[stalled] = p99_of(crowd, begun_ms, end_ms)
            with_it.append(p99[True])
            without.append(p99[False])
            ratios.append(p99[True] / p99[False])
        result.figures |= {
            "readers": READERS,
            "pairs": scale.pairs,
            "run_s": scale.run_s,
            "p99_ms_without": [round(one, 1) for one in without],
            "p99_ms_with": [round(one, 1) for one in with_it],
            **interval(ratios),
            "gateway_rss_mb_first": round(memory[0] / 1e6, 1),
            "gateway_rss_mb_most": round(max(memory) / 1e6, 1),
            "closes": [one["code"] for one in closes],
            "told": closes[-1] if closes else {},
        }
    result.check(all(one["code"] == STALLED for one in closes), f"closed with {closes}")
    result.check(len(closes) == scale.pairs, "not every stalled reader was closed")
    growth = max(memory) - memory[0]
    result.check(growth < MOST_GROWTH_BYTES, f"the gateway grew by {growth / 1e6:.0f} MB")
    return result


def start_crowd(rig: Rig, url: str) -> Path:
    """Start those that read; returns the file of their frames' ages."""
    codes = rig.directory / "codes.json"
    names = sorted(name.decode() for name in rig.streams.hkeys("{qmt:SH}:latest"))
    codes.write_text(json.dumps(names), "utf-8")
    file = rig.file_of("crowd")
    rig.start_helper(
        "crowd",
        str(HERE / "crash_crowd.py"),
        *("--url", url, "--file", str(file), "--codes", str(codes), "--count", str(READERS)),
    )
    wait_for(lambda: file.exists() and file.stat().st_size > 0, "the readers read")
    return file


def one_stalled(
    rig: Rig,
    url: str,
    run_s: float,
    closes: list[dict[str, Any]],
    memory: list[int],
    process: psutil.Process,
) -> tuple[float, float]:
    """Hold one that reads nothing for a run, then see how it is closed."""
    log = rig.directory / "gateway.log"
    told_before = log.read_text("utf-8").count("client stalled")
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    host, port = url.removeprefix("ws://").partition("/")[0].split(":")
    sock.connect((host, int(port)))
    stalled = _Unread(sock, url)
    begun_ms = time.time() * 1000
    deadline = time.monotonic() + run_s
    while time.monotonic() < deadline:
        memory.append(process.memory_info().rss)
        time.sleep(0.2)
    end_ms = time.time() * 1000
    wait_for(
        lambda: log.read_text("utf-8").count("client stalled") > told_before,
        "the stalled reader is noticed",
    )
    memory.append(process.memory_info().rss)
    closes.append(stalled.read_to_end())
    return begun_ms, end_ms


class _Unread:
    """A WebSocket that subscribes to everything and leaves it unread."""

    def __init__(self, sock: socket.socket, url: str) -> None:
        path = "/" + url.removeprefix("ws://").partition("/")[2]
        host = url.removeprefix("ws://").partition("/")[0]
        self._sock = sock
        key = "dGhlIHNhbXBsZSBub25jZQ=="
        sock.sendall(
            f"GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Protocol: {SUBPROTOCOL}\r\n\r\n".encode()
        )
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += sock.recv(1)
        if b" 101 " not in head.split(b"\r\n")[0]:
            raise RuntimeError(f"refused: {head!r}")
        body = msgpack.packb({"op": "subscribe", "codes": ["*"]})
        sock.sendall(bytes([0x82, 0x80 + len(body), 0, 0, 0, 0]) + body)

    def read_to_end(self) -> dict[str, Any]:
        """Read what was left, frame by frame; returns how it was closed and what was told."""
        kinds: dict[str, int] = {}
        message = b""
        self._sock.settimeout(15)
        with contextlib.closing(self._sock), self._sock.makefile("rb") as stream:
            try:
                while head := stream.read(2):
                    size = head[1] & 0x7F
                    if size >= 126:
                        size = int.from_bytes(stream.read(2 if size == 126 else 8), "big")
                    data = stream.read(size)
                    if head[0] & 0xF == 8:
                        code, reason = int.from_bytes(data[:2], "big"), data[2:].decode()
                        return {"code": code, "reason": reason, "messages": kinds}
                    if head[0] & 0xF > 8:
                        continue
                    message += data
                    if head[0] & 0x80:
                        kind = msgpack.unpackb(message)["type"]
                        kinds[kind] = kinds.get(kind, 0) + 1
                        message = b""
            except OSError as error:
                return {"code": 0, "reason": str(error), "messages": kinds}
        return {"code": 0, "reason": "no close frame", "messages": kinds}


def p99_of(file: Path, begun_ms: float, end_ms: float) -> float:
    """Return the 99th percentile of the ages of frames that arrived in a time, ms."""
    time.sleep(0.5)  # the last lines are written
    ages = []
    with file.open() as lines:
        for line in lines:
            at_ms, _, age = line.partition(" ")
            if age.endswith("\n") and begun_ms <= float(at_ms) <= end_ms:
                ages.append(float(age))
    ages.sort()
    if len(ages) < 100:
        raise TimeoutError(f"only {len(ages)} frames arrived")
    return ages[math.ceil(0.99 * len(ages)) - 1]


def interval(ratios: list[float]) -> dict[str, Any]:
    """Return the geometric mean of paired ratios and its 95 % confidence interval."""
    logs = [math.log(ratio) for ratio in ratios]
    mean = statistics.fmean(logs)
    told: dict[str, Any] = {"p99_ratio": round(math.exp(mean), 3)}
    if len(logs) > 1:
        student = _STUDENT_95.get(len(logs) - 1, 2.0)
        half = student * statistics.stdev(logs) / math.sqrt(len(logs))
        told["p99_ratio_95"] = [round(math.exp(mean - half), 3), round(math.exp(mean + half), 3)]
    return told
