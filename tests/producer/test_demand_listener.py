"""What readers say on the channel, heard by the producer: bounded, whoever says what."""

from __future__ import annotations

import random
import string
from collections.abc import Iterator

import pytest
import redis
import structlog
from wanting import heard_on

import qmt_producer.demand_listener
from qmt_producer.demand_listener import DemandListener
from qmt_producer.redis_link import connect
from qmt_protocol.codes import parse_code
from qmt_protocol.demand import LEASE_S, MESSAGE_MAX_BYTES, encode_demand, read_series, words_of
from qmt_protocol.errors import InvalidRequest
from qmt_protocol.keys import Keys, parse_series
from qmt_protocol.periods import PERIODS
from qmt_standalone.redis_server import RedisServer

KEYS = Keys("t")
CHANNEL = "t:demand"
MOST = 20


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def wanted(
    streams_server: RedisServer, streams: redis.Redis, clock: Clock
) -> Iterator[DemandListener]:
    made = DemandListener(connect(streams_server.url), KEYS, ["SH"], MOST, clock)
    assert made.look() == []
    yield made
    made.close()


def codes(count: int, market: str = "SH") -> list[str]:
    return [f"1m|{number:06}.{market}" for number in range(count)]


def say(streams: redis.Redis, *wants: str) -> None:
    for message in encode_demand(wants):
        assert streams.publish(CHANNEL, message) == 1


def test_a_want_lives_while_it_is_said(
    wanted: DemandListener, streams: redis.Redis, clock: Clock
) -> None:
    say(streams, "1m|600519.SH", "tick|rb2610.SF")
    say(streams, "1m|600519.SH")
    assert wanted.look() == ["1m|600519.SH", "tick|rb2610.SF"]
    clock.now += LEASE_S - 1
    say(streams, "1m|600519.SH")
    assert wanted.look() == ["1m|600519.SH", "tick|rb2610.SF"]
    clock.now += 2
    assert wanted.look() == ["1m|600519.SH"]
    clock.now += LEASE_S
    assert wanted.look() == []


def test_200_000_wants_take_nobodys_place(
    wanted: DemandListener, streams: redis.Redis, clock: Clock
) -> None:
    first = codes(5, "SZ")
    say(streams, *first)
    assert wanted.look() == first
    say(streams, *codes(200_000))
    found = wanted.look()
    assert found[:5] == first
    assert len(found) == MOST
    assert set(wanted.turned_away) == {"SH"}
    say(streams, *(f"1m|x.M{number}" for number in range(500)))
    for _ in range(3):
        wanted.look()
    assert len(wanted.turned_away) <= 33, "and of markets so many are named"
    clock.now += LEASE_S + 1
    assert wanted.look() == []
    assert wanted.turned_away == {}


def test_what_is_no_want_is_named_once_and_ignored(
    wanted: DemandListener, streams: redis.Redis, clock: Clock
) -> None:
    strange = [
        *(b"nonsense", b"", b"|", b"1m|", b"7m|600519.SH", b"1m|600519", b"1m|600519.SH|x"),
        *(b"1m|" + b"6" * 25 + b".SH", b"\xff\xfe", b"1m|\xff.SH", b"*.SH", b'{"wants": []}'),
        *(b"inf", b"1m|600519.SH\x00", b"x" * (MESSAGE_MAX_BYTES + 1), b"1m|a b.SH"),
    ]
    with structlog.testing.capture_logs() as told:
        for message in strange:
            assert streams.publish(CHANNEL, message) == 1
        say(streams, "1m|600519.SH")
        assert wanted.look() == ["1m|600519.SH"]
        for message in strange:
            streams.publish(CHANNEL, message)
        assert wanted.look() == ["1m|600519.SH"]
    (line,) = told
    assert (line["such_as"], line["count"]) == ("nonsense", 18)


def test_more_messages_than_one_look_reads_come_with_the_next(
    wanted: DemandListener, streams: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qmt_producer.demand_listener, "_MOST_MESSAGES", 2_000)
    with streams.pipeline(transaction=False) as pipe:
        for _ in range(4_500):
            pipe.publish(CHANNEL, "1m|600519.SH")
        pipe.publish(CHANNEL, "5m|600519.SH")
        pipe.execute()
    assert wanted.look() == ["1m|600519.SH"]
    assert wanted.look() == ["1m|600519.SH"]
    assert wanted.look() == ["1m|600519.SH", "5m|600519.SH"]
    say(streams, "15m|600519.SH")
    assert len(wanted.look()) == 3, "nothing is left behind"


def test_a_line_that_breaks_is_made_anew_and_what_was_wanted_stays(
    wanted: DemandListener, streams: redis.Redis, clock: Clock
) -> None:
    say(streams, "1m|600519.SH")
    assert wanted.look() == ["1m|600519.SH"]
    (line,) = streams.client_list(_type="pubsub")
    streams.client_kill_filter(_id=line["id"])
    clock.now += LEASE_S + 1
    with pytest.raises(redis.ConnectionError):
        wanted.look()
    assert wanted.look() == ["1m|600519.SH"], "its reader could not say so meanwhile"
    say(streams, "5m|600519.SH")
    assert wanted.look() == ["1m|600519.SH", "5m|600519.SH"]


def test_a_message_beyond_what_redis_holds_for_a_listener(
    wanted: DemandListener, streams: redis.Redis
) -> None:
    """Redis drops the listener; the next look begins anew."""
    say(streams, "1m|600519.SH")
    assert wanted.look() == ["1m|600519.SH"]
    streams.publish(CHANNEL, b"x" * 40_000_000)
    with pytest.raises(redis.ConnectionError):
        wanted.look()
    assert wanted.look() == ["1m|600519.SH"]


def test_a_message_of_wants_is_short_enough_and_read_back(streams: redis.Redis) -> None:
    wants = codes(10_000)
    with heard_on(streams, CHANNEL) as heard:
        for message in encode_demand(wants):
            assert len(message) <= MESSAGE_MAX_BYTES
            streams.publish(CHANNEL, message)
        assert heard() == wants
    assert list(encode_demand([])) == []


def test_what_is_read_is_what_the_rest_of_the_bridge_calls_a_want() -> None:
    random.seed(11)
    letters = string.printable + "é停"
    for _ in range(3_000):
        code = "".join(random.choices(letters, k=random.randrange(1, 30))) + random.choice(
            [".SH", ".sh", "", ".SHO"]
        )
        word = f"{random.choice([*PERIODS, '', '7m'])}|{code}".encode()
        try:
            parse_code(code)
            is_want = word.partition(b"|")[0].decode() in PERIODS
        except InvalidRequest:
            is_want = False
        if is_want:
            assert words_of(word) == [word]
            assert parse_series(read_series(word)) == tuple(word.decode().split("|", 1))
        else:
            with pytest.raises(InvalidRequest):
                read_series(word)
