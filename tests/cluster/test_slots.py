"""What is done as one step has its keys in one slot: a Redis Cluster refuses the others.

Two tests hold this together. One reads the source: a transaction, or a command of several keys, may
stand only where it is listed here with the reason why its keys are in one slot. The other records
real processes at work and lets the keys speak.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from slot_audit import Recording, Step
from waiting import wait_for

from qmt_client import QMTClient, Tick
from qmt_protocol.codes import market_of
from qmt_protocol.redis_users import LIBRARY
from qmt_simulator.process import TerminalProcess
from qmt_standalone.redis_server import RedisServer

ROOT = Path(__file__).resolve().parent.parent.parent

ONE_MARKET = "keys of one market, which are in one slot by their hash tag"
ONE_KEY = "one key"
WAIT = "feeds of several markets and the events: a Cluster refuses it, see docs/wire.md"
CALLERS = "what is put in there, by those who are listed"
JOBS = "the jobs server, which is no Cluster: RQ's queues do not work there"
STEPS = {
    "archive/qmt_archive/locks.py _if_ours": ONE_KEY,
    "reading/qmt_reading/live/feed.py _look": ONE_MARKET,
    "reading/qmt_reading/live/feed.py _wait": WAIT,
    "reading/qmt_reading/live/feed.py snapshot": ONE_MARKET,
    "reading/qmt_reading/redis_transport.py _newest_progress": ONE_KEY,
    "reading/qmt_reading/live/transactions.py begin": CALLERS,
    "reading/qmt_reading/live/transactions.py execute": CALLERS,
    "producer/qmt_producer/functions.py put": ONE_MARKET,
    "worker/qmt_worker/books.py _rename": JOBS,
    "worker/qmt_worker/intake.py _skip": JOBS,
    "worker/qmt_worker/intake.py _without_jobs": JOBS,
    "worker/qmt_worker/intake.py bury": JOBS,
    "worker/qmt_worker/intake.py take": JOBS,
    "worker/qmt_worker/orphans.py _look_at": JOBS,
    "worker/qmt_worker/orphans.py put_back_taken": JOBS,
    "worker/qmt_worker/results.py _add": JOBS,
    "worker/qmt_worker/results.py _end": JOBS,
    "worker/qmt_worker/results.py claim": JOBS,
    "worker/qmt_worker/results.py done": JOBS,
    "worker/qmt_worker/results.py failed": JOBS,
    "worker/qmt_worker/service.py execute_job": JOBS,
}
"""Where several commands, or one of several keys, are one step, and why that may be."""

SEVERAL_KEYS = {
    *(
        "bitop",
        "blmove",
        "blmpop",
        "blpop",
        "brpop",
        "brpoplpush",
        "bzmpop",
        "bzpopmax",
        "bzpopmin",
    ),
    *("eval", "eval_ro", "evalsha", "evalsha_ro", "execute_command", "fcall", "fcall_ro"),
    *("lmove", "lmpop", "mget", "mset", "msetnx", "pfcount", "pfmerge", "register_script"),
    *("renamenx", "rpoplpush", "sdiff", "sdiffstore", "sinter", "sinterstore", "smove", "sunion"),
    *("sunionstore", "xread", "xreadgroup", "zdiff", "zdiffstore", "zinter", "zinterstore"),
    *("zmpop", "zrangestore", "zunion", "zunionstore"),
}
"""Calls of redis-py that name several keys, or may."""
ANY_NUMBER = {"copy", "delete", "exists", "rename", "touch", "unlink", "watch"}
"""Calls that do with several arguments; others have these names too."""


def is_step(call: ast.Call) -> bool:
    """Whether a call is one of redis-py's that makes a step of several keys or commands."""
    if isinstance(call.func, ast.Name):
        return call.func.id == "Transactions"
    if not isinstance(call.func, ast.Attribute):
        return False
    name = call.func.attr
    if name == "pipeline":
        given = {one.arg: one.value for one in call.keywords}
        transaction = given.get("transaction")
        return not (isinstance(transaction, ast.Constant) and transaction.value is False)
    several = len(call.args) > 1 or any(isinstance(one, ast.Starred) for one in call.args)
    return name in SEVERAL_KEYS or (name in ANY_NUMBER and several)


def steps_in(path: Path) -> Iterator[str]:
    """Yield the innermost function around each step of a file."""

    def look(node: ast.AST, inside: str) -> Iterator[str]:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            inside = node.name
        if isinstance(node, ast.Call) and is_step(node):
            yield f"{path.relative_to(ROOT).as_posix()} {inside}"
        for child in ast.iter_child_nodes(node):
            yield from look(child, inside)

    yield from look(ast.parse(path.read_text("utf-8")), "")


def test_every_step_of_several_keys_is_listed_with_its_reason() -> None:
    found = {one for path in ROOT.glob("*/qmt_*/**/*.py") for one in steps_in(path)}
    assert found == set(STEPS)


