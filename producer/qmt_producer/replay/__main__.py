"""``qmt-producer replay``: publish a stored day, or remove what was published."""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog
from tqdm import tqdm

from qmt_producer.redis_link import connect
from qmt_protocol.columns import ticks_from
from qmt_protocol.errors import Gap, QMTError
from qmt_protocol.settings import load_settings
from qmt_protocol.times import to_datetime
from qmt_reading.redis_transport import RedisTransport
from qmt_reading.replay.engine import AsyncReplay
from qmt_reading.stored.edges import read_whole
from qmt_runtime.process import on_stop_signal, start_logging, when_stdin_ends

from .day import StoredDay
from .player import Player
from .settings import ReplaySettings
from .target import ReplayTarget, replays

if TYPE_CHECKING:
    import pyarrow as pa

    from qmt_protocol.ticks import Tick
    from qmt_reading.transport import StoredSource

__all__ = ["main"]

_STOPPED: Final = 130
"""Exit code of who was ended by Ctrl-C, as shells have it."""
_GIVE_UP_AFTER_S: Final = 300.0
log: Final = structlog.get_logger(__name__)


async def _replay(settings: ReplaySettings, day: StoredDay, player: Player) -> None:
    """Publish a day, and show how far it is where a person looks on."""
    transport = RedisTransport(
        settings.streams_url, prefix=settings.prefix, archive_url=settings.archive_url
    )
    try:
        simulated = day.simulated or (await transport.status()).simulated
        await _play(settings, day, player, transport.stored(), simulated=simulated)
    finally:
        await transport.close()


async def _play(
    settings: ReplaySettings,
    day: StoredDay,
    player: Player,
    stored: StoredSource,
    *,
    simulated: bool,
) -> None:
    def read(from_ms: int | None) -> AsyncGenerator[pa.RecordBatch, None]:
        start_ms = day.start_ms if from_ms is None else from_ms
        request = replace(day.request, start_ms=start_ms)
        return read_whole(stored, request, _note, give_up_after_s=_GIVE_UP_AFTER_S)

    replay: AsyncReplay[Tick] = AsyncReplay(
        read,
        ticks_from,
        speed=settings.pace,
        skip_idle_s=settings.skip_idle_s,
        missing=lambda: stored.missing(day.request),
        on_gap=_note,
    )
    with tqdm(total=day.rows, unit=" ticks", disable=None) as bar:

        async def shown() -> AsyncIterator[pa.RecordBatch]:
            async for batch in replay.batches():
                yield batch
                bar.update(len(batch))
                bar.set_postfix_str(f"{to_datetime(player.at_ms):%H:%M:%S}", refresh=False)

        player.start(simulated=simulated)
        try:
            await player.play(shown(), day.beside())
            await player.drain()
        finally:
            await replay.aclose()
            player.stop()


def _note(gap: Gap) -> None:
    log.info("missing in the archive", message=gap.message)


async def _until_stopped(settings: ReplaySettings, day: StoredDay, player: Player) -> bool:
    """Publish a day; return false when told to stop before its end."""
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(_replay(settings, day, player))

    def stop() -> None:
        loop.call_soon_threadsafe(task.cancel)

    on_stop_signal(stop)
    if settings.exit_with_stdin:
        when_stdin_ends(stop)
    try:
        await task
    except asyncio.CancelledError:
        return False
    return True


def _publish(settings: ReplaySettings) -> int:
    keys, facts = settings.to_keys, {"day": settings.day_number, "speed": settings.pace}
    day = StoredDay(settings)
    with connect(settings.streams_url) as connection:
        target = ReplayTarget(connection, keys)
        removed = _Removed()
        target.take({**facts, "started_ms": time.time_ns() // 1_000_000}, removed)
        if removed.keys:
            print(f"An earlier replay under {keys.prefix} was removed: {removed.keys} keys.")
        began = time.monotonic()
        with tempfile.TemporaryDirectory(
            prefix="qmt-replay-", ignore_cleanup_errors=True
        ) as folder:
            player = Player(
                Path(folder),
                day.markets,
                keys=keys,
                url=settings.streams_url,
                feed_keep_ms=settings.feed_keep_s * 1000,
                facts=facts,
            )
            ended = asyncio.run(_until_stopped(settings, day, player))
    took_s = time.monotonic() - began
    print(
        f"{player.ticks} ticks of {settings.day_number} "
        f"{'are' if ended else 'were published, then it was stopped: they are'} under the prefix "
        f"{keys.prefix} ({took_s:.1f} s, {player.ticks / max(took_s, 1e-3):,.0f} ticks/s).\n"
        f"qmt-producer replay --clean --to-prefix {keys.prefix} removes them."
    )
    return 0 if ended else _STOPPED


class _Removed:
    """Counts keys as they are removed."""

    def __init__(self) -> None:
        self.keys = 0

    def __call__(self, keys: int) -> None:
        self.keys += keys


def _clean(settings: ReplaySettings) -> int:
    with connect(settings.streams_url) as connection:
        one = settings.to_prefix or settings.day
        found = [settings.to_keys] if one else replays(connection)
        for keys in found:
            removed = _Removed()
            ReplayTarget(connection, keys).clean(removed)
            print(f"{keys.prefix}: {removed.keys} keys removed.")
        if not found:
            print("No prefix holds a replay.")
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Publish a day, or remove what was published; return the exit code."""
    try:
        settings = load_settings(ReplaySettings, arguments)
        start_logging(settings.log_level)
        return _clean(settings) if settings.clean else _publish(settings)
    except QMTError as error:
        print(f"qmt-producer replay: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return _STOPPED


if __name__ == "__main__":
    sys.exit(main())
