"""Settings of the gateway, and the rule of who may reach it."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from qmt_protocol.errors import ConfigurationError
from qmt_protocol.settings import CommaList, RedisSettings

from .auth import Key, Keyring, parse_api_keys
from .browsers import Browsers, is_loopback
from .limits import Limits, limits_with, parse_limits

__all__ = ["GatewaySettings"]


class GatewaySettings(RedisSettings):
    """Serve market data over HTTP and WebSocket from Redis.

    ``qmt-gateway keys --help``: keys with scopes, an expiry and limits.
    """

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
    bridge_keys_file: Path = Field(
        Path("qmt-gateway-keys.json"),
        repr=False,
        description="file that 'qmt-gateway keys' writes",
    )
    bridge_allow_anonymous: bool = Field(False, description="serve callers who send no key")
    bridge_hosts: CommaList = Field(
        [],
        description="further names that callers without a key may call it by; *: any",
    )
    bridge_origins: CommaList = Field(
        [], description="pages of other sites that may ask, as https://desk.example"
    )
    bridge_limits: CommaList = Field(
        [],
        description="what each caller may have, as requests_per_s=100,connections=50; 0: no limit",
    )
    bridge_auto_download_rows: int = Field(
        1_000_000, ge=0, description="most rows that a history request may have fetched"
    )
    bridge_unauthenticated_connections: int = Field(
        500, ge=1, description="connections that were not let in yet; beyond it the oldest ends"
    )
    bridge_head_timeout_s: float = Field(
        10.0, gt=0, description="time in which a connection's next request must have its head"
    )
    bridge_body_timeout_s: float = Field(
        30.0, gt=0, description="time in which a request must have its body"
    )
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
    def api_keys(self) -> list[Key]:
        """The keys that stand in the settings.

        Raises
        ------
        ConfigurationError
            When a hash is malformed.
        """
        return parse_api_keys(self.bridge_api_keys.get_secret_value())

    def keyring(self) -> Keyring:
        """Return all keys that open the gateway.

        Raises
        ------
        ConfigurationError
            When one is malformed, or the file of keys cannot be read.
        """
        anonymous = self.bridge_allow_anonymous
        return Keyring(self.api_keys, self.bridge_keys_file, anonymous=anonymous)

    @property
    def limits(self) -> Limits:
        """What a caller may have whose key says nothing else.

        Raises
        ------
        ConfigurationError
        """
        return limits_with(parse_limits(self.bridge_limits), Limits())

    @property
    def browsers(self) -> Browsers:
        """Which pages may ask.

        Raises
        ------
        ConfigurationError
        """
        return Browsers(self.bridge_host, self.bridge_hosts, self.bridge_origins)

    def check_exposure(self) -> None:
        """Refuse to listen for other machines without a key.

        Raises
        ------
        ConfigurationError
            When the address is not loopback and neither a key nor anonymous access is set.
        """
        if self.bridge_allow_anonymous or is_loopback(self.bridge_host) or self.keyring().asks:
            return
        raise ConfigurationError(
            f"{self.bridge_host} can be reached by other machines, and no API key is set.",
            hint="Add one: qmt-gateway keys add NAME. Or set QMT_BRIDGE_API_KEYS to one or more "
            "keys, or QMT_BRIDGE_ALLOW_ANONYMOUS=true to serve everyone, or "
            "QMT_BRIDGE_HOST=127.0.0.1 to serve this machine only.",
        )
