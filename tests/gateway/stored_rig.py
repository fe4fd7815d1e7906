"""A stored day behind a gateway: begun in an archive, ended in the streams, partly in both."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgpack
import redis
from archive_maker import ArchiveMaker
from gateway_bench import GatewayProcess, Producer, a_tick, gateway

from qmt_protocol.archive import Missing
from qmt_protocol.bars import encode_bar
from qmt_protocol.keys import Keys
from qmt_protocol.times import day_start_ms
from qmt_standalone.redis_server import RedisServer

DAY = 20261120
OPEN_MS = day_start_ms(DAY) + (9 * 60 + 30) * 60_000
STEP_MS = 100
ROUNDS = 300
SH = [f"{600_000 + n}.SH" for n in range(5)]
SZ = [f"{1 + n:06}.SZ" for n in range(3)]
CODES = [*SH, *SZ]
MINUTE_MS = 60_000
GAP = Missing(
    market="SH", codes=SH[:1], from_ms=OPEN_MS + 900, to_ms=OPEN_MS + 950, reason="ring full"
)


class StoredDay:
    """What was published, in the order in which it is to be read."""

    def __init__(self, streams: redis.Redis, root: Path) -> None:
        keys = Keys()
        producer = Producer(streams)
        producer.beat(age_ms=86_400_000)
        maker = ArchiveMaker(root, streams)
        for number in range(ROUNDS):
            at_ms = OPEN_MS + number * STEP_MS
            for codes in (SH, SZ):
                ticks = [a_tick(10.0 + number / 100, number, at_ms) for _ in codes]
                producer.publish(*zip(codes, ticks, strict=True))
            if number % 50 == 7:
                late = a_tick(9.0, number - 1, at_ms - 30, note="late")
                producer.publish((SH[0], {**late, "time": at_ms}), flags=1)
            if number == 2 * ROUNDS // 3:
                maker.ticks(SH, DAY)
                maker.ticks(SZ, DAY)
        for minute in range(3):
            label_ms = OPEN_MS + minute * MINUTE_MS
            for closed in (False, True):
                bar = {"time": label_ms, "open": 10.0, "close": 10.5 + minute, "closed": closed}
                stream = keys.bar("1m", SH[0])
                streams.xadd(stream, {"k1": encode_bar(bar)}, id=f"{label_ms}-*")
        maker.bars(SH[:1], "1m")
        maker.missing = [GAP]
        maker.commit()
        self.rows: list[tuple[str, str, list[Any]]] = sorted(
            (
                (code, entry_id.decode(), msgpack.unpackb(fields[b"t1"]))
                for code in CODES
                for entry_id, fields in streams.xrange(keys.tick(code))
            ),
            key=lambda row: (int(row[1].split("-")[0]), row[0], int(row[1].split("-")[1])),
        )
        for code in CODES:
            streams.xtrim(keys.tick(code), minid=OPEN_MS + ROUNDS // 3 * STEP_MS, approximate=False)
        streams.delete(keys.bar("1m", SH[0]))
        self.archive_url = str(root)

    def of(self, *codes: str) -> list[tuple[str, str, list[Any]]]:
        return [row for row in self.rows if row[0] in codes]


@contextmanager
def stored_gateway(
    streams_server: RedisServer, jobs_server: RedisServer, folder: Path, **settings: str
) -> Iterator[tuple[StoredDay, GatewayProcess]]:
    """Run a gateway over a stored day; nobody publishes, no worker lives."""
    root = folder / "archive"
    root.mkdir()
    with redis.Redis.from_url(streams_server.url) as streams:
        streams.flushall()
        day = StoredDay(streams, root)
    with gateway(
        streams_server.url,
        jobs_server.url,
        folder,
        "--archive-url",
        day.archive_url,
        **settings,
    ) as process:
        yield day, process
