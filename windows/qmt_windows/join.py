"""Joining a bridge: the line that the Linux side prints becomes this machine's ``qmt.toml``."""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import redis

from qmt_protocol.errors import ConfigurationError
from qmt_protocol.keys import Keys
from qmt_protocol.settings import RedisSettings
from qmt_runtime.connections import connect

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["Checked", "JoinLine", "check_servers", "parse_join_line", "write_config"]

_HEAD: Final = re.compile(r"qmt(\d{1,4})\.([A-Za-z0-9_-]*={0,2})", re.ASCII)
_VERSION: Final = 1
_URLS: Final = ("streams", "worker_streams", "jobs")
_TIMEOUT_S: Final = 4.0
_CLOCK_WARN_S: Final = 2.0
_AGAIN: Final = "Copy the whole line that docker/join prints on the Linux machine · 请整行复制"


@dataclass(frozen=True)
class JoinLine:
    """What a join line holds; its text never shows a password."""

    streams: str
    worker_streams: str
    jobs: str
    prefix: str

    def __repr__(self) -> str:
        return f"JoinLine({urlsplit(self.streams).hostname}, prefix={self.prefix!r})"

    @property
    def settings(self) -> dict[str, str]:
        """The settings it stands for."""
        return {
            "streams_url": self.streams,
            "worker_streams_url": self.worker_streams,
            "jobs_url": self.jobs,
            "prefix": self.prefix,
        }


def parse_join_line(text: str) -> JoinLine:
    """Read a join line; blanks, line breaks and quotes from copying do not matter.

    Raises
    ------
    ConfigurationError
        When it is none; the message says what is wrong with it and shows nothing of it.
    """
    line = re.sub(r"[\s'\"“”‘’\u200b\ufeff]", "", text)
    found = _HEAD.fullmatch(line)
    if found is None:
        raise _wrong(
            "it does not begin with 'qmt1.'"
            if not re.match(r"qmt\d+\.", line)
            else "it has characters that none has"
        )
    if int(found[1]) != _VERSION:
        raise ConfigurationError(
            f"The join line is of version {found[1]}, this program reads {_VERSION}.",
            hint="Update this machine's qmt-bridge · 请先升级本机程序",
        )
    body = found[2].rstrip("=")
    try:
        document = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    except (binascii.Error, ValueError):
        raise _wrong("a part of it is missing or changed · 不完整或被改动") from None
    if not isinstance(document, dict) or document.get("v") != _VERSION:
        raise _wrong("what it holds is not of version 1")
    for name in _URLS:
        _check_url(name, document.get(name))
    prefix = document.get("prefix", "qmt")
    if not isinstance(prefix, str):
        raise _wrong("its prefix is no text")
    Keys(prefix)
    return JoinLine(document["streams"], document["worker_streams"], document["jobs"], prefix)


def _check_url(name: str, url: object) -> None:
    if not isinstance(url, str):
        raise _wrong(f"it has no address called {name}")
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("redis", "rediss") and parts.hostname and parts.port != 0
    except ValueError:
        usable = None
    if not usable:
        raise _wrong(f"{name} is no redis:// address")


def _wrong(what: str) -> ConfigurationError:
    return ConfigurationError(
        f"This is not a join line (接入码无效): {what}.",
        hint=_AGAIN,
    )


def write_config(path: Path, settings: Mapping[str, str]) -> None:
    """Write settings into ``qmt.toml``, keeping its other lines; only its user may read it.

    Raises
    ------
    ConfigurationError
        When it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        before = path.read_text(encoding="utf-8-sig") if path.exists() else ""
        text = _with_settings(before, settings)
        tomllib.loads(text)
        fresh = path.with_name(path.name + ".new")
        with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", **_TEXT) as to:
            to.write(text)
        _only_for_its_user(fresh)
        os.replace(fresh, path)
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"{path} cannot be changed: {error}.",
            hint="Close it in the editor; it must be TOML in UTF-8 · 文件须为 UTF-8 的 TOML",
        ) from error


_TEXT: Final[dict[str, Any]] = {"encoding": "utf-8", "newline": "\n"}


def _with_settings(before: str, settings: Mapping[str, str]) -> str:
    """Return the file's text with these settings and all its other lines."""
    ours = re.compile(rf"\s*({'|'.join(map(re.escape, settings))})\s*=")
    kept: list[str] = []
    in_table = False
    for line in before.splitlines():
        in_table = in_table or line.lstrip().startswith("[")
        if in_table or not ours.match(line):
            kept.append(line)
    # A string of JSON is one of TOML too.
    new = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
    return "\n".join([*new, *kept]).rstrip("\n") + "\n"


