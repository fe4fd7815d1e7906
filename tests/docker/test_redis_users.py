"""Each role of Redis tries every command that the server knows, on every kind of key.

Two judges that know nothing of `redis_users`: the server, by ACL DRYRUN and by the command itself,
and the tables below, written by hand. What a command does to a key is what the server says of it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import redis
from docker_servers import DOCKER, Connect, start_server
from redis_servers import MatrixServer, chosen_servers

from qmt_protocol.redis_users import FILES, FUNCTIONS, LIBRARY, acl_file

MARKET = "600519.SH"
KEYS = {
    "streams": {
        "stream": [f"{{qmt:SH}}:tick:{MARKET}", f"{{qmt:SH}}:bar:1m:{MARKET}", "{qmt:SH}:feed"],
        "market": ["{qmt:SH}:latest", "{qmt:SH}:lease", "{qmt:SH}:epoch", "{qmt:SH}:acked"],
        "archived": ["{qmt:SH}:archived"],
        "schema": ["qmt:schema"],
        "events": ["qmt:events", "replay-20261120:events"],
        "more events": ["qmt:events:producer", "qmt:events:refused"],
        "archive events": ["qmt:events:archive"],
        "refused": ["qmt:refused"],
        "alive": ["qmt:status", "qmt:seen"],
        "gateways alive": ["qmt:status:gateway", "qmt:seen:gateway"],
        "archive lease": ["qmt:archive"],
        "replay": ["qmt:replay", "replay-20261120:replay"],
        "replayed": [f"{{replay-20261120:SH}}:tick:{MARKET}"],
        "foreign": ["rq:job:x", "somebody:else", "qmt2:events", "{qmt2:SH}:feed", "qmt"],
    },
    "jobs": {
        "job": ["rq:job:x"],
        "queues": ["rq:queues"],
        "queue": ["rq:queue:qmt-query", "rq:queue:qmt-download"],
        "rq": ["rq:queue:other", "rq:worker:x", "rq:workers", "rq:suspended", "rq:results:x"],
        "progress": ["qmt:job:x:progress", "qmt:job:x:cancel"],
        "claim": ["qmt:claim:x", "replay-20261120:claim:x"],
        "dead": ["qmt:jobs:dead"],
        "result": ["qmt:result:x", "qmt:result:x:0"],
        "foreign": ["{qmt:SH}:feed", "qmt:status", "somebody:else", "qmt2:result:x"],
    },
}
"""Every kind of key on each server, and some that are none of ours."""

READ, WRITE, BOTH = "read", "write", "read write"
PUBLISHED = {kind: READ for kind in KEYS["streams"] if kind != "foreign"}
ENQUEUES = {"job": BOTH, "queues": WRITE, "queue": BOTH, "progress": BOTH, "result": READ}
MAY = {
    "streams": {
        "producer": {
            **dict.fromkeys(("stream", "market", "archived", "replayed", "schema"), BOTH),
            **dict.fromkeys(("refused", "alive", "gateways alive", "replay"), BOTH),
            **dict.fromkeys(("events", "more events"), WRITE),
        },
        "worker": {"alive": WRITE},
        "gateway": {**PUBLISHED, "gateways alive": BOTH},
        "archive": {
            **PUBLISHED,
            **dict.fromkeys(("archived", "archive events", "archive lease", "alive"), BOTH),
        },
        "client": PUBLISHED,
        "reader": PUBLISHED,
    },
    "jobs": {
        "worker": {
            **dict.fromkeys(("job", "queues", "queue", "rq"), BOTH),
            **dict.fromkeys(("progress", "result", "claim"), BOTH),
            "dead": WRITE,
        },
        "gateway": ENQUEUES,
        "archive": ENQUEUES,
        "client": ENQUEUES,
    },
}
"""What a role may do to a kind of key; what is not named: nothing."""

KEYLESS = {
    *("ping", "hello", "select", "client|setinfo", "client|setname", "client|info", "time"),
    *("multi", "exec", "discard", "unwatch", "scan", "info", "function|list"),
}
"""What some role may call that takes no key, and can neither change nor stop anything."""
ANYBODY = {"auth", "quit", "reset"}
"""What Redis lets everybody call."""

SHAPES = {
    "xread": ["STREAMS", "KEY", "0"],
    "fcall": [f"{LIBRARY}_release", "1", "KEY", "x"],
    "xadd": ["KEY", "*", "f", "v"],
    "xtrim": ["KEY", "MAXLEN", "~", "1000000"],
    "xrange": ["KEY", "-", "+", "COUNT", "1"],
    "xrevrange": ["KEY", "+", "-", "COUNT", "1"],
    "zrange": ["KEY", "0", "-1"],
    "zrangebyscore": ["KEY", "0", "1"],
    "zrevrange": ["KEY", "0", "1"],
    "blmove": ["KEY", "KEY", "LEFT", "RIGHT", "0.01"],
    "lmove": ["KEY", "KEY", "LEFT", "RIGHT"],
    "blpop": ["KEY", "0.01"],
    "rename": ["KEY", "KEY"],
    "memory|usage": ["KEY"],
    "xinfo|stream": ["KEY"],
    "watch": ["KEY"],
}
"""Arguments of commands whose keys are not simply their first ones."""


CHUNK = 500


class Command(NamedTuple):
    name: str
    arity: int
    access: set[str]
    """What it does to its keys, by the server's own flags; empty where it has none."""

    @property
    def words(self) -> list[str]:
        return self.name.upper().split("|")

    def call(self, key: str) -> list[str]:
        """Return the command with that key and harmless arguments."""
        if self.name in SHAPES:
            return [*self.words, *(key if one == "KEY" else one for one in SHAPES[self.name])]
        filled = abs(self.arity) - len(self.words)
        return [*self.words, *([key] if filled > 0 else []), *["1"] * (filled - 1)]


