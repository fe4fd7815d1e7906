"""``qmt-gateway``: serve until Ctrl-C, SIGTERM or the end of standard input."""

from __future__ import annotations

import json
import logging
import os
import socket
import sys

import structlog
import uvicorn

from qmt_protocol.errors import ConfigurationError
from qmt_protocol.process import (
    rest_the_collector,
    start_logging,
    when_stdin_ends,
    when_told_to_stop,
)
from qmt_protocol.settings import load_settings

from .app import create_app
from .settings import GatewaySettings
from .websocket_protocol import WebSocketProtocol

__all__ = ["main"]

_GRACE_S = 5
_BACKLOG = 2048
_log = structlog.get_logger(__name__)


class _Server(uvicorn.Server):
    """Says on standard output that it is ready, and where."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and sockets:
            host, port = sockets[0].getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            url = f"http://{shown}:{port}"
            rest_the_collector()
            print(json.dumps({"ready": True, "port": port, "url": url}), flush=True)
            _log.info("serving", url=url, docs=f"{url}/docs")

    def stop(self) -> None:
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        live = getattr(self.config.app.state, "live", None)  # type: ignore[union-attr]
        if live is not None:
            await live.say_goodbye()
        await super().shutdown(sockets)


def main(arguments: list[str] | None = None) -> None:
    """Run the gateway; ends the process with 2 when it cannot start as it is configured."""
    try:
        settings = load_settings(GatewaySettings, arguments)
        start_logging(settings.log_level)
        # uvicorn logs WebSocket paths with their query at info, and a query may hold a key.
        logging.getLogger("uvicorn").setLevel(max(logging.root.level, logging.WARNING))
        app = create_app(settings)
        listener = _listen(settings.bridge_host, settings.bridge_port)
    except ConfigurationError as error:
        print(f"qmt-gateway: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    server = _Server(
        uvicorn.Config(
            app,
            ws=WebSocketProtocol,
            ws_per_message_deflate=False,
            ws_max_size=1_000_000,
            ws_ping_timeout=60.0,  # a slow reader is conflated, not dropped
            access_log=False,
            log_config=None,
            server_header=False,
            timeout_graceful_shutdown=_GRACE_S,
        )
    )
    if settings.exit_with_stdin:
        when_stdin_ends(server.stop)
    when_told_to_stop(server.stop)  # uvicorn stops in order, then raises the signal again
    try:
        server.run(sockets=[listener])
    finally:
        listener.close()


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        # With the protocol named: asyncio turns Nagle's delay off only then, and with it each
        # answer waits 40 ms for an acknowledgement.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address[:2])
        listener.listen(_BACKLOG)
        return listener
    except OSError as error:
        raise ConfigurationError(
            f"Cannot listen on {host}:{port}: {error.strerror or error}.",
            hint="Set QMT_BRIDGE_HOST and QMT_BRIDGE_PORT, or --host and --port.",
        ) from error


if __name__ == "__main__":
    main()
