"""What may lie on the streams server: bad wants, events, refusals, and bad keys of a market.

`CASES` says beside each content how it is named where it is noticed, and whether its market stands
still until the key is removed. All of it is of the market `MARKET`; the others go on.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import msgpack
import redis
from content import Content

from qmt_protocol.bars import encode_bar
from qmt_protocol.periods import PERIODS
from qmt_protocol.ticks import encode_tick

MARKET: Final = "SH"
BUSY: Final = ("600519.SH", "600000.SH", "000001.SZ")
"""Codes that tick all the time."""
QUIET: Final = "601398.SH"
"""A code that no terminal of the tests pushes: what is written of it stays."""
LAST_ID: Final = "18446744073709551615-18446744073709551615"
MB: Final = 1_000_000
_OF: Final = f"{{qmt:{MARKET}}}"

IGNORED: Final = "what names no series is ignored"
"""Told once a minute."""
UNREADABLE: Final = "cannot be read"
UNREAD: Final = '"reason":"unreadable"'
REFUSED: Final = "a market is refused"
UNREAD_LATEST: Final = f'"{QUIET}": '
"""Among what an answer names as unreadable."""

Write = Callable[[redis.Redis], Any]


@dataclass(frozen=True)
class Case:
    """A content, and what is to be seen of it.

    Attributes
    ----------
    named : str
        A pattern found in a log, an event or a heartbeat; empty: nobody reads the content.
    once : bool
        It may have been told already, and is not told again so soon.
    remove : tuple of str
        Keys that stop their market until somebody removes them.
    """

    content: Content
    named: str = ""
    once: bool = False
    remove: tuple[str, ...] = ()


def _case(
    name: str,
    role: str,
    write: Write,
    named: str = "",
    *,
    once: bool = False,
    remove: tuple[str, ...] = (),
) -> Case:
    def done(connection: redis.Redis) -> None:
        write(connection)

    return Case(Content(name, role, "streams", done), named, once, remove)


# -- wants ----------------------------------------------------------------------------------------


def _said(*messages: bytes) -> Write:
    def write(connection: redis.Redis) -> None:
        with connection.pipeline(transaction=False) as pipe:
            for message in messages:
                pipe.publish("qmt:demand", message)
            pipe.execute()

    return write


def _in_parts(wants: list[str]) -> list[bytes]:
    return [" ".join(wants[at : at + 1000]).encode() for at in range(0, len(wants), 1000)]


_UNKNOWN: Final = _in_parts([f"1m|9{number:05}.SH" for number in range(10_000)])
_VALID: Final = _in_parts([f"{period}|{code}" for code in BUSY for period in PERIODS])
_MARKETS: Final = _in_parts([f"1m|x.M{number}" for number in range(200)])

WANTS: Final = [
    _case("want-10000-unknown-codes", "client", _said(*_UNKNOWN), "does not know"),
    _case(
        "want-more-than-there-are-places",
        "gateway",
        _said(*_VALID),
        "are in use|are wanted already",
    ),
    _case("want-200-markets", "client", _said(*_MARKETS), "does not know|are wanted already"),
    _case("want-3000-messages", "client", _said(*[b"1m|600519.SH"] * 3000)),
    _case("want-words-that-are-none", "client", _said(b"a want| |x 7m|x.SH"), IGNORED, once=True),
    _case("want-not-utf8", "client", _said(b"1m|\xff\xfe.SH"), IGNORED, once=True),
    _case("want-nul", "gateway", _said(b"1m|600519.SH\0"), IGNORED, once=True),
    _case("want-empty", "client", _said(b""), IGNORED, once=True),
    _case("want-json", "client", _said(b'{"wanted": ["1m|600519.SH"]}'), IGNORED, once=True),
    _case("want-one-long-word", "client", _said(b"1m|" + b"6" * 60_000), IGNORED, once=True),
    _case("want-1-mb", "client", _said(b"1m|600519.SH " * 80_000), IGNORED, once=True),
    # Nobody reads it any more.
    _case(
        "wanted-set-of-200000",
        "admin",
        lambda r: [
            r.zadd("qmt:wanted", {f"1m|{at}{n:05}.SH": 1e18 for n in range(10_000)})
            for at in range(20)
        ],
    ),
    _case(
        "wanted-set-inf",
        "admin",
        lambda r: r.zadd("qmt:wanted", {f"{period}|600519.SH": "inf" for period in PERIODS}),
    ),
    _case("wanted-set-1-mb", "admin", lambda r: r.zadd("qmt:wanted", {"x" * MB: 1e18})),
    _case("wanted-of-another-type", "admin", lambda r: r.set("qmt:wanted", "x")),
]


# -- events ---------------------------------------------------------------------------------------


def _event(data: Any, key: str = "qmt:events") -> Write:
    body = data if isinstance(data, bytes) else json.dumps(data).encode()
    return lambda connection: connection.xadd(key, {"e": body})


def _gap(**facts: Any) -> Write:
    return _event({"kind": "gap", "reason": "x", "market": MARKET, **facts})


_CODES: Final = {f"{number:06}.SH": [1, 2, 3] for number in range(100_000)}

EVENTS: Final = [
    _case("event-no-field", "producer", lambda r: r.xadd("qmt:events", {"x": "y"}), UNREADABLE),
    _case("event-not-json", "producer", _event(b"gap"), UNREADABLE),
    _case("event-not-utf8", "producer", _event(b'{"kind": "\xff"}'), UNREADABLE),
    _case("event-list", "producer", _event([1, 2]), UNREADABLE),
    _case("event-deep", "producer", _event(b"[" * 100_000), UNREADABLE),
    _case("event-kind-list", "producer", _event({"kind": ["gap"]})),
    _case("event-2000-of-no-kind", "producer", lambda r: _many(r, 2000)),
    _case("gap-codes-number", "producer", _gap(codes={"600519.SH": 5}), UNREADABLE),
    _case("gap-codes-short", "producer", _gap(codes={"600519.SH": [1]}), UNREADABLE),
    _case("gap-codes-text", "producer", _gap(codes={"600519.SH": ["a", "b", "c"]}), UNREADABLE),
    _case("gap-from-text", "producer", _gap(from_ms="yesterday"), UNREADABLE),
    _case("gap-to-far", "producer", _gap(from_ms=1, to_ms=10**30), UNREADABLE),
    _case("gap-reason-map", "producer", _gap(reason={"a": 1}), UNREADABLE),
    _case("gap-market-number", "producer", _gap(market=7), UNREADABLE),
    _case("gap-5-mb-reason", "producer", _gap(reason="r" * 5 * MB), "rrrrr"),
    _case(
        "gap-100000-codes", "producer", _gap(codes=_CODES, from_ms=1, to_ms=2), "archive missing"
    ),
    _case("gap-strange-codes", "producer", _gap(codes={"../x": [1, 2, 3]})),
    _case(
        "event-last-id",
        "producer",
        lambda r: r.xadd("qmt:events", {"e": "{}"}, id=LAST_ID),
        "no id of an event",
        remove=("qmt:events",),
    ),
    _case("event-of-producers-not-json", "producer", _event(b"x", "qmt:events:producer")),
    _case("event-refused-1-mb", "producer", _event(b"x" * MB, "qmt:events:refused")),
    _case("archive-event-not-json", "archive", _event(b"\xff", "qmt:events:archive")),
    _case(
        "archive-event-no-field",
        "archive",
        lambda r: r.xadd("qmt:events:archive", {"x": "y"}),
    ),
]


def _many(connection: redis.Redis, count: int) -> None:
    with connection.pipeline(transaction=False) as pipe:
        for number in range(count):
            pipe.xadd("qmt:events", {"e": json.dumps({"kind": "x", "number": number})})
        pipe.execute()


# -- what stands beside ---------------------------------------------------------------------------


def _hashed(key: str, field: Any, value: Any) -> Write:
    return lambda connection: connection.hset(key, field, value)


REFUSALS: Final = [
    _case("refused-not-json", "producer", _hashed("qmt:refused", "1m|600519.SH", b"\xff")),
    _case("refused-not-utf8", "producer", _hashed("qmt:refused", b"1m|\xff.SH", "{}")),
    _case("refused-others-garbage", "producer", _hashed("qmt:refused", "*.SH", "[]")),
    _case("refused-1-mb", "producer", _hashed("qmt:refused", "x" * MB, "y" * MB)),
    _case(
        "refused-50000",
        "producer",
        lambda r: r.hset("qmt:refused", mapping={f"1m|{n:06}.SH": "{}" for n in range(50_000)}),
    ),
    _case(
        "refused-of-another-type",
        "admin",
        lambda r: (r.delete("qmt:refused"), r.set("qmt:refused", "x")),
        "the key of refusals is no hash",
    ),
]

SCHEMA: Final = [
    _case("schema-garbage", "producer", _hashed("qmt:schema", "t1", b"\xff\xfe")),
    _case("schema-1-mb", "producer", _hashed("qmt:schema", "x", "y" * MB)),
]


def _instead(key: str, put: Write) -> Write:
    """Return what puts something of another type in a key's place."""
    return lambda connection: (connection.delete(key), put(connection))


