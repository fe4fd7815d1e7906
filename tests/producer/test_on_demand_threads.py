"""The producer's reporter reads what is wanted while another thread changes it."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from qmt_producer.bar_maker import BarMaker
from qmt_producer.figures import Figures
from qmt_producer.on_demand import OnDemand
from qmt_protocol.keys import Keys
from qmt_standalone.redis_server import RedisServer


@pytest.fixture
def greedy_gc() -> Iterator[None]:
    """Have the collector run at almost each allocation, and let other threads in there."""
    before = gc.get_threshold(), sys.getswitchinterval()

    def called(*_: object) -> None:
        pass

    gc.callbacks.append(called)
    gc.set_threshold(1)
    sys.setswitchinterval(1e-6)
    yield
    gc.callbacks.remove(called)
    gc.set_threshold(*before[0])
    sys.setswitchinterval(before[1])


def on_demand_of(url: str) -> OnDemand:
    """Return wants beside a terminal that knows the codes below 100 and takes all subscriptions."""
    terminal: Any = SimpleNamespace(
        instrument_detail=lambda code: {} if code < "000100" else None,
        subscribe_quote=lambda *_, **__: 1,
        unsubscribe=lambda _: None,
        generation=(1, 1),
    )
    return OnDemand(
        terminal,
        BarMaker(lambda: 0, 0, lambda: None),
        SimpleNamespace(close_s=lambda _: 0),  # type: ignore[arg-type]
        keys=Keys("t"),
        url=url,
        standing=["SH"],
        limit=50,
        stamp=lambda: 1,
        put_rows=lambda *_: None,
        is_ours=lambda _: True,
        on_market=lambda _: None,
        on_event=lambda _: None,
    )


@pytest.mark.usefixtures("greedy_gc")
def test_what_is_wanted_is_told_while_it_changes(streams_server: RedisServer) -> None:
    wants = on_demand_of(streams_server.url)
    done = threading.Event()

    def change() -> None:
        try:
            for turn in range(60):
                wants._serve([f"1m|{turn * 7 + number:06}.SH" for number in range(150)])
        finally:
            done.set()

    thread = threading.Thread(target=change)
    thread.start()
    told = 0
    while not done.is_set():
        told += len(wants.refused) + len(wants.served) + wants.subscriptions
    thread.join()
    assert told > 0
    assert wants.subscriptions == 50


def test_who_holds_what_is_replaced_and_not_changed() -> None:
    figures = Figures()
    before = figures.standby
    figures.stand_by("SH", "another")
    assert (before, figures.standby) == ({}, {"SH": "another"})
    held = figures.standby
    figures.stand_by("SZ", "another")
    figures.stand_by("SH", "")
    assert (held, figures.standby) == ({"SH": "another"}, {"SZ": "another"})
