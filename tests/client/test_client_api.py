"""The public face: names, signatures, and where a client reads."""

from __future__ import annotations

import asyncio
import inspect
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import qmt_client
from qmt_client import AsyncQMTClient, AsyncReplay, QMTClient, Replay
from qmt_client.http_transport import HttpTransport
from qmt_client.settings import find_target
from qmt_protocol.errors import ConfigurationError, InvalidRequest
from qmt_reading.redis_transport import RedisTransport


def public(kind: type) -> dict[str, Callable[..., object]]:
    return {
        name: getattr(kind, name)
        for name in dir(kind)
        if not name.startswith("_") and callable(getattr(kind, name))
    }


def test_exported_names() -> None:
    assert set(qmt_client.__all__) == {
        "NOW_LIVE",
        "AsyncLive",
        "AsyncQMTClient",
        "AsyncReplay",
        "Bar",
        "Gap",
        "HistoryFrames",
        "Live",
        "NowLive",
        "Process",
        "QMTClient",
        "QMTError",
        "QMTWarning",
        "Replay",
        "Status",
        "Tick",
        "Ticks",
        "errors",
        "to_frame",
        "types",
    }
    assert all(hasattr(qmt_client, name) for name in qmt_client.__all__)


def test_both_clients_have_the_same_names_and_arguments() -> None:
    sync, asynchronous = public(QMTClient), public(AsyncQMTClient)
    assert sorted(sync) == sorted(asynchronous)
    for name, method in sync.items():
        mine, other = inspect.signature(method), inspect.signature(asynchronous[name])
        assert list(mine.parameters.values()) == list(other.parameters.values()), name
        if name not in ("ticks", "bars", "replay", "stored_ticks", "stored_bars"):
            assert mine.return_annotation == other.return_annotation, name
    for name in set(public(Replay)) - {"close"}:
        mine, other = (inspect.signature(getattr(one, name)) for one in (Replay, AsyncReplay))
        assert mine.parameters == other.parameters, name
    init = inspect.signature(QMTClient.__init__), inspect.signature(AsyncQMTClient.__init__)
    assert init[0].parameters == init[1].parameters


def test_only_subscribing_and_asyncio_need_await() -> None:
    waits = {
        name for name, method in public(QMTClient).items() if inspect.iscoroutinefunction(method)
    }
    assert waits == {"subscribe_realtime"}
    plain = {
        name
        for name, method in public(AsyncQMTClient).items()
        if not inspect.iscoroutinefunction(method)
    }
    assert plain == {"bars", "replay", "ticks"}


@pytest.mark.parametrize("kind", [QMTClient, AsyncQMTClient, AsyncReplay, Replay])
def test_everything_public_is_documented(kind: type) -> None:
    assert kind.__doc__
    assert "Parameters" in kind.__doc__ or "eplay" in kind.__name__
    for name, method in public(kind).items():
        assert method.__doc__, name
    assert "AsyncQMTClient" in str(QMTClient.__doc__)


@pytest.fixture
def no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """Neither variables nor a file say where to read."""
    for name in ("QMT_URL", "QMT_STREAMS_URL", "QMT_JOBS_URL", "QMT_PREFIX", "QMT_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return monkeypatch


def test_where_a_client_reads(no_settings: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert find_target().url == "http://127.0.0.1:8000"
    assert find_target(host="192.168.1.100").url == "http://192.168.1.100:8000"
    assert find_target(host="nas", port=9000).url == "http://nas:9000"
    assert find_target("redis://nas:6379/0").jobs_url is None
    no_settings.setenv("QMT_JOBS_URL", "redis://jobs:6380/0")
    assert find_target("redis://nas:6379/0").jobs_url == "redis://jobs:6380/0"
    no_settings.setenv("QMT_STREAMS_URL", "redis://nas:6379/0")
    assert find_target().url == "redis://nas:6379/0"
    no_settings.setenv("QMT_URL", "https://gateway")
    assert find_target().url == "https://gateway"
    assert find_target(host="other").url == "http://other:8000"
    assert find_target("redis://mine", jobs_url="redis://j", prefix="p").prefix == "p"
    no_settings.delenv("QMT_URL")
    no_settings.delenv("QMT_STREAMS_URL")
    no_settings.delenv("QMT_JOBS_URL")
    (tmp_path / "qmt.toml").write_text('url = "redis://filed:1"\napi_key = "k"\n')
    assert find_target().url == "redis://filed:1"
    assert find_target().api_key == "k"


@pytest.mark.parametrize(
    "arguments",
    [
        {"url": "ftp://nas"},
        {"url": "nas:8000"},
        {"url": "http://nas", "host": "nas"},
        {"url": "redis://nas", "prefix": "a b"},
        {"url": "redis://:secret@nas:port"},
    ],
)
def test_an_address_that_cannot_be_used(
    no_settings: pytest.MonkeyPatch, arguments: dict[str, str]
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        QMTClient(**arguments)  # type: ignore[arg-type]
    assert "secret" not in str(caught.value)


def test_other_time_zones_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="UTC"):
        QMTClient("redis://nas", tz="UTC")


async def test_the_url_chooses_the_transport() -> None:
    async with AsyncQMTClient("redis://nas") as over_redis:
        assert isinstance(over_redis.transport, RedisTransport)
        assert over_redis.transport.address == "nas:6379"
    async with AsyncQMTClient("https://nas:8443") as over_http:
        assert isinstance(over_http.transport, HttpTransport)
        assert over_http.transport.address == "nas:8443"


def test_a_closed_client_says_so_and_its_thread_ends() -> None:
    before = threading.active_count()
    client = QMTClient("redis://127.0.0.1:1")
    assert threading.active_count() == before + 1
    client.close()
    client.close()
    assert threading.active_count() == before
    with pytest.raises(RuntimeError, match="closed"):
        client.status()


def test_works_inside_a_running_loop() -> None:
    async def notebook() -> int:
        with QMTClient("redis://127.0.0.1:1") as client, pytest.raises(qmt_client.QMTError):
            client.status()
        return 1

    assert asyncio.run(notebook()) == 1


def test_a_program_that_forgets_to_close_ends_without_a_word() -> None:
    script = (
        "from qmt_client import QMTClient, QMTError\n"
        "client = QMTClient('redis://127.0.0.1:1')\n"
        "try:\n    client.status()\nexcept QMTError as error:\n    print(type(error).__name__)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, timeout=30
    )
    assert (ended.stdout, ended.stderr, ended.returncode) == ("RedisUnavailable\n", "", 0)


def test_importing_the_client_loads_no_server_and_no_terminal() -> None:
    script = (
        "import sys, qmt_client, qmt_client.cli\n"
        "heavy = ('fastapi', 'uvicorn', 'xtquant', 'pandas', 'pyarrow', 'rq', 'httpx')\n"
        "print([name for name in heavy if name in sys.modules])\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True
    )
    assert ended.stdout == "[]\n"