def _stream_at(key: str) -> Write:
    return _instead(key, lambda connection: connection.xadd(key, {"x": "y"}))


def _text_at(key: str) -> Write:
    return _instead(key, lambda connection: connection.set(key, "x"))


def _complete(text: bytes) -> Write:
    """Return what lets the lease be taken anew beside a bad word on what is complete."""
    return lambda connection: (
        connection.hset(f"{_OF}:acked", "complete", text),
        connection.delete(f"{_OF}:lease"),
    )


def _bad_numbers(connection: redis.Redis) -> None:
    for ring in connection.hkeys(f"{_OF}:acked"):
        connection.hset(f"{_OF}:acked", ring, "many")


TEN_YEARS_MS: Final = 315_360_000_000
LEASES: Final = [
    _case("lease-for-ever", "producer", lambda r: r.set(f"{_OF}:lease", "me"), "lease taken"),
    _case(
        "lease-for-ten-years",
        "producer",
        lambda r: r.set(f"{_OF}:lease", "me", px=TEN_YEARS_MS),
        "lease taken",
    ),
    _case(
        "lease-not-utf8",
        "producer",
        lambda r: r.set(f"{_OF}:lease", b"\xff\xfe", px=1500),
        "another producer publishes",
    ),
    _case(
        "lease-1-mb",
        "producer",
        lambda r: r.set(f"{_OF}:lease", "x" * MB, px=1500),
        "another producer publishes",
    ),
    _case(
        "lease-of-another-type",
        "producer",
        _stream_at(f"{_OF}:lease"),
        REFUSED,
        remove=(f"{_OF}:lease",),
    ),
    _case("acked-no-number", "producer", _bad_numbers, "Redis lost history"),
    _case("acked-complete-garbage", "producer", _complete(b"\xff when"), "lease taken"),
    _case("acked-complete-far", "producer", _complete(b"99999999999999999999 x"), "lease taken"),
    _case("acked-complete-future", "producer", _complete(b"9999999999999 x"), "lease taken"),
    _case(
        "acked-of-another-type",
        "producer",
        _text_at(f"{_OF}:acked"),
        REFUSED,
        remove=(f"{_OF}:acked",),
    ),
]

