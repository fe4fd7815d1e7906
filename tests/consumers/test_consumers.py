"""Each example consumer against the simulator's push log, over restarts, kills and gaps.

The judge is the log, read with numpy, and the golden vectors; nothing of the project decodes here.
A language whose tools this machine lacks is skipped with a reason that names what it needs.
"""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import redis
from consumer_producer import Recorded, record
from consumer_rig import (
    EXAMPLES,
    FIELDS,
    LANGUAGES,
    VECTORS,
    Consumer,
    Language,
    assert_equal,
    commands_in,
)

from qmt_standalone.redis_server import RedisServer

VECTOR_LIST: list[dict[str, Any]] = json.loads(VECTORS.read_text("utf-8"))["vectors"]
BY_NAME = {vector["name"]: vector for vector in VECTOR_LIST}
T1 = bytes.fromhex(BY_NAME["pushed"]["bytes"])
C1 = bytes.fromhex(BY_NAME["batch of two bars"]["bytes"])
BAR = (
    *("time", "open", "high", "low", "close", "volume", "amount", "settelementPrice"),
    *("openInterest", "preClose", "suspendFlag", "closed"),
)


@pytest.fixture(scope="module")
def commands(pytestconfig: pytest.Config) -> dict[str, list[str]]:
    """Command of each example that this machine can build; what is built is kept by pytest."""
    return commands_in(pytestconfig.cache.mkdir("consumers"))


@pytest.fixture(params=LANGUAGES)
def language(request: pytest.FixtureRequest) -> Language:
    language = LANGUAGES[request.param]
    if not language.is_there():
        pytest.skip(f"examples/consumers/{language.name} needs {language.needs}")
    return language


@pytest.fixture
def consumer(
    language: Language, commands: dict[str, list[str]], tmp_path: Path
) -> Iterator[Callable[..., Consumer]]:
    """Make this language's consumer with these flags."""
    with ExitStack() as stack:

        def make(*flags: str) -> Consumer:
            made = Consumer(commands[language.name], tmp_path, [*flags])
            stack.callback(made.kill)
            return made

        yield make


# --- every vector ------------------------------------------------------------------------------


def flat(names: tuple[str, ...], decoded: dict[str, Any]) -> dict[str, Any]:
    """Return what a consumer prints for a decoded tick or bar."""
    return {
        **{name: decoded.get(name) for name in names},
        "extra": {name: value for name, value in decoded.items() if name not in names},
    }


def expected(vector: dict[str, Any]) -> Any:
    decoded = vector["decoded"]
    if vector["schema"] == "t1":
        return {**flat(FIELDS, decoded), "flags": 0}  # the flags of single vectors are 0
    if vector["schema"] == "k1":
        return flat(BAR, decoded)
    if vector["schema"] == "c1":
        return [beside("bar", BAR, one) for one in decoded]
    if vector["schema"] == "b1":
        return [beside("tick", FIELDS, one) for one in decoded]
    return beside("tick", FIELDS, decoded)


def beside(kind: str, names: tuple[str, ...], one: dict[str, Any]) -> dict[str, Any]:
    return {**{key: one[key] for key in one if key != kind}, **flat(names, one[kind])}


def test_it_decodes_every_vector(consumer: Callable[..., Consumer]) -> None:
    decoding = consumer("--decode-vectors", str(VECTORS))
    decoding.start()
    printed = {one["name"]: one["value"] for one in decoding.wait()}
    assert printed == {vector["name"]: expected(vector) for vector in VECTOR_LIST}


def test_the_python_example_imports_nothing_of_this_project() -> None:
    names = set()
    for path in (EXAMPLES / "python").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add(str(node.module))
    assert {"msgpack", "redis", "wire"} <= names
    assert not [name for name in names if name.startswith("qmt")]


# --- live, stopped, killed, started again -------------------------------------------------------


