"""What may lie on the jobs server: bad jobs, bad ids, keys of the wrong type.

`SERVED` is met by a worker that runs, `AT_START` by one that starts; `CONTENTS` is both. A job's id
is its content's name.
"""

from __future__ import annotations

import json
import pickle
import zlib
from collections.abc import Callable, Mapping
from typing import Any, Final

import redis
from content import Content

from qmt_protocol.jobs import QUERY_QUEUE

QUEUE: Final = f"rq:queue:{QUERY_QUEUE}"
INTERMEDIATE: Final = f"{QUEUE}:intermediate"
WIP: Final = f"rq:wip:{QUERY_QUEUE}"
PARAMS: Final = {"sector": "上证50"}
ARGUMENTS: Final = {"params": PARAMS, "version": 2}
FEW_MB: Final = 3_000_000

Value = str | bytes | int | float


def call(
    params: Any = PARAMS, function: Any = "qmt.sector_stocks", instance: Any = None, args: Any = ()
) -> bytes:
    """Return a job's data, plain."""
    return json.dumps([function, instance, args, {"params": params, "version": 2}]).encode()


def job(
    name: str, data: bytes | None = None, fields: Mapping[Value, Value] | None = None
) -> Content:
    """Return a job with other data, or with more fields than a good one."""

    def write(connection: redis.Redis) -> None:
        whole = {"data": call() if data is None else data, "origin": QUERY_QUEUE, **(fields or {})}
        connection.hset(f"rq:job:{name}", mapping=whole)
        connection.rpush(QUEUE, name)

    return Content(name, "client", "jobs", write)


def client(name: str, write: Callable[[redis.Redis], Any]) -> Content:
    """Return what a client may write."""
    return Content(name, "client", "jobs", lambda connection: _do(write, connection))


def worker(name: str, write: Callable[[redis.Redis], Any]) -> Content:
    """Return what takes a worker's rights."""
    return Content(name, "worker", "jobs", lambda connection: _do(write, connection))


def _do(write: Callable[[redis.Redis], Any], connection: redis.Redis) -> None:
    write(connection)


def with_job(name: str, write: Callable[[redis.Redis], Any], *, role: str = "client") -> Content:
    """Return a good job beside something that was written before it."""

    def both(connection: redis.Redis) -> None:
        write(connection)
        connection.hset(f"rq:job:{name}", mapping={"data": call(), "origin": QUERY_QUEUE})
        connection.rpush(QUEUE, name)

    return Content(name, role, "jobs", both)


def keys_of(kind: str) -> Callable[[redis.Redis, str], Any]:
    """Return what makes a key of a type."""
    return {
        "string": lambda connection, key: connection.set(key, "x"),
        "list": lambda connection, key: connection.rpush(key, "x"),
        "set": lambda connection, key: connection.sadd(key, "x"),
        "sorted-set": lambda connection, key: connection.zadd(key, {"x": 1}),
        "hash": lambda connection, key: connection.hset(key, "x", "x"),
        "stream": lambda connection, key: connection.xadd(key, {"x": "x"}),
    }[kind]


def of_type(key: str, kind: str) -> Content:
    """Return one of RQ's own keys with another type."""

    def write(connection: redis.Redis) -> None:
        connection.delete(key)
        keys_of(kind)(connection, key)

    return Content(f"{key.replace(':', '-')}-is-{kind}", "worker", "jobs", write)


def job_of_type(kind: str) -> Content:
    name = f"job-is-{kind}"

    def write(connection: redis.Redis) -> None:
        keys_of(kind)(connection, f"rq:job:{name}")
        connection.rpush(QUEUE, name)

    return Content(name, "worker", "jobs", write)


def bomb(begin: bytes, end: bytes) -> bytes:
    """Return some 300 kB that become 256 MB of spaces between a begin and an end."""
    megabyte, times = b" " * 1_000_000, 256
    deflate = zlib.compressobj(9, wbits=-15)
    parts = [
        deflate.compress(part) + deflate.flush(zlib.Z_FULL_FLUSH) for part in (begin, megabyte, end)
    ]
    check = zlib.adler32(begin)
    for _ in range(times):
        check = zlib.adler32(megabyte, check)
    whole = [b"\x78\xda", parts[0], parts[1] * times, parts[2], deflate.flush()]
    return b"".join([*whole, zlib.adler32(end, check).to_bytes(4, "big")])


