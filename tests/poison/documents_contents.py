"""Heartbeats, ticks, events, progress, manifests and chunks that are none, each by name.

Every one is written with the rights of its role, as a fault or an intruder there could.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterator
from typing import Any, Final

import msgpack
import pyarrow as pa
import redis
from content import Content

from qmt_protocol.arrow import history_schema
from qmt_protocol.keys import JobKeys, Keys
from qmt_protocol.ticks import encode_tick

__all__ = [
    "CODE",
    "CONTENTS",
    "FIRST_MS",
    "GOOD",
    "JOB",
    "MEMBER",
    "OTHER",
    "WANT",
    "a_tick",
    "chunk_of",
    "history_rows",
]

KEYS: Final = Keys()
JOB_KEYS: Final = JobKeys()
CODE: Final = "600000.SH"
"""The code that something is wrong with."""
GOOD: Final = "600519.SH"
"""A code of the same market that must be served all the same."""
OTHER: Final = "000001.SZ"
MEMBER: Final = "worker:POISON:66"
JOB: Final = "poison"
WANT: Final = f"1m|{CODE}"
LATER_MS: Final = 1_767_580_000_000
"""Behind all that the tests publish of a code."""
FIRST_MS: Final = 1_763_688_600_000

Write = Callable[[redis.Redis], None]


def a_tick(at_ms: int = FIRST_MS, **more: Any) -> list[Any]:
    """Return a tick as its array."""
    tick = {"time": at_ms, "lastPrice": 10.5, "volume": 3, "askPrice": [10.6], **more}
    array: list[Any] = msgpack.unpackb(encode_tick(tick))
    return array


def history_rows(rows: int = 4, code: str = CODE) -> pa.Table:
    """Return a history answer of daily bars."""
    schema = history_schema("1d")
    columns = []
    for field in schema:
        if field.name == "code":
            columns.append(pa.array([code] * rows))
        elif field.name == "time":
            columns.append(pa.array([FIRST_MS + at for at in range(rows)]).cast(field.type))
        else:
            columns.append(pa.array([1] * rows).cast(field.type))
    return pa.Table.from_arrays(columns, schema=schema)


def chunk_of(table: pa.Table, **options: Any) -> bytes:
    """Return a table as a worker's chunk."""
    sink = pa.BufferOutputStream()
    told = pa.ipc.IpcWriteOptions(**options)
    with pa.ipc.new_stream(sink, table.schema, options=told) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def _deep(levels: int) -> str:
    return '{"a":' * levels + "1" + "}" * levels


# -- heartbeats -----------------------------------------------------------------------------------


def _beat(document: Any = None, *, member: bytes | str = MEMBER, seen: float | str = 0) -> Write:
    """Write a heartbeat: a document, or bytes as they are; ``seen``: off Redis time, or a score."""

    def write(streams: redis.Redis) -> None:
        seconds, micros = streams.time()
        score: Any = seen if isinstance(seen, str) else seconds * 1000 + micros // 1000 + seen
        data = document if isinstance(document, bytes) else json.dumps(document).encode()
        streams.hset(KEYS.status, member, data)  # type: ignore[arg-type]
        streams.zadd(KEYS.seen, {member: score})

    return write


def _worker(**more: Any) -> dict[str, Any]:
    return {"role": "worker", "host": "POISON", "pid": 66, "queues": ["qmt-query"], **more}


def _flood(streams: redis.Redis) -> None:
    seconds, _ = streams.time()
    members = [f"worker:flood:{at}" for at in range(1_100)]
    streams.hset(KEYS.status, mapping=dict.fromkeys(members, "{"))  # type: ignore[arg-type]
    streams.zadd(KEYS.seen, dict.fromkeys(members, seconds * 1000))


