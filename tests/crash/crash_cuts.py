"""Scenarios: a reader is cut off, for a moment or for longer than the feed reaches back."""

from __future__ import annotations

import time
from pathlib import Path

from crash_kills import finish, wait_grows
from crash_proxy import CuttingProxy
from crash_rig import MARKETS, Result, Rig
from crash_scale import Scale
from waiting import wait_for

__all__ = ["beyond_the_feed", "cut_gateway", "cut_redis"]

MOST_BYTES = 60_000


def cut_redis(directory: Path, seed: int, scale: Scale) -> Result:
    """The connection of a reader over Redis is cut at random moments and bytes."""
    return _cut(Result("cut_redis"), directory, seed, scale, gateway=False)


def cut_gateway(directory: Path, seed: int, scale: Scale) -> Result:
    """The same over the gateway."""
    return _cut(Result("cut_gateway"), directory, seed, scale, gateway=True)


def _cut(result: Result, directory: Path, seed: int, scale: Scale, *, gateway: bool) -> Result:
    with Rig(directory, seed) as rig:
        rig.start_producer("producer1")
        rig.wait_flowing()
        port, url = rig.server.port, rig.server.url
        if gateway:
            rig.start_gateway()
            url = rig.gateway_url
            port = int(url.rpartition(":")[2])
        with CuttingProxy(port, seed) as proxy:
            rig.start_reader("reader", url.replace(f":{port}", f":{proxy.port}"), "--stored")
            wait_grows(rig, "reader")
            done = cut_at_random(rig, proxy, "reader", scale.cuts)
            finish(rig, result, ["reader"])
            result.figures["moments"] = done
            result.figures["connections_cut"] = proxy.cuts
        told = rig.gaps_told("reader")
        result.check(not told, f"gaps told inside the feed's window: {told[:2]}")
        result.check(done == scale.cuts, f"only {done} cuts")
    return result


def cut_at_random(rig: Rig, proxy: CuttingProxy, name: str, times: int) -> int:
    """Cut a reader's connections at random moments, or within random bytes of an answer.

    Each cut waits until the reader has written something since the one before. Returns how many.
    """
    file = rig.file_of(name)
    done = 0
    while done < times:
        size = file.stat().st_size
        wait_for(lambda size=size: file.stat().st_size > size, f"{name} goes on")  # type: ignore[misc]
        time.sleep(rig.random.uniform(0, 0.2))
        before = proxy.cuts
        if rig.random.random() < 0.5:
            proxy.cut()
        else:
            proxy.cut_within(MOST_BYTES)
            until = time.monotonic() + 2
            while proxy.cuts == before and time.monotonic() < until:
                time.sleep(0.002)
        done += proxy.cuts > before
    return done


def beyond_the_feed(directory: Path, seed: int, scale: Scale) -> Result:
    """Readers stay away until the feed, and then the streams, no longer reach back."""
    result = Result("beyond_the_feed")
    flags = {"reader-full": ("--stored", "--full"), "reader-brief": ("--stored",)}
    with Rig(directory, seed) as rig:
        rig.start_producer("producer1")
        rig.wait_flowing()
        rig.start_gateway()
        urls = {"": rig.server.url, "-gateway": rig.gateway_url}
        readers = {name + way: (url, of) for name, of in flags.items() for way, url in urls.items()}
        for name, (url, of) in readers.items():
            rig.start_reader(name, url, *of)
            wait_grows(rig, name)
        for _ in range(scale.times):
            away(rig, readers, streams=False)
        recovered = {name: len(rig.gaps_told(name)) for name in readers}
        for name in ("reader-full", "reader-full-gateway"):
            result.check(not recovered[name], f"{name}: gaps told: {rig.gaps_told(name)[:2]}")
        # (A gateway may still have what the feed lacks; then its reader lacks nothing.)
        markets = {gap.get("market") for gap in rig.gaps_told("reader-brief")}
        result.check(markets >= set(MARKETS), f"reader-brief was told only of {markets}")
        for _ in range(scale.times):
            away(rig, readers, streams=True)
        for name in readers:
            told = len(rig.gaps_told(name)) > recovered[name]
            result.check(told, f"{name} was told nothing when the streams were trimmed")
        rig.quiet()
        for name in readers:
            rig.wait_read(name)
            result.add(name, rig.account_reader(name, against_log=True))
            result.figures[name]["gaps_told"] = len(rig.gaps_told(name))
    return result


def away(
    rig: Rig,
    readers: dict[str, tuple[str, tuple[str, ...]]],
    *,
    streams: bool,
    markets: str = ",".join(MARKETS),
) -> None:
    """Keep readers away while feeds, or feeds and streams, are trimmed to their end."""
    for name in readers:
        rig.kill(name, counted=False)
    time.sleep(rig.random.uniform(3.2, 4))
    pipe = rig.streams.pipeline(transaction=False)
    for market in MARKETS:
        pipe.xtrim(f"{{qmt:{market}}}:feed", maxlen=1, approximate=False)
        if streams:
            for key in rig.streams.scan_iter(f"{{qmt:{market}}}:tick:*", count=2000):
                pipe.xtrim(key, maxlen=1, approximate=False)
    pipe.execute()
    for name, (url, of) in readers.items():
        rig.start_reader(name, url, *of, markets=markets)
        wait_grows(rig, name)
