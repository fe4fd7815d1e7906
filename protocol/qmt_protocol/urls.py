"""Addresses as people set them: what is wrong with one is said at the start, without its password.

A URL is checked here and nowhere else; what has passed can be connected to.
"""

from __future__ import annotations

import re
from typing import Annotated, Final
from urllib.parse import SplitResult, parse_qsl, urlsplit

from pydantic import AfterValidator, ValidationInfo

from .errors import ConfigurationError

__all__ = ["OptionalRedisUrl", "RedisUrl", "address_of", "check_http_url", "check_redis_url"]

_REDIS: Final = ("redis", "rediss", "unix")
_REDIS_OPTIONS: Final = {
    *("db", "username", "password", "client_name"),
    *("ssl_ca_certs", "ssl_ca_path", "ssl_cert_reqs", "ssl_certfile", "ssl_check_hostname"),
    *("ssl_keyfile", "ssl_keyfile_password"),
}
_PORTS: Final = {"http": 80, "https": 443}
_BLANK: Final = re.compile(r"[\s\x00-\x1f\x7f]")
_ENCODE: Final = (
    "In a user's name or a password write # as %23, / as %2F, ? as %3F, % as %25, @ as %40, "
    ": as %3A, a blank as %20."
)


def check_redis_url(url: str, name: str) -> str:
    """Return a Redis server's URL as it was given.

    Parameters
    ----------
    url
        As ``redis://user:password@host:6379/0``, ``rediss://...`` or ``unix:///path``.
    name
        What the setting is called.

    Raises
    ------
    ConfigurationError
        When it cannot be connected to; the message shows nothing of user and password.
    """
    parts = _parts(url, name, _REDIS, "redis://192.168.1.10:6379/0")
    unix = parts.scheme == "unix"
    if unix and not parts.path:
        raise _wrong(name, "it names no socket", "For example unix:///run/redis.sock.")
    if not unix and not re.fullmatch(r"(/\d{0,5})?", parts.path, re.ASCII):
        raise _wrong(
            name,
            "behind the port comes the number of a database",
            f"As /0. {_ENCODE if parts.username else ''}".strip(),
        )
    for option, value in parse_qsl(parts.query, keep_blank_values=True):
        if option not in _REDIS_OPTIONS:
            known = ", ".join(sorted(_REDIS_OPTIONS - {"password", "username"}))
            raise _wrong(name, "it has an option that is not known", f"Known: {known}.")
        if option == "db" and not re.fullmatch(r"\d{1,5}", value, re.ASCII):
            raise _wrong(name, "db is no number", "As ?db=0.")
    return url


def check_http_url(url: str, name: str) -> str:
    """Return a web server's URL as it was given.

    Raises
    ------
    ConfigurationError
        When it cannot be asked.
    """
    _parts(url, name, tuple(_PORTS), "http://192.168.1.10:8000")
    return url


def address_of(url: str) -> str:
    """Return ``host:port`` of a URL that was checked, or its socket's path; nothing else of it."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return parts.path
    host = parts.hostname or ""
    shown = f"[{host}]" if ":" in host else host
    return f"{shown}:{parts.port or _PORTS.get(parts.scheme, 6379)}"


def _parts(url: str, name: str, schemes: tuple[str, ...], example: str) -> SplitResult:
    """Return the parts of a URL that all kinds have in common."""
    for_example = f"For example {example}."
    scheme, separator, rest = url.partition("://")
    if not url:
        raise _wrong(name, "it is empty", for_example)
    if not separator or scheme not in schemes:
        known = " or ".join(f"{one}://" for one in schemes)
        raise _wrong(name, f"it does not begin with {known}", for_example)
    login, at, _ = rest.rpartition("@")
    if _BLANK.search(url):
        raise _wrong(name, "it has a blank in it", _ENCODE if at else for_example)
    if at and scheme != "unix" and re.search(r"[/?#\[\]]", login):
        raise _wrong(name, "its user or password has a character that ends it", _ENCODE)
    if "#" in rest:
        raise _wrong(name, "it has a # in it", _ENCODE if at else for_example)
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        raise _wrong(
            name, "what is in [ ] is no IPv6 address", "For example redis://[::1]:6379/0."
        ) from None
    if scheme == "unix":
        return parts
    try:
        port_is_wrong = parts.port == 0
    except ValueError:
        port_is_wrong = True
    if port_is_wrong:
        raise _wrong(
            name,
            "its port is no number from 1 to 65535",
            f"{for_example} An IPv6 address stands in [ ]. {_ENCODE if at else ''}".strip(),
        )
    if not host:
        raise _wrong(name, "it names no host", for_example)
    return parts


def _wrong(name: str, reason: str, hint: str) -> ConfigurationError:
    # Nothing of the URL is shown: what is a password in it is not certain where it is wrong.
    return ConfigurationError(f"{name} cannot be used: {reason}.", hint=hint)


def _checked(url: str, info: ValidationInfo) -> str:
    name = info.field_name or "url"
    return check_redis_url(url, f"{name} (QMT_{name.upper()})")


RedisUrl = Annotated[str, AfterValidator(_checked)]
"""A setting that is a Redis server's URL."""
OptionalRedisUrl = Annotated[
    str, AfterValidator(lambda url, info: _checked(url, info) if url else url)
]
"""The same, or empty."""