def _heartbeats() -> Iterator[tuple[str, Write]]:
    yield "no JSON", _beat(b"alive")
    yield "empty", _beat(b"")
    yield "no UTF-8", _beat(b'{"role":"worker","host":"\xff\xfe"}')
    yield (
        "no UTF-8 where nobody looks",
        _beat(b'{"role":"worker","host":"POISON","pid":66,"x":"\xff"}'),
    )
    yield "a list", _beat([1, 2, 3])
    yield "null", _beat(None)
    yield "without a role", _beat({"host": "POISON", "pid": 66})
    yield "whose role is a number", _beat(_worker(role=5))
    yield "whose pid is a text", _beat(_worker(pid="66"))
    yield "of another process", _beat(_worker(pid=1, host="OTHER"))
    yield "nested 100,000 deep", _beat(_deep(100_000).encode())
    yield "whose figures are nested 60 deep", _beat(_worker(figures=json.loads(_deep(60))))
    yield "of 70,000 bytes", _beat(_worker(version="x" * 70_000))
    yield "with a market that is none", _beat(_worker(markets=["SH}:lease{"]))
    yield "whose terminal's state is a list", _beat(_worker(terminal={"state": ["ok"]}))
    yield "whose terminal's reason is a number", _beat(_worker(terminal={"reason": 5}))
    yield "whose terminal's time is a text", _beat(_worker(terminal={"since_ms": "now"}))
    yield "whose rates are texts", _beat(_worker(rates={"ticks_per_s": "many"}))
    yield "whose children are none", _beat(_worker(figures={"children": [1]}))
    yield "whose figures are texts", _beat(_worker(figures={"published": "many"}))
    yield "from tomorrow", _beat(_worker(), seen=86_400_000)
    yield "from the end of time", _beat(_worker(), seen="+inf")
    yield "whose name is no UTF-8", _beat(_worker(), member=b"worker:\xff\xfe:66")
    yield "whose name has 9,000 letters", _beat(_worker(), member="worker:" + "x" * 9_000)
    yield "and 1,100 more", _flood


# -- ticks ----------------------------------------------------------------------------------------


def _latest(value: bytes, code: bytes | str = CODE) -> Write:
    def write(streams: redis.Redis) -> None:
        streams.hset(KEYS.latest("SH"), code, value)  # type: ignore[arg-type]

    return write


def _entry(array: Any, entry_id: Any = f"{FIRST_MS}-0") -> bytes:
    return bytes(msgpack.packb([entry_id, array]))


def _nested(levels: int) -> Any:
    found: Any = 1
    for _ in range(levels):
        found = [found]
    return found


def _latests() -> Iterator[tuple[str, Write]]:
    yield "no msgpack", _latest(b"\xc1\xc1\xc1")
    yield "empty", _latest(b"")
    yield "a map", _latest(msgpack.packb({"a": 1}))
    yield "without an id", _latest(msgpack.packb([a_tick()]))
    yield "whose id is a number", _latest(_entry(a_tick(), 5))
    yield "whose id is a word", _latest(_entry(a_tick(), "now"))
    yield "whose id is of no date", _latest(_entry(a_tick(), "999999999999999999-0"))
    yield "of three elements", _latest(_entry([1, 2, 3]))
    yield "whose price is a text", _latest(_entry([*a_tick()[:1], "10.5", *a_tick()[2:]]))
    extra = [*a_tick()[:22], {"more": _nested(200)}, 0]
    yield "nested 200 deep", _latest(_entry(extra))
    odd = [*a_tick()[:22], {"more": msgpack.ExtType(5, b"x")}, 0]
    yield "with a type of nobody's", _latest(_entry(odd))
    twice = [*a_tick()[:22], {"lastPrice": "free"}, 0]
    yield "that says its price twice", _latest(_entry(twice))
    yield "nested 100,000 deep", _latest(b"\x92\xaf1763688600000-0" + b"\x91" * 100_000 + b"\x00")
    yield "of no code", _latest(_entry(a_tick()), "no code")
    yield "of a name that is no UTF-8", _latest(_entry(a_tick()), b"\xff\xfe.SH")
    yield "of a code of another market", _latest(_entry(a_tick()), OTHER)


