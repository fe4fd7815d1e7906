"""Taking connections in: as many as there is room for, and calmly where there is none."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
from collections.abc import Callable, Collection
from typing import Final

import structlog

from .connections import Connections
from .newcomers import Newcomers
from .rare_log import Rarely

if os.name == "posix":
    import resource

__all__ = ["accept", "most_connections", "raise_descriptor_limit"]

_EXHAUSTED: Final = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_BROKEN: Final = {errno.EBADF, errno.EINVAL, errno.ENOTSOCK}
"""The listener is none any more. Any other error is of the connection that would have come."""
_PAUSE_S: Final = 0.05
_AT_ONCE: Final = 16
_HANDSHAKE_S: Final = 10.0
_RESERVED: Final = 512
"""Descriptors kept for all but clients: two pools of 200 to Redis, the archive, the log."""
_REQUESTED: Final = 65_536
_log: Final = structlog.get_logger(__name__)


def raise_descriptor_limit() -> int:
    """Have the system allow as many descriptors as it may; return how many, 0: it counts none."""
    if os.name != "posix":
        return 0
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    requested = _REQUESTED if hard == resource.RLIM_INFINITY else hard
    if soft != resource.RLIM_INFINITY and soft < requested:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (requested, hard))
            soft = requested
        except (OSError, ValueError) as error:  # macOS has a bound of its own below the hard one
            _log.warning("descriptor limit stays", limit=soft, reason=str(error))
    return _REQUESTED if soft == resource.RLIM_INFINITY else soft


def most_connections(descriptors: int) -> int:
    """Return how many connections there may be with a limit of descriptors; 0: any number."""
    return max(descriptors - _RESERVED, descriptors // 2)


async def accept(
    listener: socket.socket,
    protocol: Callable[[], asyncio.Protocol],
    connections: Connections,
    tls: ssl.SSLContext | None = None,
) -> None:
    """Take connections in until cancelled.

    asyncio's own servers try on at once when descriptors have run out, and log each try.

    Parameters
    ----------
    listener
        A socket that listens.
    protocol
        Makes the protocol of a connection.
    """
    loop = asyncio.get_running_loop()
    listener.setblocking(False)
    opening: set[asyncio.Task[None]] = set()

    def begin(client: socket.socket) -> None:
        task = loop.create_task(_open(client, protocol, tls))
        opening.add(task)
        task.add_done_callback(opening.discard)

    # They have places of their own: of a few left over by those that spoke, one with a key would
    # lose its own before its first byte is looked at.
    newcomers = Newcomers(
        connections.head_s, connections.most_unadmitted, begin, connections.notify_room
    )
    try:
        await _take(listener, connections, newcomers, opening)
    finally:
        newcomers.close()


async def _take(
    listener: socket.socket,
    connections: Connections,
    newcomers: Newcomers,
    opening: Collection[object],
) -> None:
    loop = asyncio.get_running_loop()
    rarely = Rarely()
    taken = 0
    while True:
        try:
            client, _ = await loop.sock_accept(listener)
        except OSError as error:
            if error.errno in _BROKEN:
                raise
            exhausted = error.errno in _EXHAUSTED
            what = "no descriptors left for connections" if exhausted else "accepting failed"
            rarely.log(_log.warning, what, connections=len(connections), reason=error.strerror)
            if exhausted and not newcomers.drop_oldest():
                connections.make_room()
            await asyncio.sleep(_PAUSE_S)
            continue
        held = len(connections) + len(opening) + len(newcomers)
        full = connections.most and held >= connections.most
        if full and not newcomers.drop_oldest() and not connections.make_room():
            client.close()
            rarely.log(_log.warning, "connection refused: too many", connections=len(connections))
        else:
            newcomers.add(client)
        taken += 1
        if taken % _AT_ONCE == 0:  # a flood of them may not stop everything else
            await asyncio.sleep(0)


async def _open(
    client: socket.socket, protocol: Callable[[], asyncio.Protocol], tls: ssl.SSLContext | None
) -> None:
    loop = asyncio.get_running_loop()
    try:
        await loop.connect_accepted_socket(
            protocol, client, ssl=tls, ssl_handshake_timeout=_HANDSHAKE_S if tls else None
        )
    except OSError as error:  # it went during the handshake
        client.close()
        _log.debug("connection not opened", reason=str(error))
