"""`/readyz`: 200 while both Redis servers serve the gateway, else which one does not, and why."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from away_rig import PROGRAMS, Servers, start
from ill_servers import IllServer, Refusal
from waiting import wait_for

REASONS: Final[dict[Refusal, str]] = {
    "absent": "it cannot be reached",
    "hung": "no answer within 2 s",
    "LOADING": "it loads its data",
    "WRONGPASS": "it refuses the user, the password or a command",
    "NOPERM": "it refuses the user, the password or a command",
}


class Gateway:
    def __init__(self, url: str) -> None:
        self.url = url

    def ask(self, path: str = "/readyz") -> httpx.Response:
        return httpx.get(self.url + path, trust_env=False, timeout=30)

    def says(self, server: str) -> str:
        """Return why a server is not ready; the other one is."""
        answer = self.ask()
        told: dict[str, Any] = answer.json()
        assert answer.status_code == (200 if told["ready"] else 503)
        (other,) = {"streams", "jobs"} - {server}
        assert told[other] == {"ready": True, "reason": ""}
        assert told[server]["ready"] == (not told[server]["reason"]) == told["ready"]
        for secret in ("127.0.0.1", "default", "secret-of"):
            assert secret not in answer.text
        return str(told[server]["reason"])


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[dict[str, IllServer]]:
    both = Servers(tmp_path)
    ill = {name: IllServer(getattr(both, name)) for name in ("streams", "jobs")}
    with ExitStack() as stack:
        for one in ill.values():
            stack.callback(one.server.kill)
            stack.callback(one.stop_loading)
            one.start()
        yield ill


@pytest.fixture
def gateway(servers: dict[str, IllServer], tmp_path: Path) -> Iterator[Gateway]:
    with running_gateway(servers, tmp_path) as url:
        yield Gateway(url)


@contextmanager
def running_gateway(servers: dict[str, IllServer], folder: Path) -> Iterator[str]:
    urls = {name: one.server.url for name, one in servers.items()}
    run = start(PROGRAMS["gateway"], signal.SIGTERM, folder / "gateway", urls)
    try:
        wait_for(lambda: run.ended or PROGRAMS["gateway"].works in run.told, "the gateway")
        yield run.first_line["url"]
    finally:
        run.tell()
        run.process.wait(60)
        assert "Traceback" not in run.told


@pytest.mark.parametrize("name", ["streams", "jobs"])
def test_each_way_of_not_serving_has_its_reason(
    gateway: Gateway, servers: dict[str, IllServer], name: str
) -> None:
    server = servers[name]
    # A server with a full disk is read from, and takes no jobs.
    full = "it refuses: MISCONF" if name == "jobs" else ""
    reasons: dict[Refusal, str] = {**REASONS, "MISCONF": full}
    wait_for(lambda: gateway.says(name) == "", "ready")
    for refusal, reason in reasons.items():
        server.refuse(refusal)
        wait_for(partial(_says, gateway, name, reason), f"{refusal}: {reason}")
        assert gateway.ask("/healthz").status_code == 200
        server.serve(refusal)
        wait_for(partial(_says, gateway, name, ""), f"ready after {refusal}")


def _says(gateway: Gateway, name: str, reason: str) -> bool:
    return gateway.says(name) == reason