@contextmanager
def process(module: str, *flags: str, **env: str) -> Iterator[str]:
    """Run one role; yields the first line that it prints, if it does."""
    child = subprocess.Popen(
        [sys.executable, "-m", module, *flags, "--exit-with-stdin"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "TZ": "CST-8", "QMT_LOG_LEVEL": "error", **env},
    )
    assert child.stdin is not None
    assert child.stdout is not None
    with child:
        try:
            yield child.stdout.readline().decode() if module == "qmt_gateway" else ""
        finally:
            child.stdin.close()
            try:
                child.wait(60)
            finally:
                child.kill()


def at_work(folder: Path, streams: str, jobs: str) -> None:
    """Run each role over the servers, and do with them what readers do."""
    with ExitStack() as stack:
        flags = ("--start", "2026-11-20 10:30:00", "--real-hours")
        terminal = stack.enter_context(TerminalProcess(*flags))
        env = {
            "QMT_STREAMS_URL": streams,
            "QMT_JOBS_URL": jobs,
            "QMT_TERMINAL_PORT": str(terminal.port),
            "QMT_NATIVE_MODULE": "qmt_simulator.native",
            "QMT_RING": str(folder / "ring"),
            "QMT_ARCHIVE_URL": str(folder / "archive"),
            "QMT_ARCHIVE_FLUSH_S": "0.3",
        }
        stack.enter_context(process("qmt_producer", **env))
        stack.enter_context(process("qmt_worker", **env))
        stack.enter_context(process("qmt_archive", "run", **env))
        ready = stack.enter_context(process("qmt_gateway", "--port", "0", **env))
        over_redis = stack.enter_context(QMTClient(streams, jobs_url=jobs))
        over_gateway = stack.enter_context(QMTClient(json.loads(ready)["url"]))

        def roles() -> set[str]:
            return {one.beat.role for one in over_redis.status().processes if one.alive}

        wait_for(lambda: roles() >= {"producer", "worker", "archive"}, "all are heard of")
        wait_for(lambda: over_redis.latest(markets=["SH"]), "SH is published")
        wait_for(lambda: over_redis.latest(markets=["SZ"]), "SZ is published")
        assert len(over_redis.history("600519.SH", count=3)) == 3
        for client in (over_redis, over_gateway):
            with client.ticks(markets=["SH", "SZ"], snapshot=True) as live:
                wait_for_markets(live)
                position = live.position
            with client.ticks(markets=["SH", "SZ"], position=position) as live:
                assert next(iter(live))
            with client.bars(["600519.SH", "000001.SZ"]) as bars:
                assert next(iter(bars))


def wait_for_markets(live: Iterable[Tick]) -> None:
    """Read until there were ticks of both markets."""
    left = {"SH", "SZ"}
    for tick in live:
        left.discard(market_of(tick.code))
        if not left:
            return


def test_what_is_one_step_lies_in_one_slot(tmp_path: Path) -> None:
    with ExitStack() as stack:
        streams, jobs = (RedisServer(tmp_path / name, aof=False) for name in ("streams", "jobs"))
        for server in (streams, jobs):
            server.start()
            stack.callback(server.stop)
        recording = Recording(streams.url)
        stack.callback(recording.close)
        with recording:
            at_work(tmp_path, streams.url, jobs.url)
        steps, sent = recording.steps(), recording.sent()
    apart = [one for one in steps if len(one.slots) > 1 and not is_wait(one)]
    assert not apart, "\n".join(sorted({str(one) for one in apart}))

    seen = {one.commands for one in steps if one.is_transaction}
    assert ("GET", "GET", "HGETALL") in seen, "a snapshot"
    assert ("GET", "XRANGE") in seen, "a look at one market's feed"
    called = {one.commands[0] for one in steps if not one.is_transaction}
    functions = ("append", "file", "lease", "complete", "release")
    assert called >= {f"FCALL {LIBRARY}_{name}" for name in functions}

    # A process is in `seen` before it is in `status`, and who tidies reads `status` first: so what
    # is in `status` alone is left over, without a transaction.
    hset, zadd = (b"HSET", b"qmt:status"), (b"ZADD", b"qmt:seen")
    hkeys, zrange = (b"HKEYS", b"qmt:status"), (b"ZRANGE", b"qmt:seen")
    heads = [[one[:2] for one in commands] for commands in sent.values()]
    for some in heads:
        for at, head in enumerate(some):
            assert head != hset or some[at - 1] == zadd
            assert head != hkeys or some[at + 1] == zrange
    assert {hset, zadd, hkeys, zrange} <= {head for some in heads for head in some}


def is_wait(step: Step) -> bool:
    """Whether it is the one read over several markets: of nothing but feeds and events."""
    (keys, *others) = step.keys
    return (
        step.commands == ("XREAD",)
        and not others
        and all(key == "qmt:events" or key.endswith("}:feed") for key in keys)
    )
