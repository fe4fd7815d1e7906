"""The keys that open the gateway: those of the settings and those of the file, as it is now."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import structlog
from starlette.datastructures import Headers, QueryParams
from starlette.types import Scope as AsgiScope

from qmt_protocol.errors import AccessDenied, ConfigurationError
from qmt_protocol.times import to_datetime

from .key_file import HASHED, StoredKey, digest_of, read_keys
from .scopes import SCOPES, Scope

__all__ = ["Key", "Keyring", "parse_api_keys", "presented_key"]

_SENDABLE: Final = re.compile(r"[!-~]+", re.ASCII)
_log: Final = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Key:
    """A key that opens the gateway.

    Attributes
    ----------
    expires_ms
        The last ms at which it does; ``None``: always.
    limits
        Figures in place of the gateway's own.
    """

    name: str
    digest: bytes
    scopes: frozenset[Scope] = frozenset(SCOPES)
    expires_ms: int | None = None
    limits: Mapping[str, float] = field(default_factory=dict, hash=False)

    @classmethod
    def of(cls, stored: StoredKey) -> Key:
        """Return a key of the file."""
        scopes = frozenset(stored.scopes)
        return cls(stored.name, stored.digest, scopes, stored.expires_ms, stored.limits)


def parse_api_keys(text: str) -> list[Key]:
    """Read a comma-separated list of keys and ``sha256:<hex>`` hashes; each may do everything.

    Raises
    ------
    ConfigurationError
        When a key or hash is malformed; the message does not repeat it.
    """
    keys = []
    for number, entry in enumerate(filter(None, map(str.strip, text.split(","))), start=1):
        if not entry.startswith("sha256:"):
            if not _SENDABLE.fullmatch(entry):
                raise ConfigurationError(
                    f"Entry {number} of QMT_BRIDGE_API_KEYS cannot be sent in a header.",
                    hint="Use letters, digits and punctuation of ASCII.",
                )
            digest = digest_of(entry)
        elif hashed := HASHED.fullmatch(entry):
            digest = bytes.fromhex(hashed[1])
        else:
            raise ConfigurationError(
                f"Entry {number} of QMT_BRIDGE_API_KEYS is not a SHA-256 hash.",
                hint="After 'sha256:' come 64 hexadecimal digits.",
            )
        keys.append(Key(f"QMT_BRIDGE_API_KEYS[{number}]", digest))
    return keys


class Keyring:
    """The keys that open the gateway; without any, everybody may enter.

    Parameters
    ----------
    fixed
        Keys of the settings.
    path
        The file of keys. Once it is there the gateway asks for keys, also when it is empty or
        taken away: a key less never means that more may enter.
    anonymous
        Whether a caller without a key may enter although keys are asked for.

    Raises
    ------
    ConfigurationError
        When the file cannot be read.
    """

    def __init__(self, fixed: Sequence[Key], path: Path, *, anonymous: bool = False) -> None:
        self._fixed = list(fixed)
        self._path = path.absolute()
        self._anonymous = anonymous
        self._seen = self._look()
        stored = read_keys(self._path)
        self.asks = bool(fixed) or stored is not None
        """Whether a key is asked for; `lets_in_anonymous` may let others in all the same."""
        self._take(stored.keys if stored else ())

    @property
    def lets_in_anonymous(self) -> bool:
        """Whether a caller without a key may enter."""
        return self._anonymous or not self.asks

    def find(self, presented: str) -> Key:
        """Return the key that a caller sends.

        Raises
        ------
        AccessDenied
            When it is wrong or has expired.
        """
        # Looked up by its hash: the time that this takes tells nothing from which a key follows.
        key = self._by_digest.get(digest_of(presented))
        if key is None:
            raise AccessDenied("The API key is wrong.", hint="Ask who runs this gateway.")
        if _has_expired(key):
            last = f"{to_datetime(key.expires_ms or 0):%Y-%m-%d %H:%M}"
            raise AccessDenied(
                f"The API key {key.name} expired on {last}, China time.",
                hint="Ask who runs this gateway for another.",
            )
        return key

    def present(self, key: Key) -> Key | None:
        """Return a key as it is now; ``None`` when it opens nothing any more."""
        now = self._by_digest.get(key.digest)
        return None if now is None or _has_expired(now) else now

    def refresh(self) -> None:
        """Read the file anew if it has changed; one that cannot be read changes nothing."""
        seen = self._look()
        if seen == self._seen:
            return
        self._seen = seen
        try:
            stored = read_keys(self._path)
        except ConfigurationError as error:
            _log.error("keys not taken up, those known before stay", error=str(error))
            return
        self.asks = self.asks or stored is not None
        self._take(stored.keys if stored else ())
        names = [one.name for one in stored.keys] if stored else None
        _log.info("keys taken up", file=str(self._path), names=names)

    def _take(self, stored: Sequence[StoredKey]) -> None:
        keys = [*map(Key.of, stored), *self._fixed]
        self._by_digest = {key.digest: key for key in keys}

    def _look(self) -> tuple[int, int, int] | None:
        try:
            found = os.stat(self._path)
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino


def _has_expired(key: Key) -> bool:
    return key.expires_ms is not None and time.time() * 1000 > key.expires_ms


def presented_key(scope: AsgiScope) -> str | None:
    """Return the key that a caller sends, if any.

    In a query only with a WebSocket, for a browser cannot send headers with one: queries land in
    the logs of proxies.
    """
    headers = Headers(scope=scope)
    kind, _, bearer = headers.get("authorization", "").partition(" ")
    sent = headers.get("x-api-key") or (bearer.strip() if kind.lower() == "bearer" else "")
    if not sent and scope["type"] == "websocket":
        sent = QueryParams(scope["query_string"]).get("api_key", "")
    return sent or None