BOMB: Final = bomb(b"[", b"]")


def history(name: str, **params: Any) -> Content:
    return job(name, call({"codes": ["600000.SH"], "period": "1d", **params}, "qmt.history"))


# -- bad data of jobs: each has to be told ---------------------------------------------------------

DATA: Final = (
    job("data-empty-list", b"[]", {"timeout": "abc"}),
    job("data-empty", b""),
    client("data-missing", lambda c: (c.hset("rq:job:data-missing", "origin", "x"),
                                      c.rpush(QUEUE, "data-missing"))),
    job("data-no-json", b"x"),
    job("data-null", b"null"),
    job("data-object", b"{}"),
    job("data-number", b"7"),
    job("data-string", b'"qmt.sector_stocks"'),
    job("data-three-parts", b'["qmt.sector_stocks", null, []]'),
    job("data-five-parts", b'["qmt.sector_stocks", null, [], {"params": {}, "version": 2}, 1]'),
    job("data-pickle", pickle.dumps(("qmt.sector_stocks", None, (), ARGUMENTS))),
    job("data-not-utf8", b'["\xff", null, [], {}]'),
    job("data-byte-order-mark", b"\xef\xbb\xbf" + call()),
    job("data-utf16", call().decode().encode("utf-16")),
    job("data-lone-surrogate", call({"sector": "x"}).replace(b'"x"', b'"\\ud800"')),
    job("data-nan", call({"sector": float("nan")})),
    job("data-beyond-floats", call(args="number").replace(b'"number"', b"[1e999]")),
    job("data-long-number", b"[" + b"9" * 100_000 + b"]"),
    job("data-deep", b"[" * 200_000 + b"]" * 200_000),
    job("data-many-lists", b"[" + b"[]," * 340_000 + b"[]]"),
    job("data-too-large", b"[" + b" " * FEW_MB + b"]"),
    job("data-bomb", BOMB),
    job("data-bomb-in-bomb", zlib.compress(BOMB)),
    job("data-bomb-of-a-call", bomb(call()[:-1], b"]")),
    job("data-cut-off", zlib.compress(call() + b" " * 5000)[:-8]),
    job("data-wrong-checksum", zlib.compress(call())[:-1] + b"\0"),
    job("function-null", call(function=None)),
    job("function-number", call(function=1)),
    job("function-list", call(function=["qmt.sector_stocks"])),
    job("function-unknown", call(function="qmt.nothing")),
    job("function-of-python", call(function="os.system", args=["true"])),
    job("function-of-the-other-queue", call(function="qmt.download")),
    job("function-long", call(function="x" * 900_000)),
    job("function-with-escapes", call(function="\x1b[2J\r\n\0")),
    job("instance-given", call(instance="x")),
    job("arguments-by-position", call(args=[1])),
    job("arguments-number", call(args=1)),
    job("keywords-null", b'["qmt.sector_stocks", null, [], null]'),
    job("keywords-list", b'["qmt.sector_stocks", null, [], ["params"]]'),
    job("keywords-none", b'["qmt.sector_stocks", null, [], {}]'),
    job("keywords-more", b'["qmt.sector_stocks", null, [], {"params": {}, "version": 2, "x": 1}]'),
    job("version-none", b'["qmt.sector_stocks", null, [], {"params": {}}]'),
    job("version-other", b'["qmt.sector_stocks", null, [], {"params": {}, "version": 1}]'),
    job("version-list", b'["qmt.sector_stocks", null, [], {"params": {}, "version": [2]}]'),
    job("version-true", b'["qmt.sector_stocks", null, [], {"params": {}, "version": true}]'),
    job("params-null", call(None)),
    job("params-list", call([1])),
    job("params-string", call("x")),
    job("params-empty", call({})),
    job("params-many", call({f"p{number}": 1 for number in range(60_000)})),
    job("params-unknown-long", call({**PARAMS, "x" * 900_000: 1})),
    job("sector-long", call({"sector": "x" * 900_000})),
    job("sector-empty", call({"sector": ""})),
    job("sector-number", call({"sector": 1})),
    job("sector-control-characters", call({"sector": "\x00\x1b"})),
    history("codes-none", codes=[]),
    history("codes-string", codes="600000.SH"),
    history("codes-numbers", codes=[1] * 300_000),
    history("codes-nested", codes=[[["600000.SH"]]]),
    history("codes-too-many", codes=[f"{number}.SH" for number in range(60_000)]),
    history("code-long", codes=["x" * 900_000]),
    history("code-unknown-with-nul", codes=["\x00.SH"]),
    history("period-unknown", period="x" * 900_000),
    history("period-list", period=[]),
    history("start-beyond", start_ms=10**30),
    history("start-before-all", start_ms=-(10**18)),
    history("start-fraction", start_ms=1.5),
    history("end-before-start", start_ms=2, end_ms=1),
    history("count-none", count=0),
    history("count-beyond", count=10**30),
    history("fields-unknown", fields=["x" * 900_000]),
    history("fields-too-many", fields=["close"] * 90_000),
    history("adjust-unknown", adjust="x" * 900_000),
    history("rows-beyond", auto_download_rows=10**30),
)  # fmt: skip