def _odd_times(streams: redis.Redis) -> None:
    streams.hset(KEYS.latest("SH"), CODE, _entry([2**60, *a_tick()[1:]]))


def _fed(field: str, value: bytes) -> Write:
    def write(streams: redis.Redis) -> None:
        streams.xadd(KEYS.feed("SH"), {field: value})

    return write


def _batch(*rows: list[Any]) -> bytes:
    return bytes(msgpack.packb(rows))


def _feeds() -> Iterator[tuple[str, Write]]:
    good = [GOOD, f"{FIRST_MS + 5}-0", a_tick(FIRST_MS + 5)]
    new = (f"{LATER_MS + number}-0" for number in itertools.count())
    yield "no msgpack", _fed("b1", b"\xc1")
    yield "a map", _fed("b1", msgpack.packb({"a": 1}))
    yield "nested 100,000 deep", _fed("b1", b"\x91" * 100_000 + b"\x00")
    yield "with a tick that is none", _fed("b1", _batch(good, [CODE, next(new), [1, 2]]))
    yield (
        "with a tick whose price is a text",
        _fed("b1", _batch(good, [CODE, next(new), [FIRST_MS, "x", *a_tick()[2:]]])),
    )
    yield "with an id that is a word", _fed("b1", _batch(good, [CODE, "now", a_tick()]))
    yield "with an id of no date", _fed("b1", _batch([CODE, "99999999999999999-0", a_tick()]))
    yield "with a code of another market", _fed("b1", _batch(good, [OTHER, next(new), a_tick()]))
    yield "with no code", _fed("b1", _batch(good, ["", next(new), a_tick()]))
    yield "of neither ticks nor bars", _fed("x1", b"1")
    yield "of bars that are none", _fed("c1", _batch([CODE, "1m", next(new), [1]]))
    yield "of bars of no period", _fed("c1", _batch([CODE, "7 min", next(new), [1]]))


def _streams() -> Iterator[tuple[str, Write]]:
    def add(fields: dict[str, bytes], entry_id: str = "*") -> Write:
        return lambda streams: _void(streams.xadd(KEYS.tick(CODE), fields, id=entry_id))  # type: ignore[arg-type]

    yield "a tick that is none", add({"t1": b"\xc1"}, f"{FIRST_MS}-0")
    yield "a tick without t1", add({"t9": b"1"}, f"{FIRST_MS}-0")
    yield "a tick of the year 10,000", add({"t1": encode_tick({"time": 1})}, "253402300800000-0")
    yield "a text", lambda streams: _void(streams.set(KEYS.tick(CODE), "text"))


def _void(_: object) -> None:
    return None


# -- what happened, and what stands beside the data ------------------------------------------------


def _event(value: Any, field: str = "e") -> Write:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return lambda streams: _void(streams.xadd(KEYS.events, {field: data}))


def _events() -> Iterator[tuple[str, Write]]:
    gap = {"kind": "gap", "reason": "x", "market": "SH"}
    yield "no JSON", _event(b"it happened")
    yield "without its field", _event(b"{}", "x")
    yield "no UTF-8", _event(b'{"kind":"\xff"}')
    yield "a list", _event([1])
    yield "nested 100,000 deep", _event(_deep(100_000).encode())
    yield "a gap whose codes are a list", _event({**gap, "codes": ["a"]})
    yield "a gap whose counts are texts", _event({**gap, "codes": {CODE: ["a", "b", "c"]}})
    yield "a gap of no code", _event({**gap, "codes": {"no code": [1, 2, 3]}})
    yield "a gap from a word on", _event({**gap, "from_ms": "yesterday"})
    yield "a gap of the year 300,000,000", _event({**gap, "from_ms": 1, "to_ms": 2**63})
    yield "of 5 MB", _event({"kind": "note", "text": "x" * 5_000_000})