class Server(NamedTuple):
    kind: str
    connect: Connect
    commands: list[Command]
    label: str


def access_of(info: list[Any]) -> set[str]:
    found: set[str] = set()
    for spec in info[8]:
        flags = {str(one).upper() for one in dict(zip(spec[::2], spec[1::2], strict=True))["flags"]}
        found |= {READ} if flags & {"RO", "ACCESS"} else set()
        found |= {WRITE} if flags & {"UPDATE", "INSERT", "DELETE"} else set()
    return found


def commands_of(admin: redis.Redis) -> list[Command]:
    admin.response_callbacks.clear()
    plain: list[Any] = []
    for info in admin.execute_command("COMMAND"):
        plain += info[9] or [info]
    return [Command(one[0].lower(), one[1], access_of(one)) for one in plain]


@pytest.fixture(scope="module", params=chosen_servers(), ids=lambda one: one.name)
def matrix_server(request: pytest.FixtureRequest) -> MatrixServer:
    server: MatrixServer = request.param
    return server


@pytest.fixture(scope="module", params=["streams", "jobs"])
def server(
    request: pytest.FixtureRequest, matrix_server: MatrixServer, tmp_path_factory: Any
) -> Iterator[Server]:
    folder: Path = tmp_path_factory.mktemp("users") / request.param
    process, connect = start_server(
        request.param,
        folder,
        QMT_REDIS_BINARY=str(matrix_server.path),
        QMT_ADMIN_PASSWORD="secret-of-admin",
    )
    with plain(connect, "admin") as admin:
        yield Server(request.param, connect, commands_of(admin), matrix_server.version)
    process.kill()
    process.wait(10)


def plain(connect: Connect, role: str) -> redis.Redis:
    """A connection of a role whose answers come as the server gives them."""
    connection = connect(role)
    told = connection.connection_pool.connection_kwargs
    made = redis.Redis(
        **{key: told[key] for key in ("port", "username", "password")},
        socket_timeout=60,
        decode_responses=True,
        protocol=2,
    )
    connection.close()
    return made