# -- fields that are not looked at: the job is done ------------------------------------------------

FIELDS: Final[Mapping[str, Mapping[Value, Value]]] = {
    "timeout-no-number": {"timeout": "abc"},
    "timeout-beyond": {"timeout": str(10**30)},
    "timeout-none": {"timeout": 0},
    "timeout-negative": {"timeout": -1},
    "ttl-no-number": {"ttl": "abc"},
    "result-ttl-none": {"result_ttl": 0},
    "result-ttl-no-number": {"result_ttl": "abc", "failure_ttl": "abc"},
    "created-no-date": {"created_at": "abc"},
    "enqueued-no-date": {"enqueued_at": b"\xff"},
    "started-no-date": {"started_at": "abc", "ended_at": "abc", "last_heartbeat": "abc"},
    "status-unknown": {"status": "abc"},
    "status-finished": {"status": "finished"},
    "status-not-utf8": {"status": b"\xff"},
    "origin-of-another": {"origin": "elsewhere"},
    "origin-not-utf8": {"origin": b"\xff"},
    "worker-name-not-utf8": {"worker_name": b"\xff"},
    "description-large": {"description": b"x" * FEW_MB},
    "meta-no-json": {"meta": b"\xff"},
    "traceback-bomb": {"exc_info": BOMB},
    "result-bomb": {"result": BOMB, "return_value": BOMB},
    "retries-no-number": {"retries_left": "abc", "number_of_retries": "abc"},
    "retries-many": {"retries_left": 10**6, "retry_intervals": "[0]"},
    "intervals-no-json": {"retry_intervals": "{", "repeat_intervals": "{"},
    "repeats-no-number": {"repeats_left": "abc"},
    "repeats-many": {"repeats_left": 10**6, "repeat_intervals": "[0]"},
    "rate-limit": {"rate_limit_key": "x", "rate_limit_concurrency": "abc"},
    "dependencies-no-json": {"dependency_ids": "{", "dependency_id": b"\xff"},
    "dependencies-missing": {"dependency_ids": '["nobody"]'},
    "group-not-utf8": {"group_id": b"\xff"},
    "callbacks": {"success_callback_name": "os.abort", "failure_callback_name": b"\xff"},
    "callback-timeouts": {"success_callback_timeout": "abc", "stopped_callback_timeout": "abc"},
    "webhooks-no-json": {"webhooks": "{"},
    "front-no-number": {"enqueue_at_front": "abc", "allow_dependency_failures": "abc"},
    "field-not-utf8": {b"\xff": "x"},
    "fields-many": {f"f{number}": "x" for number in range(20_000)},
}
ANSWERED: Final = (
    *(job(name, None, fields) for name, fields in FIELDS.items()),
    job("data-compressed", zlib.compress(call())),
    job("data-with-a-tail", zlib.compress(call()) + b"tail"),
    with_job("dependents-are-a-hash", lambda c: c.hset("rq:job:dependents-are-a-hash:dependents",
                                                       "x", "x")),
    with_job("results-are-a-set", lambda c: c.sadd("rq:results:results-are-a-set", "x"),
             role="worker"),
)  # fmt: skip

# -- bad ids ---------------------------------------------------------------------------------------

