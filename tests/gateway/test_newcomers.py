"""Connections that have said nothing: held as sockets, opened when they speak."""

from __future__ import annotations

import asyncio
import socket

import pytest
from waiting import wait_for

from qmt_gateway.newcomers import Newcomers


async def test_one_that_speaks_is_handed_on_and_one_that_goes_is_closed() -> None:
    spoken: list[socket.socket] = []
    newcomers = Newcomers(600, 5, spoken.append, lambda: None)
    pairs = [socket.socketpair() for _ in range(3)]
    for ours, _ in pairs:
        newcomers.add(ours)
    pairs[1][1].sendall(b"GET")
    pairs[2][1].close()
    await asyncio.to_thread(wait_for, lambda: len(newcomers) == 1, "only the silent one is left")
    assert spoken == [pairs[1][0]]
    assert spoken[0].recv(10) == b"GET", "nothing of it was taken"
    assert pairs[2][0].fileno() == -1
    newcomers.close()
    assert pairs[0][0].fileno() == -1
    for one in (*pairs[0], *pairs[1]):
        one.close()


async def test_where_no_socket_can_be_watched_each_is_handed_on_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on Windows, whose event loop knows of no readers."""

    def refuse(*_: object) -> None:
        raise NotImplementedError

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(loop, "add_reader", refuse)
    monkeypatch.setattr(loop, "remove_reader", refuse)
    handed: list[socket.socket] = []
    newcomers = Newcomers(600, 5, handed.append, lambda: None)
    ours, theirs = socket.socketpair()
    newcomers.add(ours)
    assert handed == [ours]
    assert len(newcomers) == 0
    newcomers.close()
    assert ours.fileno() != -1
    ours.close()
    theirs.close()