def _refusals() -> Iterator[tuple[str, Write]]:
    def refuse(value: bytes) -> Write:
        return lambda streams: _void(streams.hset(KEYS.refused, WANT, value))  # type: ignore[arg-type]

    yield "no JSON", refuse(b"no")
    yield "no UTF-8", refuse(b"\xff\xfe")
    yield "nested 100,000 deep", refuse(_deep(100_000).encode())
    yield "whose reason is a list", refuse(b'{"reason": [1]}')


def _replace(key: str, value: bytes) -> Write:
    def write(streams: redis.Redis) -> None:
        streams.set(key, value)

    return write


def _other_type(key: str) -> Write:
    def write(streams: redis.Redis) -> None:
        streams.delete(key)
        streams.set(key, "text")

    return write


def _markets() -> Iterator[tuple[str, Write]]:
    yield "an epoch that is no UTF-8", _replace(KEYS.epoch("SH"), b"\xff\xfe")
    yield "an epoch of 10,000 letters", _replace(KEYS.epoch("SH"), b"x" * 10_000)
    yield "a feed that is a text", _other_type(KEYS.feed("SH"))
    yield "latest ticks that are a text", _other_type(KEYS.latest("SH"))


def _besides() -> Iterator[tuple[str, Write]]:
    """What the gateway and the client do not read, or may pass over without a word."""
    yield "a lease that is no UTF-8", _replace(KEYS.lease("SH"), b"\xff\xfe")
    yield "a replay's mark that is none", _replace(KEYS.replay, b"\xff{")
    yield "a schema that is none", lambda streams: _void(streams.hset(KEYS.schema, "t1", "\\xff"))
    yield "a latest tick from the end of time", _odd_times


# -- jobs -----------------------------------------------------------------------------------------

META: Final = {"simulated": True, "source": {}, "absent": {}, "market_ms": 1}


def _progress(value: Any, field: str = "p") -> Write:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return lambda jobs: _void(jobs.xadd(JOB_KEYS.progress(JOB), {field: data}))


def _progresses() -> Iterator[tuple[str, Write]]:
    yield "no JSON", _progress(b"half")
    yield "without its field", _progress(b"{}", "x")
    yield "no UTF-8", _progress(b'{"state":"running","message":"\xff"}')
    yield "of a state that is none", _progress({"state": "asleep"})
    yield "below zero", _progress({"state": "running", "finished": -1})
    yield (
        "of a number of 4,000 digits",
        _progress(b'{"state":"running","total":' + b"9" * 4_000 + b"}"),
    )
    yield "whose error is a text", _progress({"state": "failed", "error": "x"})
    yield "of 2 MB", _progress({"state": "running", "message": "x" * 2_000_000})
    yield "nested 100,000 deep", _progress(_deep(100_000).encode())


def _failures() -> Iterator[tuple[str, Write]]:
    def failed(**error: Any) -> Write:
        return _progress({"state": "failed", "error": error})

    reserved = {"hint": 1, "message": 2, "self": 3, "data": 4, "args": 5, "to_dict": 6}
    yield "whose facts are names of ours", failed(error="job-failed", message="x", data=reserved)
    yield "whose message is a list", failed(error="job-failed", message=[1], hint={"a": 1})
    yield "of a kind that is a list", failed(error=["x"], message="x")
    yield (
        "whose facts are of other kinds",
        failed(error="no-worker", message="x", data={"last_seen_ms": "then", "codes": 5}),
    )
    yield "that says nothing", failed()


def _manifest(value: Any, *chunks: bytes) -> Write:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()

    def write(jobs: redis.Redis) -> None:
        jobs.xadd(JOB_KEYS.progress(JOB), {"p": json.dumps({"state": "done"})})
        for number, chunk in enumerate(chunks):
            jobs.set(JOB_KEYS.chunk(JOB, number), chunk)
        jobs.set(JOB_KEYS.manifest(JOB), data)

    return write


