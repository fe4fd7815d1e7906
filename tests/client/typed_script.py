"""A user's script, for type checkers: what they know of each answer stands beside it."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING

from qmt_client import NOW_LIVE, AsyncQMTClient, Gap, QMTClient, Tick

if TYPE_CHECKING:
    from typing_extensions import reveal_type

BOTH = ["600519.SH", "000001.SZ"]


def on_gap(gap: Gap) -> None:
    print(gap.message)


def look(client: QMTClient) -> None:
    daily = client.history("600519.SH", start=dt.date(2026, 1, 5), adjust="front_ratio")
    reveal_type(daily)  # DataFrame
    reveal_type(daily["close"].pct_change())  # Series[float]
    reveal_type(client.history(BOTH, "1m", count=240))  # HistoryFrames
    reveal_type(client.history(BOTH, layout="wide"))  # DataFrame
    reveal_type(client.stored_ticks("600519.SH", "2026-01-05"))  # DataFrame
    reveal_type(client.stored_bars("600519.SH", as_="batches"))  # Iterator[Any]
    reveal_type(client.sector_stocks("沪深A股"))  # list[str]
    reveal_type(client.instrument_detail("600519.SH")["InstrumentName"])  # str
    reveal_type(client.download("600519.SH")["600519.SH"]["rows"])  # int
    reveal_type(client.full_tick("600519.SH").absent)  # list[str]
    reveal_type(client.replay("600519.SH", "2026-01-05", speed="max"))  # Replay[Tick]
    with client.ticks(markets=["SH"], start="09:15", on_gap=on_gap) as live:
        for tick in live:
            if tick is NOW_LIVE:
                continue
            reveal_type(tick)  # Tick
            print(tick.code, tick.time_ms, tick["lastPrice"], live.position)


async def follow(client: AsyncQMTClient) -> None:
    reveal_type(await client.history("600519.SH", "1d"))  # DataFrame
    reveal_type(await client.history(BOTH))  # HistoryFrames
    async for bar in client.bars("600519.SH", "1m"):
        reveal_type(bar.closed)  # bool

    async def on_ticks(ticks: dict[str, list[Tick]]) -> None:
        print(len(ticks))

    await client.subscribe_realtime("600519.SH", on_ticks)


if __name__ == "__main__":
    with QMTClient() as client:
        look(client)
