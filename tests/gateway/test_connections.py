"""Connections of nobody: how many there may be, for how long, and who has room all the same."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from access_rig import (
    add_key,
    address_of,
    answer_to,
    ask,
    dialled,
    is_open,
    live,
    next_of,
    read_answer,
)
from gateway_bench import GatewayProcess, Worker, gateway
from waiting import WITHIN_S, wait_for
from websockets.frames import CloseCode, Frame, Opcode

from qmt_gateway.rare_log import Rarely
from qmt_standalone.redis_server import RedisServer

MOST = 50
STATUS = "/api/v1/status"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the gateways have their file of keys."""
    return tmp_path_factory.mktemp("connections")


@pytest.fixture(scope="module")
def key(folder: Path) -> str:
    """A key that may have as many connections as it likes."""
    return add_key(folder, "one", "--scope", "download", "--limit", "connections=0")


@pytest.fixture(scope="module")
def crowded(
    streams_server: RedisServer, jobs_server: RedisServer, folder: Path, key: str
) -> Iterator[GatewayProcess]:
    """One that waits long, and for few."""
    urls = (streams_server.url, jobs_server.url)
    with gateway(
        *urls, folder, unauthenticated_connections=str(MOST), head_timeout_s="600"
    ) as process:
        yield process


@pytest.fixture(scope="module")
def hasty(
    streams_server: RedisServer, jobs_server: RedisServer, folder: Path, key: str
) -> Iterator[GatewayProcess]:
    """One that waits for nobody."""
    urls = (streams_server.url, jobs_server.url)
    with gateway(*urls, folder, head_timeout_s="0.5", body_timeout_s="0.5") as process:
        yield process


def open_of(clients: list[socket.socket]) -> list[int]:
    return [number for number, client in enumerate(clients) if is_open(client)]


def test_of_two_hundred_that_say_nothing_the_newest_stay_and_keys_have_room(
    crowded: GatewayProcess, key: str
) -> None:
    with live(crowded, key) as before:
        next_of(before, "welcome")
        with dialled(crowded, 200) as clients:
            wait_for(lambda: len(open_of(clients)) <= MOST, "the others are closed")
            assert ask(crowded, STATUS, key).status_code == 200
            with live(crowded, key) as after:
                next_of(after, "welcome")
                # Each took the place of the oldest for as long as it had not shown its key.
                left = open_of(clients)
                assert MOST - 3 <= len(left) <= MOST
                assert left == list(range(200 - len(left), 200))
            before.ping().wait(WITHIN_S)
            assert ask(crowded, STATUS).status_code == 401
    assert crowded.log().count("ended to make room") == 1


def test_who_asks_in_vain_does_not_keep_a_place(crowded: GatewayProcess, key: str) -> None:
    """Connections with an answer that nobody reads, and refused WebSockets, count as well."""
    request = b"GET /static-offline-docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\n\r\n"
    refused = (
        b"GET /ws/v1?api_key=wrong HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n"
        b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )
    with dialled(crowded, 70) as greedy:
        for client in greedy:
            with suppress(OSError):  # its place may be taken already
                client.sendall(request)
        with dialled(crowded, 70) as wrong:
            for client in wrong:
                with suppress(OSError):
                    client.sendall(refused)
            assert ask(crowded, STATUS, key).status_code == 200
            with live(crowded, key) as client:
                next_of(client, "welcome")


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"GET / HT",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n",  # answered, and then silent
        b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET /hea",
    ],
)
def test_who_does_not_go_on_is_closed(hasty: GatewayProcess, said: bytes) -> None:
    with dialled(hasty, 1) as (client,):
        client.sendall(said)
        while client.recv(65_536):  # what it was told, then the end
            pass


def trickled(client: socket.socket, byte: bytes) -> None:
    """Send a byte now and then until the other side ends the connection."""
    client.settimeout(0.05)

    def ended() -> bool:
        try:
            client.sendall(byte)
            return client.recv(65_536) == b""
        except TimeoutError:
            return False
        except OSError:
            return True

    wait_for(ended, "the connection is ended")


@pytest.mark.parametrize(
    "said",
    [
        b"GET /healthz HTTP/1.1\r\nX-Slow: ",
        # A body behind an answer that was there before it.
        b"POST /api/download HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n",
    ],
)
def test_who_goes_on_a_byte_at_a_time_is_closed_as_well(hasty: GatewayProcess, said: bytes) -> None:
    with dialled(hasty, 1) as (client,):
        client.sendall(said)
        trickled(client, b"x")


