"""What a tick costs in Redis's memory over a day."""

from __future__ import annotations

from typing import Any, Final

import redis

from qmt_protocol.keys import Keys
from qmt_standalone.redis_server import RedisServer

from .measure import Aim, Context, Row, Section
from .publish import Line
from .sample import MARKETS, Pushes

__all__ = ["run"]

KEYS: Final = Keys()
_FEED_SHARE: Final = 8
"""The feed keeps half an hour of the day's four."""
_AHEAD: Final = 200_000


def run(ctx: Context) -> Section:
    """Publish a day of some codes and read Redis's own accounts."""
    codes = ctx.pick(full=500, quick=100, smoke=20)
    steps = ctx.pick(full=4800, quick=600, smoke=40)
    source = Pushes(codes)
    section = Section(
        "memory",
        "What does a tick cost in Redis's memory?",
        facts={"codes": codes, "ticks of each": steps},
        notes=[
            "Ticks move as in continuous trading, one in 3 s. The feed is trimmed to an eighth of "
            "the run, as half an hour is of a day. Streams, feed and latest by MEMORY USAGE; "
            "everything: used_memory above that of the empty server.",
        ],
    )
    server = RedisServer(ctx.directory / "redis", password="")
    server.start()
    try:
        with redis.Redis.from_url(server.url) as connection:
            empty: dict[str, Any] = connection.info("memory")
            published, names = _publish(ctx, server.url, source, steps)
            for market in MARKETS:
                feed = KEYS.feed(market)
                length = connection.xlen(feed)
                connection.xtrim(feed, maxlen=length // _FEED_SHARE, approximate=False)
            sizes = {
                "streams": _usage(connection, [KEYS.tick(code) for code in names]),
                "feed": _usage(connection, [KEYS.feed(market) for market in MARKETS]),
                "latest": _usage(connection, [KEYS.latest(market) for market in MARKETS]),
            }
            connection.memory_purge()
            full: dict[str, Any] = connection.info("memory")
    finally:
        server.stop()
    sizes["everything (used_memory)"] = full["used_memory"] - empty["used_memory"]
    sizes["everything (resident)"] = full["used_memory_rss"] - empty["used_memory_rss"]
    aims = {"streams": (Aim(170),), "everything (used_memory)": (Aim(200),)}
    section.rows = [
        Row("memory of a tick", of, "bytes", [size / published], False, aims.get(of, ()))
        for of, size in sizes.items()
    ]
    section.facts["ticks stored"] = published
    return section


def _publish(ctx: Context, url: str, source: Pushes, steps: int) -> tuple[int, set[str]]:
    line = Line(ctx.directory, url)
    line.start()
    done = 0
    names: set[str] = set()
    try:
        for step in range(steps):
            entries = source.entries(step)
            line.publish(entries)
            done += len(entries)
            names.update(code for code, _, _ in entries)
            if done - line.publisher.figures.published > _AHEAD:
                line.wait(done)
        line.wait(done)
    finally:
        line.close()
    return done, names


def _usage(connection: redis.Redis, keys: list[str]) -> int:
    pipe = connection.pipeline(transaction=False)
    for key in keys:
        pipe.memory_usage(key, samples=0)
    return sum(size or 0 for size in pipe.execute())
