"""``GET /api/full_tick``: how many requests a second."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from .measure import Aim, Context, Row, Section, Side, in_turns
from .stacks import incumbent, ours, terminal

__all__ = ["read_answer", "run"]

_LINES: Final = 8
_WITHIN_S: Final = 60.0


def run(ctx: Context) -> Section:
    """Ask for one code, 50 codes and 500 codes, one and eight requests at a time."""
    section = Section(
        "rest",
        "How many full_tick requests a second, ours and the incumbent's?",
        references=("incumbent",),
        notes=[
            "Both serve the same simulated terminal, which pushes as always. Requests go over "
            "kept connections; every answer is decoded and must name every code asked for. The "
            "incumbent asks the terminal for each request, one at a time; ours asks Redis.",
        ],
    )
    seconds = ctx.pick(full=3.0, quick=0.7, smoke=0.1)
    with terminal(ctx.directory) as source, ours(ctx.directory, source) as mine:
        time.sleep(ctx.pick(full=4.0, quick=3.5, smoke=0.5))
        seen = sorted({str(code, "ascii") for code in source.pushed()["code"]})
        wishes = {count: seen[:: max(1, len(seen) // count)][:count] for count in (1, 50, 500)}

        def sides(name: str, url: str) -> Side:
            return Side(name, _asked(url, wishes, seconds))

        repeats = ctx.pick(full=3, quick=1, smoke=1)
        warm_up = ctx.pick(full=1, quick=0, smoke=0)
        if ctx.incumbent:
            with incumbent(ctx.directory, source) as theirs:
                measured = in_turns(
                    [sides("ours", mine.url), sides("incumbent", theirs.url)],
                    repeats,
                    warm_up=warm_up,
                )
        else:
            measured = in_turns([sides("ours", mine.url)], repeats, warm_up=warm_up)
    for side, of_side in measured.items():
        for what, samples in of_side.items():
            aims = (Aim(10, of="ratio"),) if side == "ours" and ctx.incumbent else ()
            section.rows.append(Row(what, side, "requests/s", samples, aims=aims))
    section.rows.sort(key=lambda row: row.what)
    return section


def _asked(
    url: str, wishes: Mapping[int, list[str]], seconds: float
) -> Callable[[], Mapping[str, float]]:
    def asked() -> Mapping[str, float]:
        return {
            f"{count} codes, {lines} at a time": asyncio.run(_rate(url, codes, lines, seconds))
            for count, codes in wishes.items()
            for lines in (1, _LINES)
        }

    return asked


async def _rate(url: str, codes: list[str], lines: int, seconds: float) -> float:
    host, _, port = url.partition(":")
    end = time.perf_counter() + seconds

    async def one() -> int:
        reader, writer = await asyncio.open_connection(host, int(port))
        request = (
            f"GET /api/full_tick?stocks={','.join(codes)} HTTP/1.1\r\nHost: {url}\r\n\r\n".encode()
        )
        done = 0
        try:
            while time.perf_counter() < end:
                writer.write(request)
                body = await asyncio.wait_for(read_answer(reader), _WITHIN_S)
                if missing := set(codes) - set(_check(body, codes)):
                    raise RuntimeError(f"{url} did not answer {sorted(missing)[:5]}")
                done += 1
        finally:
            writer.close()
        return done

    began = time.perf_counter()
    done = sum(await asyncio.gather(*(one() for _ in range(lines))))
    return done / (time.perf_counter() - began)


async def read_answer(reader: asyncio.StreamReader) -> bytes:
    """Read one answer's body; `RuntimeError` when it is no 200."""
    head = await reader.readuntil(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(head.decode("latin-1").partition("\r\n")[0])
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return await reader.readexactly(int(line.partition(b":")[2]))
    raise RuntimeError("an answer without a length")


def _check(body: bytes, codes: list[str]) -> dict[str, Any]:
    data: dict[str, Any] = msgspec.json.decode(body)["data"]
    return {code: data[code] for code in codes if data.get(code, {}).get("lastPrice", -1) >= 0}
