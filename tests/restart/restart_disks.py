"""The producer's ring and the archive on a disk that is really full, again and again.

The ring: a whole producer beside a simulated terminal; `crash_accounting` holds the terminal's push
log against the streams and the gaps told. The archive: what was published against what DuckDB finds
in its files.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final

import archive_rig
import redis
from crash_rig import Rig
from small_disk import SmallDisk
from waiting import wait_for

from qmt_standalone.redis_server import RedisServer

__all__ = ["DISKS"]

_RING_BYTES: Final = 256 * 2**20
"""More than all rounds push: what fills it is the filler, and with that gone there is room."""
_ARCHIVE_BYTES: Final = 24 * 2**20
_STEPS: Final = 3

Disks = tuple[dict[str, int], dict[str, int], list[str]]
"""Figures, variants, problems."""


def ring(folder: Path, seed: str, rounds: int) -> Disks:
    """The ring's disk is full while 2,000 ticks/s are pushed; the producer is killed or goes on."""
    rng, variants = random.Random(seed), Counter[str]()
    with (
        Rig(folder / "rig", rng.randrange(10**6)) as rig,
        SmallDisk(folder / "disk", _RING_BYTES) as disk,
    ):
        path = folder / "disk" / "ring.sqlite"
        rig.start_producer("producer", ring=path)
        rig.wait_flowing()
        for _ in range(rounds):
            variant = rng.choice(["room", "killed"])
            variants[variant] += 1
            rig.in_flight()
            disk.fill()
            _wait_refused(rig)
            if variant == "killed":
                rig.kill("producer")
                disk.free()
                rig.start_producer("producer", ring=path)
            else:
                disk.free()
            rig.wait_flowing()
            if not rig.is_alive("producer"):
                return {}, dict(variants), ["the producer ended by itself"]
        rig.quiet()
        verdict = rig.account()
    # What was named as lost may have come again: a new subscription begins with each code's latest.
    verdict.overnamed = 0
    named = verdict.named_by_count + verdict.named_by_window
    figures = {"pushed": verdict.pushed, "stored": verdict.stored, "named": named}
    return figures, dict(variants), verdict.problems


def _wait_refused(rig: Rig) -> None:
    """Wait until the producer says once more that the ring cannot be written."""
    log = rig.directory / "producer.log"
    begun = log.stat().st_size

    def told() -> bool:
        return b"ticks could not be kept" in log.read_bytes()[begun:]

    wait_for(told, "the ring refuses ticks")


def archive(folder: Path, seed: str, rounds: int) -> Disks:
    """The archive's disk is full; it goes on, is killed, or is started before there is room."""
    rng, variants = random.Random(seed), Counter[str]()
    server = RedisServer(folder / "redis")
    server.start()
    try:
        with (
            SmallDisk(folder / "disk", _ARCHIVE_BYTES) as disk,
            redis.Redis.from_url(server.url) as streams,
        ):
            store = folder / "disk" / "archive"
            publisher = archive_rig.Publisher(streams)
            child = archive_rig.start_archive(store, server.url)
            try:
                now = publisher.steps(_STEPS)
                archive_rig.wait_archived(store, len(publisher.sent))
                for _ in range(rounds):
                    variant = rng.choice(["room", "killed"])
                    variants[variant] += 1
                    told = len(archive_rig.events(streams, "archive unwritable"))
                    disk.fill()
                    now = publisher.steps(_STEPS, now)
                    wait_for(_more(streams, "archive unwritable", told), "it is told")
                    if variant == "killed":
                        archive_rig.kill_archive(child)
                        disk.free()
                        child = archive_rig.start_archive(store, server.url)
                    else:
                        disk.free()
                    archive_rig.wait_archived(store, len(publisher.sent))
                    archive_rig.assert_same(archive_rig.archived_rows(store), publisher.expected())
            finally:
                archive_rig.kill_archive(child)
            count = len(publisher.sent)
    except AssertionError as error:
        return {}, dict(variants), [str(error)]
    finally:
        server.stop()
    return {"pushed": count, "stored": count}, dict(variants), []


def _more(streams: redis.Redis, kind: str, told: int) -> Callable[[], bool]:
    return lambda: len(archive_rig.events(streams, kind)) > told


DISKS: Final = {"ring": ring, "archive": archive}
