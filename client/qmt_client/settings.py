"""Where a client reads: from its arguments, else ``QMT_*`` variables, else ``qmt.toml``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from pydantic import Field

from qmt_protocol.errors import ConfigurationError
from qmt_protocol.keys import Keys
from qmt_protocol.settings import RedisSettings, load_settings
from qmt_protocol.urls import check_http_url, check_redis_url

__all__ = ["ClientSettings", "Target", "find_target"]

_DEFAULT_HOST: Final = "127.0.0.1"
_DEFAULT_PORT: Final = 8000
_REDIS_SCHEMES: Final = ("redis", "rediss", "unix")


class ClientSettings(RedisSettings):
    """Settings of the client library and of ``qmt``."""

    url: str = Field("", description="redis://... (streams) or http(s)://... (gateway)", repr=False)
    api_key: str = Field("", description="key of the gateway", repr=False)
    archive_url: str = Field(
        "", description="folder or s3:// address of the archive, where Redis is read", repr=False
    )


@dataclass(frozen=True)
class Target:
    """Where one client reads."""

    url: str = field(repr=False)
    jobs_url: str | None = field(repr=False)
    prefix: str
    api_key: str = field(repr=False)
    archive_url: str = field(default="", repr=False)

    @property
    def over_redis(self) -> bool:
        """Whether it reads Redis itself, and not the gateway."""
        return self.url.partition("://")[0] in _REDIS_SCHEMES


def find_target(
    url: str | None = None,
    *,
    host: str | None = None,
    port: int | None = None,
    jobs_url: str | None = None,
    prefix: str | None = None,
    api_key: str | None = None,
    archive_url: str | None = None,
) -> Target:
    """Work out where to read.

    ``url`` first; then ``host`` and ``port``, which mean a gateway; then ``QMT_URL``; then
    ``QMT_STREAMS_URL``, ``QMT_JOBS_URL``; else a gateway on this machine.

    Raises
    ------
    ConfigurationError
        When the arguments contradict each other or the URL is of no known kind.
    """
    if url and (host or port):
        raise ConfigurationError(
            "Both a URL and host or port were given.", hint="Give one of them."
        )
    settings = load_settings(ClientSettings, [])
    given = settings.model_fields_set
    name = "url (--url, QMT_URL)"
    if not url:
        if host or port:
            host = host or _DEFAULT_HOST
            url = f"http://{f'[{host}]' if ':' in host else host}:{port or _DEFAULT_PORT}"
            name = "The address of host and port (--host, --port)"
        elif settings.url:
            url = settings.url
        elif "streams_url" in given or "jobs_url" in given:
            url = settings.streams_url
        else:
            url = f"http://{_DEFAULT_HOST}:{_DEFAULT_PORT}"
    scheme, separator, _ = url.partition("://")
    if not separator or scheme not in (*_REDIS_SCHEMES, "http", "https"):
        raise ConfigurationError(
            f"{name} is neither a Redis nor an HTTP address.",
            hint="For example redis://192.168.1.10:6379/0 or http://192.168.1.10:8000.",
        )
    (check_redis_url if scheme in _REDIS_SCHEMES else check_http_url)(url, name)
    if jobs_url:
        check_redis_url(jobs_url, "jobs_url")
    prefix = prefix or settings.prefix
    Keys(prefix)
    return Target(
        url=url,
        jobs_url=jobs_url or (settings.jobs_url if "jobs_url" in given else None),
        prefix=prefix,
        api_key=settings.api_key if api_key is None else api_key,
        archive_url=settings.archive_url if archive_url is None else archive_url,
    )