@pytest.fixture(scope="module")
def recorded(
    tmp_path_factory: pytest.TempPathFactory, commands: dict[str, list[str]]
) -> Iterator[Recorded]:
    """A live market, followed by all examples at once; each is stopped, then killed, on its way."""
    folder = tmp_path_factory.mktemp("live")
    following: dict[str, Consumer] = {}
    with record(folder) as market, ExitStack() as stack:
        for name, command in commands.items():
            (folder / name).mkdir()
            markets = [word for one in LANGUAGES[name].live_markets for word in ("--market", one)]
            following[name] = Consumer(command, folder / name, ["--url", market.url, *markets])
            stack.callback(following[name].kill)
        for one in following.values():
            one.start()
        for one in following.values():
            one.wait_to_move()
            one.stop()
        for one in following.values():
            one.wait()
            one.start()
        for one in following.values():
            one.wait_to_move()
            one.kill()
            one.start()
        for one in following.values():
            one.wait_to_move()
        market.finish()
        for name, one in following.items():
            market.wait_for(one, LANGUAGES[name].live_markets)
            one.stop()
        for one in following.values():
            one.wait()
        market.consumers = following
        yield market


def test_live_output_equals_the_log_over_a_stop_and_a_kill(
    language: Language, recorded: Recorded
) -> None:
    following = recorded.consumers[language.name]
    first, second, third = (following.printed(run) for run in (1, 2, 3))
    assert min(map(len, (first, second, third))) > 0
    log = recorded.log_of(language.live_markets)
    seen = {(tick["code"], tick["id"]) for tick in second}
    again = [tick for tick in third if (tick["code"], tick["id"]) in seen]
    # A kill between output and position repeats what was printed last, and nothing else.
    tail = {(tick["code"], tick["id"]) for tick in second[len(second) - len(again) :]}
    assert {(tick["code"], tick["id"]) for tick in again} == tail
    news = [tick for tick in third if (tick["code"], tick["id"]) not in seen]
    assert_equal([*first, *second, *news], log)
    assert following.warnings == []


def test_codes_under_another_prefix_equal_the_log(
    language: Language, recorded: Recorded, consumer: Callable[..., Consumer]
) -> None:
    codes = recorded.copied_codes
    reading = consumer("--url", recorded.url, "--prefix", recorded.copied_prefix, *codes)
    reading.start(until_idle_s=0.1)
    ticks = reading.wait()
    log = recorded.log_of(("SH", "SZ", "BJ"))
    assert_equal(ticks, log[np.isin(log["code"], [code.encode() for code in codes])])
    assert len(reading.last_ids()) == len(codes)
    # The position is the same in every language: Python goes on where this one stopped.
    reading.command = LANGUAGES["python"].command(Path())
    reading.start(until_idle_s=0.1)
    assert reading.wait() == []
    assert reading.warnings == []


# --- killed in the middle of a batch ------------------------------------------------------------


def test_killed_within_a_batch_it_loses_nothing(
    consumer: Callable[..., Consumer], streams: redis.Redis, streams_server: RedisServer
) -> None:
    key, code = "{qmt:SZ}:tick:000001.SZ", "000001.SZ"
    with streams.pipeline() as pipeline:
        for number in range(350):
            pipeline.xadd(key, {"t1": T1}, id=f"{1000 + number}-0")
        pipeline.execute()
    every = [f"{1000 + number}-0" for number in range(350)]

    reading = consumer("--url", streams_server.url, code)
    reading.start(pipe=True)
    assert reading.process is not None
    assert reading.process.stdout is not None
    printed = [json.loads(reading.process.stdout.readline()) for _ in range(130)]
    reading.process.kill()  # the pipe is full: it stands in a write
    rest = reading.process.stdout.read()
    reading.kill()
    whole = [line for line in rest.splitlines(keepends=True) if line.endswith(b"\n")]
    printed += [json.loads(line) for line in whole]
    first = [tick["id"] for tick in printed]
    assert first == every[: len(first)]
    assert len(first) < len(every), "it was killed too late"

    stood = reading.last_ids()[key]
    assert every.index(stood) < len(first), "the position was stored before the output"
    reading.start(until_idle_s=0.1)
    second = [tick["id"] for tick in reading.wait()]
    assert second == every[every.index(stood) + 1 :]
    assert 0 <= len(first) - (every.index(stood) + 1) <= 100, "more than a batch again"


# --- what cannot be had is told -----------------------------------------------------------------