def _table(**more: Any) -> dict[str, Any]:
    return {"job": "history", "kind": "table", "chunks": 1, "rows": 4, "meta": META, **more}


def _manifests() -> Iterator[tuple[str, Write]]:
    yield "no JSON", _manifest(b"done")
    yield "no UTF-8", _manifest(b'{"job":"\xff"}')
    yield "a list", _manifest([1])
    yield "of a job that there is not", _manifest(_table(job="order_stock"))
    yield "of a table that is a document", _manifest(_table(kind="document", document={}))
    yield "of less than no chunk", _manifest(_table(chunks=-1))
    yield "of a billion chunks", _manifest(_table(chunks=10**9))
    yield "whose absent codes are a list", _manifest(_table(meta={"absent": ["x"]}))
    yield (
        "of a sector that is a number",
        _manifest({"job": "sector_stocks", "kind": "document", "document": 5, "meta": META}),
    )
    yield (
        "of a download without rows",
        _manifest(
            {"job": "download", "kind": "document", "document": {CODE: {"days": 1}}, "meta": META}
        ),
    )
    yield "nested 100,000 deep", _manifest(_deep(100_000).encode())
    brackets = (
        b'{"job":"sector_stocks","kind":"document","document":[' + b"[]," * 1_000_000 + b"1]}"
    )
    yield "of a million lists", _manifest(brackets)
    yield "of 40 MB", _manifest(b'{"job":"' + b"x" * 40_000_000 + b'"}')


def _chunks() -> Iterator[tuple[str, Write]]:
    rows = history_rows()
    good = chunk_of(rows)
    yield "no Arrow", _manifest(_table(), b"rows")
    yield "empty", _manifest(_table(), b"\x00")
    yield "without its end", _manifest(_table(), good[:-8])
    yield "with something behind its end", _manifest(_table(), good + b"\0" * 8)
    yield (
        "with a header of 2 GB",
        _manifest(_table(), b"\xff\xff\xff\xff\xff\xff\xff\x7f" + good[8:]),
    )
    yield "of other columns", _manifest(_table(), chunk_of(rows.select(["time", "code"])))
    yield "of other rows than its manifest says", _manifest(_table(rows=5), good)
    yield "compressed", _manifest(_table(), chunk_of(rows, compression="zstd"))
    million = pa.table({"code": pa.array([CODE] * 10**6)})
    yield "that inflates", _manifest(_table(rows=10**6), chunk_of(million, compression="zstd"))
    wrong_code = rows.set_column(0, rows.schema.field(0), pa.array(["no code"] * 4))
    yield "of no code", _manifest(_table(), chunk_of(wrong_code))
    never = pa.array([2**62] * 4).cast(rows.schema.field(1).type)
    yield (
        "of the end of time",
        _manifest(_table(), chunk_of(rows.set_column(1, rows.schema.field(1), never))),
    )
    offsets = good.replace(CODE.encode() * 4, b"\xff" * 36)
    yield "whose texts are no UTF-8", _manifest(_table(), offsets)


def _slug(words: str) -> str:
    return re.sub(r"[^0-9A-Za-z]+", "-", words)


def _contents() -> Iterator[Content]:
    for kind, role, server, of in (
        ("heartbeat", "worker", "streams", _heartbeats),
        ("latest", "producer", "streams", _latests),
        ("feed", "producer", "streams", _feeds),
        ("stream", "producer", "streams", _streams),
        ("event", "producer", "streams", _events),
        ("refusal", "producer", "streams", _refusals),
        ("market", "producer", "streams", _markets),
        ("beside", "producer", "streams", _besides),
        ("progress", "worker", "jobs", _progresses),
        ("failure", "worker", "jobs", _failures),
        ("manifest", "worker", "jobs", _manifests),
        ("chunk", "worker", "jobs", _chunks),
    ):
        for name, write in of():
            yield Content(_slug(f"{kind}-{name}"), role, server, write)


CONTENTS: Final = tuple(_contents())