EPOCHS: Final = [
    _case(
        "epoch-not-utf8",
        "producer",
        lambda r: r.set(f"{_OF}:epoch", b"\xff\xfe"),
        "is no epoch",
        remove=(f"{_OF}:epoch",),
    ),
    _case(
        "epoch-100-kb",
        "producer",
        lambda r: r.set(f"{_OF}:epoch", "e" * 100_000),
        "is no epoch",
        remove=(f"{_OF}:epoch",),
    ),
    _case(
        "epoch-of-another-type",
        "producer",
        _stream_at(f"{_OF}:epoch"),
        "is not of the type",
        remove=(f"{_OF}:epoch",),
    ),
]

_LATEST: Final = f"{_OF}:latest"
LATEST: Final = [
    _case("latest-garbage", "producer", _hashed(_LATEST, QUIET, b"\xc1"), UNREAD_LATEST),
    _case("latest-busy-garbage", "producer", _hashed(_LATEST, BUSY[0], b"\xa5")),
    _case("latest-empty", "producer", _hashed(_LATEST, BUSY[0], b"")),
    _case(
        "latest-id-text",
        "producer",
        _hashed(_LATEST, QUIET, msgpack.packb(["when", [1] * 24])),
        UNREAD_LATEST,
    ),
    _case(
        "latest-no-code",
        "producer",
        _hashed(_LATEST, "x", msgpack.packb(["1-1", None])),
        "'x' is no code of",
    ),
    _case("latest-not-utf8", "producer", _hashed(_LATEST, b"\xff.SH", b"\x01"), "is no code of"),
    _case("latest-of-another-type", "producer", _text_at(_LATEST), REFUSED, remove=(_LATEST,)),
]


