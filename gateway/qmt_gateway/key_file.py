"""The file of gateway keys: JSON that a person can read, with hashes in place of the keys."""

from __future__ import annotations

import datetime as dt
import hashlib
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec
from filelock import FileLock, Timeout

from qmt_protocol.errors import ConfigurationError, InvalidRequest
from qmt_protocol.times import parse_end

from .limits import Limits, limits_with
from .scopes import SCOPES, Scope

__all__ = [
    "HASHED",
    "KeyFile",
    "StoredKey",
    "digest_of",
    "new_entry",
    "new_key",
    "read_keys",
    "writing_keys",
]

VERSION: Final = 1
HASHED: Final = re.compile(r"sha256:([0-9a-fA-F]{64})", re.ASCII)
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_SECRET_BYTES: Final = 32
_LOCK_WITHIN_S: Final = 10.0


class StoredKey(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One key as it lies in the file."""

    name: str
    hash: str
    """``sha256:<hex>`` of the key."""
    scopes: list[Scope]
    created: str
    expires: str | None = None
    """A time, or a day that is its last; ``null``: never."""
    limits: dict[str, float] = {}
    """Figures in place of the gateway's own, by the names of `Limits`."""

    @property
    def digest(self) -> bytes:
        """The hash itself."""
        return bytes.fromhex(self.hash.removeprefix("sha256:"))

    @property
    def expires_ms(self) -> int | None:
        """The last ms at which it opens anything."""
        return parse_end(self.expires)

    def has_expired(self, now_ms: float) -> bool:
        """Whether its last day is over."""
        return self.expires_ms is not None and now_ms > self.expires_ms

    def check(self) -> None:
        """Raise what is wrong with it.

        Raises
        ------
        ConfigurationError
        """
        if not _NAME.fullmatch(self.name):
            raise ConfigurationError(
                f"{self.name[:80]!r} cannot name a key.",
                hint="Use up to 64 letters, digits and . _ -, a letter or digit first.",
            )
        if not HASHED.fullmatch(self.hash):
            raise ConfigurationError(
                f"The hash of the key {self.name} is none.",
                hint="After 'sha256:' come 64 hexadecimal digits.",
            )
        try:
            parse_end(self.expires)
        except InvalidRequest:
            raise ConfigurationError(
                f"expires={self.expires!r} of the key {self.name} is not a time.",
                hint="For example 2027-01-31, its last day.",
            ) from None
        limits_with(self.limits, Limits())


class KeyFile(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The whole file."""

    version: int = VERSION
    keys: list[StoredKey] = []

    def find(self, name: str) -> StoredKey | None:
        """Return the key of a name."""
        return next((one for one in self.keys if one.name == name), None)


def digest_of(key: str) -> bytes:
    """Return what is kept of a key.

    SHA-256 without salt and rounds is right for `new_key`'s: 256 random bits cannot be tried
    through, however fast a try is. It is as good for a key of one's own only if that is random too.
    """
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def new_key() -> str:
    """Return a new key: 256 random bits, made of what headers and queries take as it is."""
    return f"qmt_{secrets.token_urlsafe(_SECRET_BYTES)}"


def new_entry(
    key: str,
    name: str,
    scope: Scope,
    now: dt.datetime,
    expires: str | None,
    limits: dict[str, float],
) -> StoredKey:
    """Return what the file keeps of a key that has a scope and those before it.

    Raises
    ------
    ConfigurationError
        When the name cannot name a key, or a limit is none.
    """
    entry = StoredKey(
        name=name,
        hash=f"sha256:{digest_of(key).hex()}",
        scopes=list(SCOPES[: SCOPES.index(scope) + 1]),
        created=now.isoformat(timespec="seconds"),
        expires=expires,
        limits=limits,
    )
    entry.check()
    return entry


def read_keys(path: Path) -> KeyFile | None:
    """Read the file; ``None`` where there is none.

    Raises
    ------
    ConfigurationError
        When it cannot be read, or holds anything but keys.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigurationError(
            f"The keys in {path} cannot be read: {error.strerror or error}.",
            hint="The user that runs the gateway must own the file.",
        ) from error
    try:
        file = msgspec.json.decode(data, type=KeyFile)
        if file.version != VERSION:
            raise ConfigurationError(f"its version is {file.version}, not {VERSION}.")
        for one in file.keys:
            one.check()
        names = [one.name for one in file.keys]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ConfigurationError(f"two keys are named {twice}.")
    except (msgspec.MsgspecError, ConfigurationError) as error:
        raise ConfigurationError(
            f"{path} is no file of keys: {error}", hint="Correct it; see docs/security.md."
        ) from error
    return file


@contextmanager
def writing_keys(path: Path) -> Iterator[KeyFile]:
    """Give the file's content, and write what was made of it, whole and at once.

    Raises
    ------
    ConfigurationError
        When it cannot be read or written, or another program writes it all the time.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with FileLock(f"{path}.lock", timeout=_LOCK_WITHIN_S, mode=0o600):
            file = read_keys(path) or KeyFile()
            yield file
            _replace(path, msgspec.json.format(msgspec.json.encode(file), indent=2) + b"\n")
    except Timeout as error:
        raise ConfigurationError(
            f"{path} is being written by another program.", hint="Try again."
        ) from error
    except OSError as error:
        raise ConfigurationError(
            f"The keys cannot be written to {path}: {error.strerror or error}.",
            hint="Set QMT_BRIDGE_KEYS_FILE to a place that this user may write.",
        ) from error


def _replace(path: Path, data: bytes) -> None:
    made = path.with_name(f"{path.name}.new")
    made.unlink(missing_ok=True)
    descriptor = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
        if os.name == "posix" and path.exists():
            of_old = path.stat()  # root may add a key to the file of the gateway's user
            os.fchown(file.fileno(), of_old.st_uid, of_old.st_gid)
    os.replace(made, path)
    if os.name == "posix":  # elsewhere a folder cannot be opened
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
