"""A caller with a key beside callers that mean no good: how long it waits, what they take."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from .measure import Aim, Context, Row, Section, quantile
from .processes import Child, Meter, child
from .rest import read_answer
from .stacks import Stack, ours, terminal

__all__ = ["run"]

_KEYS: Final = ("a-key-of-the-one-who-measures", "the-key-of-those-who-do-not-read")
_ALONE: Final = "alone"
_PER_SECOND: Final = 40
_WITHIN_S: Final = 60.0
_GIVEN_BACK_S: Final = 20.0
_MB: Final = 1_000_000
_WHAT: Final = "GET /api/v1/latest with a key, p99"
_FRESH: Final = "the same on a connection of its own, p99"


def run(ctx: Context) -> Section:
    """Measure a keyed client's waits alone, beside each kind of attack, and beside all of them."""
    section = Section(
        "hostile",
        "What do callers without a key, and callers who never read, cost one who has a key?",
        references=(_ALONE,),
        notes=[
            "The simulated terminal pushes the whole market all the time. The measuring caller "
            f"sends {_PER_SECOND} requests a second for 50 codes, on a kept connection and, in "
            "turns, each on a connection of its own; the time runs from the moment when a request "
            "was due. Attackers are processes of their own on the same two cores, so part of each "
            "ratio is their own work; what the gateway closes they open again after 5 s.",
        ],
    )
    seconds = ctx.pick(full=60.0, quick=8.0, smoke=0.5)
    counts = {
        "idle": ctx.pick(full=10_000, quick=1_000, smoke=20),
        "half": ctx.pick(full=1_000, quick=200, smoke=10),
        "sockets": ctx.pick(full=300, quick=30, smoke=2),
        "answers": ctx.pick(full=8, quick=4, smoke=1),
    }
    words = {
        "idle": f"{counts['idle']:,} connections without a key",
        "half": f"{counts['half']:,} half requests",
        "sockets": f"{counts['sockets']} sockets of the whole market that are not read",
        "answers": f"{counts['answers']} answers of all stored ticks that are not read",
    }
    turns: dict[str, list[str]] = {
        _ALONE: [],
        **{words[kind]: [kind] for kind in counts},
        "all at once": [*counts],
    }
    settings = {"api_keys": ",".join(_KEYS), "limits": ""}
    with (
        terminal(ctx.directory) as source,
        ours(ctx.directory, source, **settings) as stack,
    ):
        time.sleep(ctx.pick(full=20.0, quick=4.0, smoke=1.0))  # stored ticks to ask for
        codes = sorted({str(code, "ascii") for code in source.pushed()["code"]})[:50]
        for side, kinds in turns.items():
            ctx.say(f"  {side}")
            _one(ctx, section, stack, side, {kind: counts[kind] for kind in kinds}, codes, seconds)
    return section


def _one(
    ctx: Context,
    section: Section,
    stack: Stack,
    side: str,
    kinds: dict[str, int],
    codes: list[str],
    seconds: float,
) -> None:
    meter = Meter(gateway=stack.pids["gateway"])
    peak = [float(meter.rss_bytes("gateway"))]
    with _attackers(ctx.directory, stack.url, kinds) as running:
        kept, fresh = asyncio.run(_waits(stack.url, codes, seconds, meter, peak))
        for kind, one in running.items():
            one.tell("enough")
            section.facts[f"{side}: {kind}"] = json.dumps(one.line())
    ratio = (Aim(1.3, of="ratio"),) if side != _ALONE else ()
    for what, waits in ((_WHAT, kept), (_FRESH, fresh)):
        section.rows.append(Row(what, side, "ms", [quantile(waits, 0.99)], False, ratio))
    section.rows.append(Row("gateway's memory, peak", side, "MB", [max(peak) / _MB], False))
    time.sleep(ctx.pick(full=_GIVEN_BACK_S, quick=3.0, smoke=0.1))
    after = meter.rss_bytes("gateway") / _MB
    section.rows.append(Row("gateway's memory, afterwards", side, "MB", [after], False))


@contextmanager
def _attackers(directory: Path, url: str, kinds: dict[str, int]) -> Iterator[dict[str, Child]]:
    running: dict[str, Child] = {}
    with _all(directory, url, list(kinds.items()), running):
        yield running


@contextmanager
def _all(
    directory: Path, url: str, kinds: list[tuple[str, int]], running: dict[str, Child]
) -> Iterator[None]:
    if not kinds:
        yield
        return
    (kind, count), *others = kinds
    keys = _KEYS[1:] if kind in ("sockets", "answers") else ()
    command = ["benchmarks.attackers", kind, url, str(count), *keys]
    with child(command, log=directory / "attackers.log") as one:  # ready: each has been tried
        running[kind] = one
        with _all(directory, url, others, running):
            yield


async def _waits(
    url: str, codes: list[str], seconds: float, meter: Meter, peak: list[float]
) -> tuple[list[float], list[float]]:
    host, _, port = url.partition(":")
    request = (
        f"GET /api/v1/latest?codes={','.join(codes)} HTTP/1.1\r\nHost: {url}\r\n"
        f"X-API-Key: {_KEYS[0]}\r\n\r\n"
    ).encode()
    kept = await asyncio.open_connection(host, int(port))
    waits: tuple[list[float], list[float]] = ([], [])
    began = time.perf_counter()
    for number in range(int(seconds * _PER_SECOND)):
        due = began + number / _PER_SECOND
        if (early_s := due - time.perf_counter()) > 0:
            await asyncio.sleep(early_s)
        reader, writer = (
            await asyncio.wait_for(asyncio.open_connection(host, int(port)), _WITHIN_S)
            if number % 2
            else kept
        )
        writer.write(request)
        await asyncio.wait_for(read_answer(reader), _WITHIN_S)
        waits[number % 2].append((time.perf_counter() - due) * 1000)
        if number % 2:
            writer.close()
        if number % _PER_SECOND == 0:
            peak.append(meter.rss_bytes("gateway"))
    kept[1].close()
    return waits