# -- the feed -------------------------------------------------------------------------------------

_FEED: Final = f"{_OF}:feed"
_T1: Final = msgpack.unpackb(encode_tick({"time": 1_767_576_600_000, "lastPrice": 10.5}))


def _fed(data: bytes, field: str = "b1") -> Write:
    return lambda connection: connection.xadd(_FEED, {field: data})


def _ticks(*rows: Any) -> Write:
    return _fed(msgpack.packb(list(rows)))


def _tick(t1: Any, entry_id: str = "", code: str = QUIET) -> Write:
    def write(connection: redis.Redis) -> None:
        at = entry_id or f"{time.time_ns() // 1_000_000}-0"
        _ticks([code, at, t1])(connection)

    return write


def _deep(depth: int) -> bytes:
    return b"\x91" * depth + b"\xc0"


BAR: Final = msgpack.unpackb(encode_bar({"time": 1_767_576_660_000, "close": 10.5, "closed": True}))
NO_TICK: Final = "a tick cannot be read"
FEEDS: Final = [
    _case("feed-no-field", "producer", lambda r: r.xadd(_FEED, {"x": "y"}), UNREAD),
    _case("feed-garbage", "producer", _fed(b"\xc1\xc1"), UNREAD),
    _case("feed-empty", "producer", _fed(b""), UNREAD),
    _case("feed-map", "producer", _fed(msgpack.packb({"a": 1})), UNREAD),
    _case("feed-deep", "producer", _fed(_deep(100_000)), UNREAD),
    _case("feed-5-mb", "producer", _fed(b"\x00" * 5 * MB), UNREAD),
    _case("feed-short-rows", "producer", _ticks([QUIET]), UNREAD),
    _case("feed-code-number", "producer", _ticks([7, "1-1", _T1]), UNREAD),
    _case("feed-no-code", "producer", _tick(_T1, code="600519"), UNREAD),
    _case("feed-path", "producer", _tick(_T1, code="../../x.SH"), UNREAD),
    _case("feed-other-market", "producer", _tick(_T1, code="000001.SZ"), UNREAD),
    _case("feed-long-code", "producer", _tick(_T1, code="6" * MB + ".SH"), UNREAD),
    _case("feed-id-text", "producer", _tick(_T1, "when"), UNREAD),
    _case("feed-id-far", "producer", _tick(_T1, "99999999999999999-0"), UNREAD),
    _case("feed-id-number-far", "producer", _tick(_T1, "1767576600000-99999999999"), UNREAD),
    _case("feed-tick-nil", "producer", _tick(None), NO_TICK),
    _case("feed-tick-map", "producer", _tick({"lastPrice": 1}), NO_TICK),
    _case("feed-tick-short", "producer", _tick(_T1[:5]), NO_TICK),
    _case("feed-tick-text", "producer", _tick([_T1[0], "10.5", *_T1[2:]]), NO_TICK),
    _case("feed-tick-flags-text", "producer", _tick([*_T1[:-1], "x"]), NO_TICK),
    _case("feed-tick-large", "producer", _tick([2**64 - 1, *[2**63] * 7, *_T1[8:]])),
    _case("feed-tick-nan", "producer", _tick([_T1[0], float("nan"), float("inf"), *_T1[3:]])),
    _case("feed-bars-garbage", "producer", _fed(b"\xc1", "c1"), UNREAD),
    _case(
        "feed-bars-path",
        "producer",
        _fed(msgpack.packb([[QUIET, "../../x", "1767576660000-0", BAR]]), "c1"),
        UNREAD,
    ),
    _case(
        "feed-bar-garbage",
        "producer",
        _fed(msgpack.packb([[QUIET, "1m", "1767576660000-0", ["x"]]]), "c1"),
        "a bar cannot be read",
    ),
    _case("feed-of-another-type", "producer", _text_at(_FEED), REFUSED, remove=(_FEED,)),
    _case(
        "feed-last-id",
        "producer",
        lambda r: r.xadd(_FEED, {"b1": b"\x90"}, id=LAST_ID),
        REFUSED,
        remove=(_FEED, f"{_OF}:acked"),
    ),
]


