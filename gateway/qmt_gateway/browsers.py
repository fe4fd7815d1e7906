"""What a browser may ask where no key is asked for: any page that its user opens can make it ask.

A page reaches a gateway on loopback in two ways: by an address of its own that DNS turns into
127.0.0.1 (then ``Host`` is the page's), or straight from another site (then ``Origin`` or
``Sec-Fetch-Site`` says so). A program sends neither.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from qmt_protocol.errors import ConfigurationError, HostRefused, OriginRefused

__all__ = ["Browsers", "is_loopback"]

_ANY: Final = "*"
_PORTS: Final = {"http": 80, "https": 443}
_OWN: Final = ("same-origin", "none")
_SHOWN: Final = 100


def is_loopback(host: str) -> bool:
    """Whether a host is this machine and no other can reach it."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Browsers:
    """Who may call, by the names it calls and the pages it comes from.

    Parameters
    ----------
    bound
        Address that the gateway listens on.
    hosts
        Further names that it goes by; ``*``: any.
    origins
        Pages (``https://desk.example:3000``) of other sites that may ask.

    Raises
    ------
    ConfigurationError
        When one of them is none.
    """

    def __init__(self, bound: str, hosts: Iterable[str], origins: Iterable[str]) -> None:
        self._bound = bound.lower()
        self._hosts = {_host_of(host) if host != _ANY else _ANY for host in hosts}
        self.origins = [_checked_origin(origin) for origin in origins]

    def check_host(self, headers: Headers) -> None:
        """Check what the caller takes the gateway for.

        Raises
        ------
        HostRefused
        """
        for sent in headers.getlist("host"):
            host = _host_of(sent)
            if not self._is_own(host):
                raise HostRefused(
                    f"This gateway does not go by the name {host[:_SHOWN]!r}.",
                    hint="Call it by its address, such as http://127.0.0.1:8000, or add the name "
                    "to QMT_BRIDGE_HOSTS, or have it ask for keys.",
                )

    def _is_own(self, host: str) -> bool:
        if _ANY in self._hosts or host in self._hosts or host == self._bound or is_loopback(host):
            return True
        # No name leads to it, so nobody else can: an address is what it says.
        return not is_loopback(self._bound) and _is_address(host)

    def check_origin(self, headers: Headers) -> None:
        """Check which page asks, if one does.

        Raises
        ------
        OriginRefused
        """
        origin = headers.get("origin")
        if origin is not None:
            if origin.lower() in self.origins or _is_same(origin, headers.get("host", "")):
                return
            raise _refused(f"A page of {origin[:_SHOWN]!r}")
        # A picture or a link has no origin, and yet would have a job done.
        if headers.get("sec-fetch-site", _OWN[0]) not in _OWN:
            raise _refused("A page of another site")


def _refused(who: str) -> OriginRefused:
    return OriginRefused(
        f"{who} may not ask this gateway.",
        hint="If it is yours, add its origin to QMT_BRIDGE_ORIGINS, or send a key.",
    )


def _is_same(origin: str, host: str) -> bool:
    try:
        parts = urlsplit(origin.lower())
        port = _PORTS.get(parts.scheme)
        if port is None or not parts.hostname:
            return False
        called = urlsplit(f"//{host.lower()}")
        return (parts.hostname, parts.port or port) == (called.hostname, called.port or port)
    except ValueError:
        return False


def _host_of(text: str) -> str:
    """Return the host of a ``Host`` field, without its port."""
    try:
        return (urlsplit(f"//{text.strip().lower()}").hostname or "").removesuffix(".")
    except ValueError:
        return text


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _checked_origin(text: str) -> str:
    origin = text.lower()
    try:
        parts = urlsplit(origin)
        parts.port  # noqa: B018  # raises where it is none
        right = origin == f"{parts.scheme}://{parts.netloc}" and parts.hostname
    except ValueError:
        right = None
    if not right or parts.scheme not in _PORTS:
        raise ConfigurationError(
            f"{text!r} in QMT_BRIDGE_ORIGINS is no origin.",
            hint="For example https://desk.example or http://localhost:3000; '*' is not served.",
        )
    return origin
