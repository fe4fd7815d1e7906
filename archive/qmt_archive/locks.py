"""One writer per archive: a file lock in a folder, a lease in Redis where there are no locks."""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

import redis
import structlog
from filelock import FileLock, Timeout

from qmt_protocol.errors import ArchiveUnavailable, RedisUnavailable
from qmt_protocol.keys import Keys
from qmt_protocol.urls import address_of
from qmt_runtime.connections import connect, redis_errors

from .store import ArchiveStore

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["WriterLock", "lock_for"]

log: Final = structlog.get_logger(__name__)

_LEASE_S: Final = 30.0
_RENEW_S: Final = 5.0


class WriterLock:
    """The right to write an archive, held while inside the ``with`` block.

    Raises
    ------
    ArchiveUnavailable
        On entering, when another process has it.
    """

    def __enter__(self) -> Self:
        raise NotImplementedError

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        raise NotImplementedError

    def check(self) -> None:
        """Make sure that it is still held, before something is committed.

        Raises
        ------
        ArchiveUnavailable
            When that is not certain.
        """


def lock_for(store: ArchiveStore, keys: Keys, streams_url: str) -> WriterLock:
    """Return the lock of an archive: of its folder, or of its prefix in Redis."""
    if store.is_local:
        return _FolderLock(store)
    return _Lease(store, keys, streams_url)


def _taken(address: str) -> ArchiveUnavailable:
    return ArchiveUnavailable(
        f"The archive at {address} is being written by another qmt-archive.",
        hint="Only one may write at a time; qmt-archive run compacts by itself.",
        address=address,
        taken=True,
    )


class _FolderLock(WriterLock):
    def __init__(self, store: ArchiveStore) -> None:
        self._store = store
        self._lock = FileLock(Path(store.root) / ".lock")

    def __enter__(self) -> Self:
        self._store.prepare()
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise _taken(self._store.address) from None
        except OSError as error:
            raise ArchiveUnavailable(
                f"The archive at {self._store.address} cannot be locked: {error.strerror}.",
                hint="Let this user write there.",
                address=self._store.address,
            ) from error
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()


class _Lease(WriterLock):
    """A key in Redis that runs out; renewed by a thread, looked at before each commit."""

    def __init__(self, store: ArchiveStore, keys: Keys, streams_url: str) -> None:
        self._store = store
        self._key = keys.archive
        self._url = streams_url
        self._holder = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self._good_until = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew_on, name="lease", daemon=True)

    def __enter__(self) -> Self:
        self._redis: redis.Redis = connect(self._url)
        try:
            asked = time.monotonic()
            with redis_errors(address_of(self._url)):
                got = self._redis.set(self._key, self._holder, nx=True, px=int(_LEASE_S * 1000))
            if not got:
                raise _taken(self._store.address)
        except BaseException:
            self._redis.close()
            raise
        self._good_until = asked + _LEASE_S
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        try:
            with redis_errors(address_of(self._url)):
                self._if_ours(lambda pipe: pipe.delete(self._key))
        except RedisUnavailable as error:
            log.info("the lease runs out by itself", error=error.message)
        finally:
            self._redis.close()

    def check(self) -> None:
        try:
            self._renew()
        except RedisUnavailable:
            if time.monotonic() < self._good_until - _LEASE_S / 2:
                return
            raise
        if time.monotonic() >= self._good_until:
            raise _taken(self._store.address)

    def _renew(self) -> None:
        asked = time.monotonic()
        with redis_errors(address_of(self._url)):
            held = self._if_ours(lambda pipe: pipe.pexpire(self._key, int(_LEASE_S * 1000)))
        # Once lost it is not taken again: another may have written meanwhile.
        self._good_until = asked + _LEASE_S if held and self._good_until else 0.0

    def _if_ours(self, change: Callable[[redis.client.Pipeline], Any]) -> bool:
        """Change the key in one step, unless it is another's; tell whether that was done."""
        with self._redis.pipeline() as pipe:
            pipe.watch(self._key)  # type: ignore[no-untyped-call]
            if pipe.get(self._key) != self._holder.encode():
                return False
            pipe.multi()
            change(pipe)
            try:
                return bool(pipe.execute()[0])
            except redis.WatchError:
                return False

    def _renew_on(self) -> None:
        while not self._ended.wait(_RENEW_S):
            try:
                self._renew()
            except RedisUnavailable as error:
                log.warning("the archive's lease is not renewed", error=error.message)