IDS: Final[Mapping[str, bytes]] = {
    "id-empty": b"",
    "id-not-utf8": b"\xff\xfe",
    "id-of-a-chunk": b"good:0",
    "id-of-progress": b"good:progress",
    "id-blank": b" ",
    "id-lines": b"a\r\nb",
    "id-nul": b"a\x00b",
    "id-escapes": b"\x1b[2J",
    "id-pattern": b"*",
    "id-path": b"../../x",
    "id-chinese": "作业".encode(),
    "id-long": b"x" * 65,
    "id-large": b"y" * FEW_MB,
    "id-missing": b"id-missing",
}
SHOWN: Final = {
    "id-empty": "b''",
    "id-not-utf8": r"b'\xff\xfe'",
    "id-of-a-chunk": "b'good:0'",
    "id-of-progress": "b'good:progress'",
    "id-blank": "b' '",
    "id-lines": r"b'a\r\nb'",
    "id-nul": r"b'a\x00b'",
    "id-escapes": r"b'\x1b[2J'",
    "id-pattern": "b'*'",
    "id-path": "b'../../x'",
    "id-chinese": r"b'\xe4\xbd\x9c\xe4\xb8\x9a'",
    "id-long": "b'" + "x" * 58 + "...",
    "id-large": "b'" + "y" * 58 + "...",
    "ids-missing": "missing0",
    "ids-empty": "b''",
}
"""How a list of dead jobs names what is not named as its content is."""


def pushed(name: str, raw: bytes) -> Content:
    return client(name, lambda connection: connection.rpush(QUEUE, raw))


def push_missing(connection: redis.Redis) -> None:
    for start in range(0, 5000, 1000):
        connection.rpush(QUEUE, *(f"missing{number}" for number in range(start, start + 1000)))


def enqueue_twice(connection: redis.Redis) -> None:
    """Both are there before a worker sees the first."""
    with connection.pipeline(transaction=True) as pipe:
        for sector in ("上证50", "沪深300"):
            fields = {"data": call({"sector": sector}), "origin": QUERY_QUEUE}
            pipe.hset("rq:job:id-twice", mapping=fields)
            pipe.rpush(QUEUE, "id-twice")
        pipe.execute()


BESIDE: Final = (
    with_job("progress-is-a-string", lambda c: c.set("qmt:job:progress-is-a-string:progress", "x")),
    with_job("progress-is-there", lambda c: c.xadd("qmt:job:progress-is-there:progress",
                                                   {"p": '{"state": "done"}'})),
    with_job("progress-is-no-json", lambda c: c.xadd("qmt:job:progress-is-no-json:progress",
                                                     {"x": b"\xff"})),
    with_job("cancel-is-a-stream", lambda c: c.xadd("qmt:job:cancel-is-a-stream:cancel",
                                                    {"x": "x"})),
    with_job("claim-is-there", lambda c: c.set("qmt:claim:claim-is-there", b"\xff"), role="worker"),
    with_job("executions-are-a-list", lambda c: c.rpush("rq:executions:executions-are-a-list", "x"),
             role="worker"),
    client("id-twice", enqueue_twice),
    client("ids-missing", push_missing),
    client("ids-empty", lambda c: c.rpush(QUEUE, *[b""] * 1000)),
)  # fmt: skip

TOLD: Final = (
    *DATA,
    *(pushed(name, raw) for name, raw in IDS.items()),
    *BESIDE,
    *(job_of_type(kind) for kind in ("string", "list", "set", "sorted-set", "stream")),
)
"""Each has to be named, by the list of dead jobs or by its progress."""

# -- RQ's own keys ---------------------------------------------------------------------------------

BOOKS: Final[Mapping[str, str]] = {
    f"{key.replace(':', '-')}-is-{kind}": key
    for key, kind in (
        (QUEUE, "string"),
        (QUEUE, "stream"),
        (INTERMEDIATE, "hash"),
        (WIP, "string"),
        (f"rq:finished:{QUERY_QUEUE}", "list"),
        (f"rq:failed:{QUERY_QUEUE}", "set"),
        ("rq:queues", "sorted-set"),
        ("rq:workers", "string"),
        (f"rq:workers:{QUERY_QUEUE}", "hash"),
    )
}
"""Contents that are told by the name of their key."""
_OF_TYPES: Final = tuple(of_type(key, name.rpartition("-is-")[2]) for name, key in BOOKS.items())
KEYS: Final = (_OF_TYPES[:1], _OF_TYPES[1:])
"""Those that can be there together."""

