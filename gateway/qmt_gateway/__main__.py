"""``qmt-gateway``: serve until Ctrl-C, SIGTERM or the end of standard input."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import sys

import structlog
import uvicorn

from qmt_protocol.errors import ConfigurationError
from qmt_protocol.settings import load_settings
from qmt_runtime.process import (
    on_stop_signal,
    rest_the_collector,
    start_logging,
    when_stdin_ends,
)

from .accepting import accept
from .app import create_app
from .cli import keys_command
from .connections import CONNECTIONS
from .http_protocol import HttpProtocol
from .rare_log import RareRecords
from .settings import GatewaySettings
from .websocket_protocol import WebSocketProtocol

__all__ = ["main"]

_GRACE_S = 5
_BACKLOG = 2048
_log = structlog.get_logger(__name__)


class _Server(uvicorn.Server):
    """Takes connections in itself, and says on standard output that it is ready, and where."""

    def __init__(self, config: uvicorn.Config, listener: socket.socket) -> None:
        super().__init__(config)
        self._listener = listener
        self._accepting: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup([])
        if not self.started:
            return
        connections = self.lifespan.state[CONNECTIONS]
        accepting = accept(self._listener, self._protocol, connections, self.config.ssl)
        self._accepting = asyncio.create_task(accepting, name="accept")
        self._accepting.add_done_callback(self._accepted)
        host, port = self._listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        url = f"http://{shown}:{port}"
        rest_the_collector()
        print(json.dumps({"ready": True, "port": port, "url": url}), flush=True)
        _log.info("serving", url=url, docs=f"{url}/docs")

    def _protocol(self) -> asyncio.Protocol:
        return HttpProtocol(self.config, self.server_state, self.lifespan.state)

    def _accepted(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            _log.critical("no connections are taken in any more", exc_info=task.exception())
            self.stop()

    def stop(self) -> None:
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._accepting is not None:
            self._accepting.cancel()
            await asyncio.wait([self._accepting])
        self._listener.close()
        live = getattr(self.config.app.state, "live", None)  # type: ignore[union-attr]
        if live is not None:
            await live.say_goodbye()
        await super().shutdown([])


def main(arguments: list[str] | None = None) -> None:
    """Run the gateway; ends the process with 2 when it cannot start as it is configured."""
    command = sys.argv[1:] if arguments is None else arguments
    try:
        if command[:1] == ["keys"]:
            keys_command(command[1:])
            return
        settings = load_settings(GatewaySettings, arguments)
        start_logging(settings.log_level)
        # uvicorn logs WebSocket paths with their query at info, and a query may hold a key.
        logging.getLogger("uvicorn").setLevel(max(logging.root.level, logging.WARNING))
        logging.getLogger("uvicorn.error").addFilter(RareRecords())
        app = create_app(settings)
        listener = _listen(settings.bridge_host, settings.bridge_port)
    except ConfigurationError as error:
        print(f"qmt-gateway: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    server = _Server(
        uvicorn.Config(
            app,
            http=HttpProtocol,
            ws=WebSocketProtocol,
            ws_per_message_deflate=False,
            ws_max_size=1_000_000,
            ws_ping_timeout=60.0,  # a slow reader is conflated, not dropped
            access_log=False,
            log_config=None,
            server_header=False,
            # A client could name any address in X-Forwarded-For, and have the limits of each.
            proxy_headers=False,
            timeout_graceful_shutdown=_GRACE_S,
        ),
        listener,
    )
    if settings.exit_with_stdin:
        when_stdin_ends(server.stop)
    on_stop_signal(server.stop)  # uvicorn stops in order, then raises the signal again
    try:
        server.run()
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