@pytest.mark.parametrize("how", ["Content-Length: 100000", "Transfer-Encoding: chunked"])
def test_a_body_that_does_not_come_is_told_so(
    hasty: GatewayProcess, key: str, worker: Worker, how: str
) -> None:
    head = (
        f"POST /api/download HTTP/1.1\r\nHost: x\r\nX-API-Key: {key}\r\n"
        f"Content-Type: application/json\r\n{how}\r\n\r\n"
    )
    with dialled(hasty, 1) as (client,):
        client.sendall(head.encode())
        status, told = read_answer(client)
        assert (status, told["error"]) == (408, "too-slow")
        assert client.recv(1) == b""
    assert worker.asked == []


def test_a_body_that_grows_beyond_the_bound_is_told_so(
    crowded: GatewayProcess, key: str, worker: Worker
) -> None:
    chunks = (b" " * 100_000 for _ in range(20))
    kind = {"Content-Type": "application/json"}
    answer = ask(crowded, "/api/download", key, "POST", content=chunks, headers=kind)
    assert (answer.status_code, answer.json()["error"]) == (413, "too-large")
    assert worker.asked == []


@pytest.mark.skipif(os.name != "posix", reason="limits of POSIX")
@pytest.mark.parametrize(
    ("descriptors", "told"),
    [(14, "no descriptors left for connections"), (40, "connection refused: too many")],
)
def test_without_room_it_waits_and_says_so_once(
    streams_server: RedisServer,
    jobs_server: RedisServer,
    folder: Path,
    key: str,
    descriptors: int,
    told: str,
) -> None:
    urls = (streams_server.url, jobs_server.url)
    upgrade = (
        f"GET /ws/v1 HTTP/1.1\r\nHost: x\r\nX-API-Key: {key}\r\nConnection: Upgrade\r\n"
        "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    ).encode()
    with gateway(*urls, folder, descriptors=descriptors) as process:

        def is_served() -> bool:
            try:
                return ask(process, STATUS, key).status_code == 200
            except httpx.TransportError:
                return False  # there is no room yet

        with ExitStack() as clients:

            def one_more_is_too_many() -> bool:
                (client,) = clients.enter_context(dialled(process, 1))
                with suppress(OSError):  # it may be refused already
                    client.sendall(upgrade)
                return told in process.log()

            wait_for(one_more_is_too_many, "the gateway says that it has no room")
            with dialled(process, 200):
                pass
        wait_for(is_served, "there is room again")
        log = process.log()
    assert log.count(told) == 1
    assert "Traceback" not in log
    assert len(log) < 20_000


def test_who_is_refused_may_still_be_sending(crowded: GatewayProcess, key: str) -> None:
    """A socket closed over bytes that nobody read is reset, and with it what it was told."""
    hello = (
        f"GET /ws/v1 HTTP/1.1\r\nHost: x\r\nX-API-Key: {key}\r\nConnection: Upgrade\r\n"
        "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )
    refused = b"\x88\x02" + CloseCode.INVALID_DATA.to_bytes(2, "big")
    with dialled(crowded, 1) as (client,):
        client.sendall(hello.encode())
        assert client.recv(4096).startswith(b"HTTP/1.1 101")
        client.sendall(Frame(Opcode.TEXT, b"\xff\xfe").serialize(mask=True))
        came = b""
        while refused not in came:
            part = client.recv(4096)
            came += part
            assert part
        for _ in range(3):
            client.sendall(Frame(Opcode.TEXT, b"more").serialize(mask=True))
            time.sleep(0.05)  # for a reset to arrive
        assert client.recv(1) == b"", "the other half is closed, by its leave"


def test_garbage_fills_no_log(crowded: GatewayProcess) -> None:
    for _ in range(30):
        with socket.create_connection(address_of(crowded)) as client:
            client.sendall(b"\x16\x03\x01garbage\r\n\r\n")
            assert client.recv(65_536).startswith(b"HTTP/1.1 400")
    assert crowded.log().count("Invalid HTTP request") == 1


def test_an_answer_before_the_body_is_for_everybody(crowded: GatewayProcess) -> None:
    head = b"POST /api/download HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n"
    status, told = answer_to(crowded, head + b"Content-Length: 900000\r\n\r\n")
    assert (status, told["error"]) == (401, "access-denied")


def test_a_line_that_is_due_tells_how_many_were_not() -> None:
    times = [0.0, 1.0, 59.0, 60.0, 61.0, 200.0]
    clock = iter(times)
    rarely = Rarely(lambda: next(clock))
    lines: list[dict[str, Any]] = []
    for _ in times:
        rarely.log(lambda event, **facts: lines.append(facts), "full", open=7)
    assert lines == [
        {"open": 7},
        {"open": 7, "since_last_line": 2},
        {"open": 7, "since_last_line": 1},
    ]
