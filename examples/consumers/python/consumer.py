"""Follow ticks with XREAD: JSON lines on standard output, a position that survives a restart."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import redis
import wire

BLOCK_MS = 1000  # also how soon it stops when told
COUNT = 100

Read = dict[str, list[tuple[bytes, dict[bytes, bytes]]]]


def warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr, flush=True)


class Position:
    """The epoch of each market and the last id read of each stream, in a file if there is one."""

    def __init__(self, file: Path | None) -> None:
        self.file = file
        stored = json.loads(file.read_text()) if file and file.exists() else {}
        self.epochs: dict[str, str] = stored.get("epochs", {})
        self.last: dict[str, str] = stored.get("last", {})

    def store(self) -> None:
        """Replace the file as a whole: a reader finds the old position or the new one."""
        if self.file:
            beside = self.file.with_name(self.file.name + ".new")
            beside.write_text(json.dumps({"epochs": self.epochs, "last": self.last}))
            os.replace(beside, self.file)


class Consumer:
    """Reads streams of ticks, or feeds of markets, one batch at a time."""

    def __init__(
        self, server: redis.Redis, prefix: str, streams: dict[str, str], position: Position
    ) -> None:
        self.server = server
        self.prefix = prefix
        self.streams = streams  # stream to its code; a feed has none
        self.markets = sorted({stream[1:].split("}")[0].split(":")[1] for stream in streams})
        self.position = position
        self.reported_gone: dict[str, str] = {}

    def read(self, block_ms: int) -> Read:
        """Wait for the next entries of any stream, then look at what was passed over."""
        last: Any = {stream: self.position.last.get(stream, "0-0") for stream in self.streams}
        answer: Any = self.server.xread(last, count=COUNT, block=block_ms) or []
        read = {stream.decode(): entries for stream, entries in answer}
        self.check(list(read))
        return read

    def check(self, streams: list[str]) -> None:
        """Warn of a new epoch and of positions that are gone: XREAD itself says nothing.

        Behind a read, for trimming goes from the oldest: what was read last is still there, so
        nothing between it and the news was trimmed.
        """
        passed = {stream: last for stream in streams if (last := self.position.last.get(stream))}
        ask = self.server.pipeline(transaction=False)
        for market in self.markets:
            ask.get(f"{{{self.prefix}:{market}}}:epoch")
        for stream, last in passed.items():
            ask.xrange(stream, last, "+", count=1)
        answers = ask.execute()
        for market, epoch in zip(self.markets, answers, strict=False):
            known, now = self.position.epochs.get(market), epoch.decode() if epoch else None
            if known and now and known != now:
                warn(f"{market}: new epoch {now} after {known}: ticks may be lost or told again")
            if now:
                self.position.epochs[market] = now
        for (stream, last), found in zip(passed.items(), answers[len(self.markets) :], strict=True):
            first = found[0][0].decode() if found else "nothing"
            if first != last and self.reported_gone.get(stream) != last:
                self.reported_gone[stream] = last
                warn(f"{stream}: position {last} is gone, {first} follows: ticks may be missing")

    def ticks(self, read: Read) -> Iterator[dict[str, Any]]:
        """Yield the ticks of a batch; a feed's entry with bars (`c1`) has none."""
        for stream, entries in read.items():
            code = self.streams[stream]
            for entry_id, fields in entries:
                if code:
                    yield wire.tick(code, entry_id.decode(), msgpack.unpackb(fields[b"t1"]))
                elif b"b1" in fields:
                    yield from wire.decode("b1", fields[b"b1"])

    def run(self, until_idle_s: float) -> None:
        """Print ticks until told to stop, or until none came for so long."""
        stopping = False

        def stop(*_: object) -> None:
            nonlocal stopping
            stopping = True

        signal.signal(signal.SIGINT, stop)
        signal.signal(signal.SIGTERM, stop)
        self.check(list(self.streams))
        heard = time.monotonic()
        block_ms = int(min(BLOCK_MS, max(1, until_idle_s * 1000)))  # 0 would be for ever
        while not stopping:
            read = self.read(block_ms)
            if not read:
                if time.monotonic() - heard >= until_idle_s:
                    break
                continue
            for tick in self.ticks(read):
                print(json.dumps(tick, ensure_ascii=False))
            sys.stdout.flush()  # first the ticks, then the position: see ../README.md
            self.position.last |= {key: rows[-1][0].decode() for key, rows in read.items()}
            self.position.store()
            heard = time.monotonic()


def decode_vectors(file: Path) -> None:
    for vector in json.loads(file.read_text("utf-8"))["vectors"]:
        value = wire.decode(vector["schema"], bytes.fromhex(vector["bytes"]))
        print(json.dumps({"name": vector["name"], "value": value}, ensure_ascii=False))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("codes", nargs="*", metavar="CODE", help="such as 600519.SH")
    parser.add_argument("--url", default="redis://127.0.0.1:6379")
    parser.add_argument("--prefix", default="qmt")
    parser.add_argument("--market", action="append", default=[], help="a whole market's feed")
    parser.add_argument("--position", type=Path, help="file that remembers where reading stopped")
    parser.add_argument("--until-idle", type=float, default=float("inf"), metavar="SECONDS")
    parser.add_argument("--decode-vectors", type=Path, metavar="FILE")
    options = parser.parse_args()
    if options.decode_vectors:
        decode_vectors(options.decode_vectors)
        return
    if bool(options.codes) == bool(options.market):
        parser.error("name codes, or markets with --market")
    streams = {f"{{{options.prefix}:{market}}}:feed": "" for market in options.market}
    for code in options.codes:
        streams[f"{{{options.prefix}:{code.rpartition('.')[2]}}}:tick:{code}"] = code
    try:
        with redis.Redis.from_url(options.url, protocol=2) as server:
            position = Position(options.position)
            Consumer(server, options.prefix, streams, position).run(options.until_idle)
    except redis.RedisError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
