"""Many WebSocket readers in one process: each frame's age on arrival becomes a line.

Half hold ``*``, half a list of codes. A frame's age is the time since Redis took the newest batch
in it: both clocks are this machine's.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from pathlib import Path
from typing import Any, TextIO

import msgspec
from crash_reader import end_with_stdin
from websockets.asyncio.client import connect

SUBPROTOCOL = "qmt.v1.msgpack"


class _Frame(msgspec.Struct):
    type: str
    kind: str = ""
    position: dict[str, tuple[str, str]] = {}


_decode = msgspec.msgpack.Decoder(_Frame).decode


async def read(url: str, subscription: dict[str, Any], out: TextIO) -> None:
    async with connect(url, subprotocols=[SUBPROTOCOL], compression=None, max_size=None) as ws:  # type: ignore[list-item]
        await ws.send(
            msgspec.msgpack.encode({"op": "subscribe", "snapshot": False, **subscription})
        )
        async for message in ws:
            now_ms = time.time() * 1000
            frame = _decode(message)  # type: ignore[arg-type]
            if frame.type == "live" and frame.kind == "live":
                ids = (at for market, (_, at) in frame.position.items() if market != "events")
                newest = max((int(at.partition("-")[0]) for at in ids), default=0)
                if newest:
                    out.write(f"{now_ms:.0f} {now_ms - newest:.1f}\n")


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", required=True)
    parser.add_argument("--file", type=Path, required=True)
    parser.add_argument("--codes", type=Path, required=True, help="JSON list")
    parser.add_argument("--count", type=int, required=True)
    options = parser.parse_args()
    end_with_stdin()
    codes = json.loads(options.codes.read_text("utf-8"))
    with options.file.open("a", buffering=1 << 16) as out:
        lists = [codes[at * 7 : at * 7 + 300] for at in range(options.count // 2)]
        requests = [{"codes": ["*"]}] * (options.count - len(lists))
        requests += [{"codes": some} for some in lists]
        await asyncio.gather(*(read(options.url, wish, out) for wish in requests))


if __name__ == "__main__":
    asyncio.run(main())
