"""The example consumers, unmodified, on a day replayed under another prefix, and on it once more.

The first replay is read when it is there as a whole, the second as it is published. The judge is
the push log of the simulator from which the day was captured.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from consumer_rig import LANGUAGES, Consumer, Language, assert_equal, commands_in
from recorded_day import MARKETS, RecordedDay, recorded_day
from waiting import wait_for

pytestmark = pytest.mark.long

PREFIX = "yesterday"
FEEDS = [f"{{{PREFIX}:{market}}}:feed" for market in MARKETS]


@dataclass
class Replays:
    """What each example read of the two replays of a day."""

    log: npt.NDArray[Any]
    whole: dict[str, Consumer]
    followed: dict[str, Consumer]


@pytest.fixture(scope="module")
def replays(
    pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Replays]:
    """A day, replayed twice and read by all examples at once."""
    commands = commands_in(pytestconfig.cache.mkdir("consumers"))
    folder = tmp_path_factory.mktemp("day")
    with recorded_day(folder, 24, "10:00:00", 60, 30.0) as day, ExitStack() as stack:

        def start(run: str, until_idle_s: float | None) -> dict[str, Consumer]:
            made = {}
            for name, command in commands.items():
                (folder / run / name).mkdir(parents=True)
                markets = [word for one in MARKETS for word in ("--market", one)]
                flags = ["--url", day.url, "--prefix", PREFIX, *markets]
                made[name] = Consumer(command, folder / run / name, flags)
                stack.callback(made[name].kill)
                made[name].start(until_idle_s=until_idle_s)
            return made

        day.replay(PREFIX)
        whole = start("whole", 0.5)
        for one in whole.values():
            one.wait()
        day.clean(PREFIX)
        assert day.streams.keys(f"*{PREFIX}*") == []
        followed = start("followed", None)
        day.replay(PREFIX, "--speed", "30")
        for one in followed.values():
            _read_to_the_end(one, day)
        yield Replays(day.log, whole, followed)


def _read_to_the_end(consumer: Consumer, day: RecordedDay) -> None:
    ends = {
        feed: day.streams.xinfo_stream(feed)["last-generated-id"].decode()
        for feed in FEEDS
        if day.streams.exists(feed)
    }
    wait_for(lambda: consumer.last_ids() == ends, f"{consumer.command} is at the end")
    consumer.stop()
    consumer.wait()


@pytest.fixture(params=LANGUAGES)
def language(request: pytest.FixtureRequest) -> Language:
    language = LANGUAGES[request.param]
    if not language.is_there():
        pytest.skip(f"examples/consumers/{language.name} needs {language.needs}")
    return language


def test_a_replayed_day_equals_the_log(language: Language, replays: Replays) -> None:
    assert len(np.unique(replays.log["code"])) == 24
    assert len(replays.log) > 300
    reading = replays.whole[language.name]
    assert_equal(reading.printed(1), replays.log)
    assert reading.warnings == []


def test_its_second_replay_followed_as_it_comes_is_the_same(
    language: Language, replays: Replays
) -> None:
    following = replays.followed[language.name]
    assert_equal(following.printed(1), replays.log)
    assert following.warnings == []
    ids = [(tick["code"], tick["id"]) for tick in following.printed(1)]
    again = [(tick["code"], tick["id"]) for tick in replays.whole[language.name].printed(1)]
    assert sorted(ids) == sorted(again)
