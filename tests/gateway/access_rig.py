"""Gateways that ask for keys, keys for them, and clients that speak HTTP badly on purpose."""

from __future__ import annotations

import io
import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import httpx
from gateway_bench import GatewayProcess
from waiting import WITHIN_S
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from qmt_gateway.__main__ import main

KEYS = "qmt-gateway-keys.json"


def run_keys(folder: Path, *arguments: str) -> str:
    """Run ``qmt-gateway keys``; return what it prints."""
    told = io.StringIO()
    with redirect_stdout(told), redirect_stderr(io.StringIO()):
        main(["keys", "--file", str(folder / KEYS), *arguments])
    return told.getvalue().strip()


def add_key(folder: Path, name: str, *flags: str) -> str:
    """Add a key to the file in a folder; return it."""
    return run_keys(folder, "add", name, *flags)


def ask(
    process: GatewayProcess, path: str, key: str = "", method: str = "GET", **more: Any
) -> httpx.Response:
    """Send one request, with a key."""
    headers = {"X-API-Key": key, **more.pop("headers", {})}
    if not key:
        del headers["X-API-Key"]
    options: Any = {"timeout": WITHIN_S, "trust_env": False, "verify": False}
    return httpx.request(method, process.url + path, headers=headers, **options, **more)


def address_of(process: GatewayProcess) -> tuple[str, int]:
    host, _, port = process.url.removeprefix("http://").rpartition(":")
    return host, int(port)


@contextmanager
def dialled(process: GatewayProcess, count: int) -> Iterator[list[socket.socket]]:
    """Open connections that say nothing."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(socket.create_connection(address_of(process), timeout=WITHIN_S))
            for _ in range(count)
        ]


def is_open(client: socket.socket) -> bool:
    """Whether the other side has left a connection open."""
    client.setblocking(False)
    try:
        return client.recv(1, socket.MSG_PEEK) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        client.settimeout(WITHIN_S)


def answer_to(process: GatewayProcess, request: bytes) -> tuple[int, dict[str, Any]]:
    """Send bytes and nothing more; return the status and the problem document of the answer."""
    with socket.create_connection(address_of(process), timeout=WITHIN_S) as client:
        client.sendall(request)
        return read_answer(client)


def read_answer(client: socket.socket) -> tuple[int, dict[str, Any]]:
    got = b""
    while b"\r\n\r\n" not in got:
        got += received(client)
    head, _, body = got.partition(b"\r\n\r\n")
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
    while len(body) < int(fields.get(b"content-length", b"0")):
        body += received(client)
    return int(head.split()[1]), json.loads(body) if body.startswith(b"{") else {}


def received(client: socket.socket) -> bytes:
    data = client.recv(65_536)
    if not data:
        raise ConnectionError("closed without an answer")
    return data


@contextmanager
def live(
    process: GatewayProcess, key: str = "", path: str = "/ws/v1", **headers: str
) -> Iterator[ClientConnection]:
    """A WebSocket by JSON."""
    if key:
        headers["X-API-Key"] = key
    url = f"ws{process.url[4:]}{path}"
    with connect(url, additional_headers=headers, proxy=None, close_timeout=1) as client:
        yield client


def closed_with(client: ClientConnection) -> tuple[int, str]:
    """Read until the connection is closed; return its code and reason."""
    try:
        while True:
            client.recv(timeout=WITHIN_S)
    except ConnectionClosed as closed:
        told = closed.rcvd
    assert told is not None
    return told.code, told.reason


def next_of(client: ClientConnection, kind: str) -> dict[str, Any]:
    """Return the next message of a kind."""
    while True:
        told: dict[str, Any] = json.loads(client.recv(timeout=WITHIN_S))
        if told["type"] == kind:
            return told
