"""Settings of the gateway, and the rule of who may reach it."""

from __future__ import annotations

import ipaddress

from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from qmt_protocol.errors import ConfigurationError
from qmt_protocol.settings import RedisSettings

from .auth import ApiKeys

__all__ = ["GatewaySettings"]


class GatewaySettings(RedisSettings):
    """Serve market data over HTTP and WebSocket from Redis."""

    model_config = SettingsConfigDict(
        cli_prog_name="qmt-gateway",
        cli_shortcuts={"bridge-host": "host", "bridge-port": "port"},
    )

    bridge_host: str = Field("127.0.0.1", description="address to listen on")
    bridge_port: int = Field(8000, ge=0, le=65535, description="port; 0: any free one")
    bridge_api_keys: SecretStr = Field(
        SecretStr(""),
        description="comma-separated keys, or sha256:<hex> of them; "
        "better in the environment than as a flag",
    )
    bridge_allow_anonymous: bool = Field(False, description="serve callers who send no key")
    bridge_query_timeout_s: float = Field(
        60.0, gt=0, le=3600, description="longest wait for a query job"
    )
    bridge_download_timeout_s: float = Field(
        600.0, gt=0, le=7200, description="longest wait for POST /api/download"
    )
    bridge_ws_queue_bytes: int = Field(
        4_000_000,
        ge=1_000,
        description="bytes that wait for one WebSocket client before it is conflated",
    )
    bridge_ws_stall_s: float = Field(
        10.0, gt=0, description="a WebSocket client that reads nothing for so long is closed"
    )
    bridge_ws_flush_ms: int = Field(
        50, ge=0, le=1000, description="shortest time between two frames of one client"
    )
    bridge_ws_replays: int = Field(
        4, ge=0, description="replays that one WebSocket connection may have at a time"
    )
    archive_url: str = Field(
        "", repr=False, description="folder or URL (s3://...) of the archive; empty: streams only"
    )
    exit_with_stdin: bool = Field(False, description="end when standard input is closed")
    bridge_memory_bytes: int = Field(
        400_000_000,
        ge=1_000_000,
        description="bytes that wait for all callers together who have not read them yet",
    )

    @property
    def api_keys(self) -> ApiKeys:
        """The keys that open the gateway.

        Raises
        ------
        ConfigurationError
            When a hash is malformed.
        """
        return ApiKeys.parse(
            self.bridge_api_keys.get_secret_value(), anonymous=self.bridge_allow_anonymous
        )

    def check_exposure(self) -> None:
        """Refuse to listen for other machines without a key.

        Raises
        ------
        ConfigurationError
            When the address is not loopback and neither a key nor anonymous access is set.
        """
        if self.api_keys or self.bridge_allow_anonymous or _is_loopback(self.bridge_host):
            return
        raise ConfigurationError(
            f"{self.bridge_host} can be reached by other machines, and no API key is set.",
            hint="Set QMT_BRIDGE_API_KEYS to one or more keys, or QMT_BRIDGE_ALLOW_ANONYMOUS=true "
            "to serve everyone, or QMT_BRIDGE_HOST=127.0.0.1 to serve this machine only.",
        )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