SILENT: Final = (
    worker("suspended", lambda c: c.set("rq:suspended", 1)),
    worker("suspended-hash", lambda c: (c.delete("rq:suspended"), c.hset("rq:suspended", "x", 1))),
    worker("maintenance-lock", lambda c: c.rpush(f"rq:clean_registries:{QUERY_QUEUE}", "x")),
    worker("rate-limits", lambda c: c.sadd("rq:rl-keys", "x", b"\xff")),
    worker("groups", lambda c: c.sadd("rq:groups", b"\xff")),
    worker("ready-to-enqueue", lambda c: c.zadd(f"rq:ready:{QUERY_QUEUE}", {b"\xff": 1})),
    worker("deferred-is-a-string", lambda c: c.set(f"rq:deferred:{QUERY_QUEUE}", "x")),
    client("queues-of-any-name", lambda c: c.sadd("rq:queues", b"\xff", "rq:queue:")),
)
"""Nobody looks at them."""
SERVED: Final = (*TOLD, *ANSWERED, *_OF_TYPES, *SILENT)

# -- what a worker meets when it starts ------------------------------------------------------------

AT_START: Final = (
    worker("worker-pid-no-number", lambda c: (
        c.hset("rq:worker:ghost", mapping={"pid": "abc", "hostname": b"\xff"}),
        c.sadd("rq:workers", "rq:worker:ghost"),
        c.sadd(f"rq:workers:{QUERY_QUEUE}", "rq:worker:ghost"))),
    worker("worker-is-a-string", lambda c: (
        c.set("rq:worker:text", "x"), c.sadd(f"rq:workers:{QUERY_QUEUE}", "rq:worker:text"))),
    worker("workers-of-any-name", lambda c: c.sadd(
        f"rq:workers:{QUERY_QUEUE}", b"\xff", "", "qmt:status", "x" * FEW_MB)),
    worker("workers-many", lambda c: c.sadd("rq:workers", *map(str, range(20_000)))),
    worker("taken-empty", lambda c: c.rpush(INTERMEDIATE, "")),
    worker("taken-not-utf8", lambda c: c.rpush(INTERMEDIATE, b"\xff\xff")),
    worker("taken-missing", lambda c: c.rpush(INTERMEDIATE, "taken-missing")),
    worker("taken-bad", lambda c: (c.hset("rq:job:taken-bad", "data", "x"),
                                   c.rpush(INTERMEDIATE, "taken-bad"))),
    worker("begun-no-entry", lambda c: c.zadd(WIP, {"no-execution": 1})),
    worker("begun-not-utf8", lambda c: c.zadd(WIP, {b"\xff:\xff": 1})),
    worker("begun-long-ago", lambda c: c.zadd(WIP, {"begun-long-ago:x": 1})),
    worker("begun-for-ever", lambda c: c.zadd(WIP, {"begun-for-ever:x": float("inf")})),
    worker("begun-claim-no-json", lambda c: (c.set("qmt:claim:begun-claim-no-json", b"\xff"),
                                             c.zadd(WIP, {"begun-claim-no-json:x": 1}))),
    worker("begun-job-is-a-string", lambda c: (c.set("rq:job:begun-job-is-a-string", "x"),
                                               c.set("qmt:claim:begun-job-is-a-string", "{}"),
                                               c.zadd(WIP, {"begun-job-is-a-string:x": 1}))),
)  # fmt: skip
"""Written before it is there."""
SHOWN_AT_START: Final = {
    "workers-many": "rq:workers",
    "taken-empty": "b''",
    "taken-not-utf8": r"b'\xff\xff'",
    "taken-missing": "taken-missing",
    "taken-bad": "taken-bad",
    "begun-no-entry": "b'no-execution'",
    "begun-not-utf8": r"b'\xff:\xff'",
    "begun-claim-no-json": "begun-claim-no-json",
    "begun-job-is-a-string": "begun-job-is-a-string",
}
"""Those that are told, and how: by the list of dead jobs, or as the job's progress."""

CONTENTS: Final = (*AT_START, *SERVED)