# -- the codes' own streams, and other keys -------------------------------------------------------

_BUSY_STREAM: Final = f"{_OF}:tick:{BUSY[1]}"


def _stored(fields: dict[Any, Any], key: str = f"{_OF}:tick:{BUSY[0]}") -> Write:
    return lambda connection: connection.xadd(key, fields)


STREAMS: Final = [
    _case("tick-other-field", "producer", _stored({"x": "y"})),
    _case("tick-garbage", "producer", _stored({"t1": b"\xc1"})),
    _case("tick-nil", "producer", _stored({"t1": b"\xc0"})),
    _case("tick-map", "producer", _stored({"t1": msgpack.packb({"a": [1]})})),
    _case("tick-texts", "producer", _stored({"t1": msgpack.packb(["x"] * 24)})),
    _case(
        "tick-last-id",
        "producer",
        lambda r: r.xadd(_BUSY_STREAM, {"t1": b"\xc0"}, id=LAST_ID),
        "rejected by Redis",
        remove=(_BUSY_STREAM,),
    ),
    _case(
        "tick-of-another-type",
        "producer",
        _text_at(_BUSY_STREAM),
        "rejected by Redis",
        remove=(_BUSY_STREAM,),
    ),
    _case(
        "bar-path", "producer", _stored({"k1": msgpack.packb(BAR)}, f"{_OF}:bar:../../x:{QUIET}")
    ),
    _case("bar-not-utf8", "producer", _stored({"k1": b"x"}, b"{qmt:SH}:bar:\xff:\xff")),
    _case("market-not-utf8", "producer", _stored({"t1": b"x"}, b"{qmt:\xff}:tick:\xff.\xff")),
    _case("archived-garbage", "archive", lambda r: r.set(f"{_OF}:archived", b"\xff")),
    _case("archived-far", "archive", lambda r: r.set(f"{_OF}:archived", LAST_ID)),
    # Last: whoever begins anew meets all that is left of the others.
    _case(
        "epoch-again",
        "producer",
        lambda r: r.set(f"{_OF}:epoch", "another"),
        "the history is another one",
    ),
]

CASES: Final = [
    *WANTS,
    *EVENTS,
    *REFUSALS,
    *SCHEMA,
    *LEASES,
    *EPOCHS,
    *LATEST,
    *FEEDS,
    *STREAMS,
]
CONTENTS: Final = [case.content for case in CASES]
SAMPLE: Final = {"want-10000-unknown-codes", "gap-codes-number", "lease-for-ever"}
"""What is tried in each run of the tests."""