# What JSON and golden vectors cannot hold: NaN, infinities, bytes; and text that redis-cli quotes.
TEXT = 'a "b" \\x41 \\\\ \n\r\t\a\b 停牌'
ODD = [
    *(None, math.nan, 113_700, -5, -math.inf, 0.5, math.inf),
    *([None] * 8),
    *([math.nan, 113_700], [0.00005], [1], [2]),
    *(None, -1.5, 0.25),
    {"bytes": b"\x00\xff", "nan": [math.nan], "text": TEXT},
    3,
    "an element of a later version",
]
ODD_SAID = {
    **dict.fromkeys(FIELDS),
    **{"open": 11.37, "high": -0.0005, "lastClose": 0.5, "speed1Min": -1.5, "speed5Min": 0.25},
    **{"askPrice": [None, 11.37], "bidPrice": [0.00005], "askVol": [1], "bidVol": [2]},
    "extra": {"bytes": "00ff", "nan": [None], "text": TEXT},
    "flags": 3,
}


def test_gaps_trimmed_streams_and_epochs_are_told(
    consumer: Callable[..., Consumer], streams: redis.Redis, streams_server: RedisServer
) -> None:
    gone, empty, intact = (
        f"{{old:{code[-2:]}}}:tick:{code}" for code in ("600519.SH", "000001.SZ", "300750.SZ")
    )
    for market, epoch in (("SH", "one"), ("SZ", "same")):
        streams.set(f"{{old:{market}}}:epoch", epoch)
    for key in (gone, empty, intact):
        for at in (1000, 2000, 3000):
            streams.xadd(key, {"t1": T1}, id=f"{at}-0")
    codes = ("600519.SH", "000001.SZ", "300750.SZ")
    reading = consumer("--url", streams_server.url, "--prefix", "old", *codes)
    reading.start(until_idle_s=0.1)
    assert len(reading.wait()) == 9
    assert reading.warnings == []

    streams.xadd(gone, {"t1": T1}, id="4000-0")
    streams.xadd(gone, {"t1": T1}, id="5000-0")
    streams.xtrim(gone, minid="5000", approximate=False)
    streams.delete(empty)
    streams.xadd(intact, {"t1": msgpack.packb(ODD)}, id="4000-0")
    streams.set("{old:SH}:epoch", "two")
    reading.start(until_idle_s=0.1)
    odd, news = sorted(reading.wait(), key=lambda tick: str(tick["code"]))
    assert (news["code"], news["id"]) == ("600519.SH", "5000-0")
    assert odd == {"code": "300750.SZ", "id": "4000-0", **ODD_SAID}
    assert sorted(reading.warnings) == [
        "warning: SH: new epoch two after one: ticks may be lost or told again",
        f"warning: {gone}: position 3000-0 is gone, 5000-0 follows: ticks may be missing",
        f"warning: {empty}: position 3000-0 is gone, nothing follows: ticks may be missing",
    ]
    reading.start(until_idle_s=0.1)
    assert reading.wait() == []
    assert len(reading.warnings) == 1, "an epoch, and a gap that was passed, are told once"


def test_bars_in_a_feed_are_passed_over_and_its_gap_is_told(
    consumer: Callable[..., Consumer], streams: redis.Redis, streams_server: RedisServer
) -> None:
    feed = "{qmt:SZ}:feed"
    b1 = bytes.fromhex(BY_NAME["batch of a tick and a late tick"]["bytes"])
    streams.xadd(feed, {"b1": b1}, id="1-0")
    streams.xadd(feed, {"c1": C1}, id="2-0")
    reading = consumer("--url", streams_server.url, "--market", "SZ")
    reading.start(until_idle_s=0.1)
    vector = BY_NAME["batch of a tick and a late tick"]
    assert reading.wait() == expected(vector)
    assert reading.last_ids() == {feed: "2-0"}
    streams.xadd(feed, {"b1": b1}, id="3-0")
    streams.xadd(feed, {"b1": b1}, id="4-0")
    streams.xtrim(feed, minid="4", approximate=False)
    reading.start(until_idle_s=0.1)
    assert reading.wait() == expected(vector)
    assert reading.warnings == [
        f"warning: {feed}: position 2-0 is gone, 4-0 follows: ticks may be missing"
    ]


def test_redis_away_and_wrong_flags_are_errors(consumer: Callable[..., Consumer]) -> None:
    away = consumer("--url", "redis://127.0.0.1:1", "600519.SH")
    away.start()
    assert away.wait(1) == []
    assert away.warnings, "it says nothing"
    nothing = consumer()
    nothing.start()
    assert nothing.wait(1, 2) == []
    assert any("--market" in line for line in nothing.warnings)
