"""API keys: kept as hashes, compared in constant time, the same for REST and WebSocket."""

from __future__ import annotations

import hashlib
import hmac
import re
from typing import Annotated, Final

from fastapi import Depends, Request
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer

from qmt_protocol.errors import AccessDenied, ConfigurationError

__all__ = ["ApiKeys", "require_key"]

_HASHED: Final = re.compile(r"sha256:([0-9a-fA-F]{64})", re.ASCII)

_SENDABLE: Final = re.compile(r"[!-~]+", re.ASCII)


class ApiKeys:
    """The keys that open the gateway; without any, everybody may enter.

    Parameters
    ----------
    digests
        SHA-256 of each key.
    anonymous
        Whether a caller without a key may enter although keys are set.
    """

    def __init__(self, digests: tuple[bytes, ...], *, anonymous: bool = False) -> None:
        self._digests = digests
        self._anonymous = anonymous or not digests

    def __bool__(self) -> bool:
        return bool(self._digests)

    @classmethod
    def parse(cls, text: str, *, anonymous: bool = False) -> ApiKeys:
        """Read a comma-separated list of keys and ``sha256:<hex>`` hashes.

        Raises
        ------
        ConfigurationError
            When a key or hash is malformed; the message does not repeat it.
        """
        digests = []
        for number, entry in enumerate(filter(None, map(str.strip, text.split(","))), start=1):
            if not entry.startswith("sha256:"):
                if not _SENDABLE.fullmatch(entry):
                    raise ConfigurationError(
                        f"Entry {number} of QMT_BRIDGE_API_KEYS cannot be sent in a header.",
                        hint="Use letters, digits and punctuation of ASCII.",
                    )
                digests.append(_digest(entry))
            elif hashed := _HASHED.fullmatch(entry):
                digests.append(bytes.fromhex(hashed[1]))
            else:
                raise ConfigurationError(
                    f"Entry {number} of QMT_BRIDGE_API_KEYS is not a SHA-256 hash.",
                    hint="After 'sha256:' come 64 hexadecimal digits.",
                )
        return cls(tuple(digests), anonymous=anonymous)

    def check(self, presented: str | None) -> None:
        """Let a caller in, or not.

        Raises
        ------
        AccessDenied
            When the key is missing or wrong.
        """
        if presented is None:
            if self._anonymous:
                return
            raise AccessDenied(
                "This gateway asks for an API key.",
                hint="Send it as X-API-Key, or as Authorization: Bearer <key>.",
            )
        digest = _digest(presented)
        # Every key is compared, so the time tells nothing about which one was near.
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        if self._digests and not any(matches):
            raise AccessDenied("The API key is wrong.", hint="Ask who runs this gateway.")


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


_header = APIKeyHeader(name="X-API-Key", auto_error=False)
_bearer = HTTPBearer(auto_error=False)


async def require_key(
    request: Request,
    header: Annotated[str | None, Depends(_header)],
    bearer: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
) -> None:
    """Check the key of a REST request; a dependency of every route that serves data."""
    keys: ApiKeys = request.app.state.keys
    keys.check(header or (bearer.credentials if bearer else None))