def _only_for_its_user(path: Path) -> None:
    """Let nobody else read it on Windows, where the mode says nothing."""
    user = os.environ.get("USERNAME", "")
    if sys.platform == "win32" and user:
        subprocess.run(
            ["icacls", str(path), "/inheritance:r", "/grant:r", f"{user}:F"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=15,
            check=False,  # the profile folder is the user's own anyway
        )


@dataclass(frozen=True)
class Checked:
    """How one connection went."""

    what: str
    wrong: str = ""
    """In plain words; ``""``: nothing."""
    remark: str = ""
    latency_ms: float = 0.0


def check_servers(settings: RedisSettings, worker_streams_url: str) -> list[Checked]:
    """Try both servers with each role's user, doing what that role does first."""
    keys = settings.keys
    return [
        _check(
            "streams as producer · 行情 Redis（采集）",
            settings.streams_url,
            lambda server: server.hget(keys.status, "nobody"),
        ),
        _check(
            "streams as worker · 行情 Redis（历史）",
            worker_streams_url or settings.streams_url,
            lambda server: server.time(),
        ),
        _check(
            "jobs as worker · 任务 Redis",
            settings.jobs_url,
            lambda server: server.llen("rq:queue:qmt-query"),
        ),
    ]


def _check(what: str, url: str, use: Any) -> Checked:
    try:
        with connect(url, timeout_s=_TIMEOUT_S) as server:
            server.ping()
            began = time.perf_counter()
            redis_time: Any = server.time()
            trip_s = time.perf_counter() - began
            now_s = time.time() - trip_s / 2
            use(server)
    except (redis.RedisError, OSError, ValueError) as error:
        return Checked(what, _in_words(error, url))
    off_s = now_s - (redis_time[0] + redis_time[1] / 1e6)
    remark = ""
    if abs(off_s) > _CLOCK_WARN_S:
        ahead = "ahead · 快" if off_s > 0 else "behind · 慢"
        remark = (
            f"this machine's clock is {abs(off_s):.1f} s {ahead}: synchronise it "
            "(w32tm /resync) · 请校准本机时间"
        )
    return Checked(what, remark=remark, latency_ms=trip_s * 1000)


def _in_words(error: Exception, url: str) -> str:
    """Return what keeps a connection from working, and what to do about it."""
    parts = urlsplit(url)
    where = f"{parts.hostname}:{parts.port or 6379}"
    user = parts.username or "default"
    cause: BaseException | None = error
    causes: list[BaseException] = []
    while cause is not None and len(causes) < 8:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    text = str(error)
    if isinstance(error, redis.AuthenticationError) or "WRONGPASS" in text:
        return (
            f"{where} does not take the password of {user}: print a new join line on Linux "
            "· 密码不对，请在 Linux 上重新生成接入码"
        )
    if isinstance(error, redis.exceptions.NoPermissionError) or "NOPERM" in text:
        return f"{where}: {user} lacks rights (ACL of an older version?) · 权限不足: {text}"
    if isinstance(error, redis.exceptions.InvalidResponse):
        return f"{where}: something else than Redis answers there · 那里应答的不是 Redis"
    if any(isinstance(one, socket.gaierror) for one in causes):
        return f"the name {parts.hostname} is not known here · 主机名无法解析"
    if any(isinstance(one, ConnectionRefusedError) for one in causes):
        return (
            f"{where} refuses: no Redis listens there; is it started, is the port open to this "
            "machine (QMT_REDIS_ADDRESS in docker/.env)? · 连接被拒绝，Redis 未启动或端口未开放"
        )
    if any(isinstance(one, (TimeoutError, redis.TimeoutError)) for one in causes):
        return (
            f"{where} does not answer: no route, or a firewall drops it "
            "· 无响应，请检查网络与防火墙"
        )
    if isinstance(error, redis.ConnectionError) and any(isinstance(one, OSError) for one in causes):
        return f"{where} cannot be reached · 无法到达: {text}"
    return f"{where}: {text}"