def dry_run(role: str, call: list[str]) -> list[str]:
    return ["ACL", "DRYRUN", role, *call]


def answers_of(connection: redis.Redis, calls: list[list[str]]) -> list[Any]:
    """Send calls as they are; return the answers, errors among them."""
    found: list[Any] = []
    wire = connection.connection_pool.get_connection()
    try:
        for at in range(0, len(calls), CHUNK):
            part = calls[at : at + CHUNK]
            wire.send_packed_command(wire.pack_commands(part))
            for _ in part:
                try:
                    found.append(wire.read_response(disconnect_on_error=False))
                except redis.ResponseError as error:
                    found.append(error)
    finally:
        connection.connection_pool.release(wire)
    return found


def tries(server: Server) -> Iterator[tuple[str, Command, str, str]]:
    """Yield role, command, kind of key and key."""
    for role in MAY[server.kind]:
        for command in server.commands:
            if command.name in ANYBODY:
                continue
            if not command.access:
                yield role, command, "", "x"
                continue
            for kind, keys in KEYS[server.kind].items():
                for key in keys:
                    yield role, command, kind, key


def test_every_role_tries_every_command_on_every_key(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = list(tries(server))
    with plain(server.connect, "admin") as admin:
        answers = answers_of(admin, [dry_run(role, one.call(key)) for role, one, _, key in asked])
    allowed = [one for one, answer in zip(asked, answers, strict=True) if answer == "OK"]
    wrong = []
    for role, command, kind, key in allowed:
        may = MAY[server.kind][role].get(kind, "")
        if not command.access and command.name not in KEYLESS:
            wrong.append(f"{role} may call {command.name}")
        wrong += [
            f"{role} may {one} {key} by {command.name}" for one in command.access if one not in may
        ]
    assert wrong == []
    assert len({role for role, *_ in allowed}) == len(MAY[server.kind])

    count = Counter(role for role, *_ in asked)
    granted = Counter(role for role, *_ in allowed)
    with capsys.disabled():
        for role in MAY[server.kind]:
            names = sorted({command.name for one, command, *_ in allowed if one == role})
            print(
                f"\n{server.label} {server.kind} {role}: {count[role]} tried, "
                f"{count[role] - granted[role]} refused, {granted[role]} allowed "
                f"({len(names)} commands)",
                end="",
            )


def test_what_is_refused_is_refused_by_hand_too(server: Server) -> None:
    """The command itself, by the role's own user: DRYRUN must have said the same."""
    by_role: dict[str, list[tuple[Command, str]]] = {}
    for role, command, _, key in tries(server):
        by_role.setdefault(role, []).append((command, key))
    for role, asked in by_role.items():
        asked = [one for one in asked if one[0].name not in {"multi", "exec", "discard"}]
        calls = [command.call(key) for command, key in asked]
        with (
            plain(server.connect, "admin") as admin,
            plain(server.connect, role) as connection,
        ):
            told = answers_of(admin, [dry_run(role, call) for call in calls])
            done = answers_of(connection, calls)
            differing = [
                (role, *call, said, str(answer))
                for call, said, answer in zip(calls, told, done, strict=True)
                if (said != "OK") != is_refusal(answer)
            ]
        assert differing == []


def is_refusal(answer: Any) -> bool:
    if isinstance(answer, redis.exceptions.NoPermissionError):
        return True
    # MODULE and DEBUG are off for everybody before rights are looked at.
    return isinstance(answer, redis.ResponseError) and "command not allowed" in str(answer)


ENDLESS = "while true do end"


def test_no_role_can_run_a_script_of_its_own(server: Server) -> None:
    """An endless script blocks the server; one that is debugged or broken ends some."""
    began = time.monotonic()
    for role in MAY[server.kind]:
        with plain(server.connect, role) as connection:
            for words in (
                ("EVAL", ENDLESS, "0"),
                ("EVAL_RO", ENDLESS, "0"),
                ("EVALSHA", "0" * 40, "0"),
                ("SCRIPT", "LOAD", ENDLESS),
                ("SCRIPT", "DEBUG", "YES"),
                (
                    "FUNCTION",
                    "LOAD",
                    f"#!lua name=x\nredis.register_function('x', function() {ENDLESS} end)",
                ),
                ("FUNCTION", "DELETE", LIBRARY),
                ("FUNCTION", "FLUSH"),
                ("FCALL", "x", "0"),
            ):
                with pytest.raises(redis.exceptions.NoPermissionError):
                    connection.execute_command(*words)
            assert connection.ping()
    assert time.monotonic() - began < 60


def test_the_producer_calls_the_functions_and_nobody_else_does(server: Server) -> None:
    with plain(server.connect, "admin") as admin:
        for role in MAY[server.kind]:
            for name in FUNCTIONS:
                told = admin.execute_command(
                    "ACL", "DRYRUN", role, "FCALL", f"{LIBRARY}_{name}", "1", "{qmt:SH}:lease", "me"
                )
                assert (told == "OK") == ((server.kind, role) == ("streams", "producer")), (
                    role,
                    name,
                )


CHANNELS = ("qmt:demand", "replay-20261120:demand", "qmt:other", "qmt2:demand", "somebody")
SAYS = {"gateway": "PUBLISH", "client": "PUBLISH", "producer": "SUBSCRIBE"}


def test_wants_are_said_and_heard_on_their_channel_alone(server: Server) -> None:
    found = {}
    words = ("PUBLISH", "SPUBLISH", "SUBSCRIBE", "PSUBSCRIBE", "SSUBSCRIBE")
    with plain(server.connect, "admin") as admin:
        for role in MAY[server.kind]:
            calls = [(word, channel) for word in words for channel in (*CHANNELS, "*")]
            tried = [[*call, "x"] if "PUBLISH" in call[0] else [*call] for call in calls]
            told = answers_of(admin, [dry_run(role, one) for one in tried])
            found[role] = {one for one, said in zip(calls, told, strict=True) if said == "OK"}
    says = SAYS if server.kind == "streams" else {}
    assert found == {
        role: {(says[role], channel) for channel in CHANNELS[:2]} if role in says else set()
        for role in MAY[server.kind]
    }


def test_an_endless_function_of_the_admin_can_be_ended_by_the_admin(server: Server) -> None:
    """What an admin breaks an admin mends: SCRIPT KILL or FUNCTION KILL beside the blocked call."""
    with plain(server.connect, "admin") as first, plain(server.connect, "admin") as second:
        first.execute_command("CONFIG", "SET", "busy-reply-threshold", "50")
        sent = first.connection_pool.get_connection()
        try:
            sent.send_command("EVAL", ENDLESS, "0")
            deadline = time.monotonic() + 60
            while True:
                try:
                    if second.execute_command("SCRIPT", "KILL") == "OK":
                        break
                except redis.ResponseError:
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
            with pytest.raises(redis.ResponseError):
                sent.read_response()
        finally:
            first.connection_pool.release(sent)
        assert second.ping()


@pytest.mark.parametrize(("kind", "dialect", "name"), FILES)
def test_the_files_are_those_of_the_description(kind: Any, dialect: Any, name: str) -> None:
    written = (DOCKER / "redis" / name).read_text("utf-8")
    assert written == acl_file(kind, dialect=dialect), "run scripts/redis-acl"


def test_another_prefix_has_the_same_users() -> None:
    other = acl_file("streams", prefix="mine")
    assert "{mine:*" in other
    assert "qmt:" not in other
    assert other.count("\nuser ") == acl_file("streams").count("\nuser ")
