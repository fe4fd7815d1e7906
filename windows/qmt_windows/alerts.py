"""Sends alerts to webhooks: 企业微信, 钉钉, Bark, or JSON of our own."""

from __future__ import annotations

import base64
import hashlib
import hmac
import queue
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote_plus, urlsplit

import httpx
import structlog

from qmt_protocol.times import to_datetime
from qmt_protocol.urls import check_http_url

from .troubles import Alert
from .words import CHILD_STATES, TERMINAL_STATES, TODO

__all__ = ["Alerts", "Webhook", "parse_webhook", "title_and_body"]

_TIMEOUT_S: Final = 10.0
_TRIES: Final = 3
_WAIT_S: Final = (2.0, 8.0)
_MOST_WAITING: Final = 100
_KINDS: Final = ("wecom", "dingtalk", "bark", "post")
_KNOWN_HOSTS: Final = {
    "qyapi.weixin.qq.com": "wecom",
    "oapi.dingtalk.com": "dingtalk",
    "api.day.app": "bark",
}
_KIND_WORDS: Final = {
    "terminal": ("终端", "terminal"),
    "terminals": ("终端", "terminals"),
    "redis": ("Redis", "Redis"),
    "producer": ("采集进程", "producer"),
    "worker": ("历史进程", "worker"),
    "calendar": ("交易日历", "calendar"),
}
_OTHER_STATES: Final = {
    "away": ("连不上，行情暂存本机", "away: ticks wait in the ring"),
    "crashed": ("意外结束，正在自动重启", "ended unexpectedly and is started again"),
    "aborted": ("被原生库中止，正在自动重启", "aborted by its native library, is started again"),
    "wrong": (
        "calendar.toml 有误，改好后自动重新读取",
        "its file is wrong: it is read again once it is mended",
    ),
    "differ": (
        "采集与历史连接到不同终端，历史已停",
        "producer and worker sit on different ones; the worker was stopped",
    ),
}

_log: Final = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Webhook:
    """Where an alert goes."""

    kind: str
    url: str

    @property
    def name(self) -> str:
        """What logs call it: a webhook's path and query are its key."""
        return f"{self.kind}:{urlsplit(self.url).hostname}"


def parse_webhook(text: str) -> Webhook:
    """Read a setting: a URL, with its kind before it or known by its host.

    Raises
    ------
    ConfigurationError
        When it is no URL.
    """
    kind, _, rest = text.partition(":")
    url = rest if kind in _KINDS else text
    host = urlsplit(check_http_url(url, "An entry of alert_urls (QMT_ALERT_URLS)")).hostname
    return Webhook(kind if kind in _KINDS else _KNOWN_HOSTS.get(host or "", "post"), url)


def title_and_body(alert: Alert, host: str) -> tuple[str, str]:
    """Return an alert in words, Chinese first."""
    chinese_kind, english_kind = _KIND_WORDS.get(alert.kind, (alert.kind, alert.kind))
    if alert.well:
        chinese, english = "恢复正常", "well again"
    else:
        words = {**TERMINAL_STATES, **CHILD_STATES, **_OTHER_STATES}
        chinese, english = words.get(alert.state, (alert.state, alert.state))
    mark = "[模拟 SIMULATED] " if alert.simulated else ""
    title = f"{mark}QMT Bridge {host}：{chinese_kind}{chinese}"
    lines = [f"{chinese_kind}: {chinese}", f"{english_kind}: {english}"]
    if alert.reason:
        lines.append(f"原因 reason: {alert.reason}")
    if alert.kind == "terminal" and alert.state in TODO:
        lines += TODO[alert.state]
    lines.append(f"{to_datetime(alert.at_ms):%Y-%m-%d %H:%M:%S} 北京时间")
    return title, "\n".join(lines)


class Alerts:
    """A thread that sends; whoever alerts never waits.

    Parameters
    ----------
    webhooks
        Where every alert goes.
    secret
        DingTalk's signing secret; ``""``: its webhook is not signed.
    """

    def __init__(self, webhooks: Sequence[Webhook], *, secret: str = "") -> None:
        self._webhooks = list(webhooks)
        self._secret = secret
        self._waiting: queue.Queue[Alert | None] = queue.Queue(_MOST_WAITING)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="alerts", daemon=True)
        self.sent = 0
        self.failed = 0

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def stop(self, timeout_s: float = 0.3) -> None:
        """Give up waiting for what does not get through; the thread ends soon."""
        self._stopping.set()
        try:
            self._waiting.put_nowait(None)
        except queue.Full:
            pass  # it looks at the event too
        self._thread.join(timeout_s)

    def send(self, alert: Alert) -> None:
        """Have an alert sent."""
        _log.warning("alert", **alert.to_dict())
        if not self._webhooks:
            return
        try:
            self._waiting.put_nowait(alert)
        except queue.Full:
            self.failed += 1
            _log.error("alert dropped: too many wait", kind=alert.kind, state=alert.state)

    def _run(self) -> None:
        with httpx.Client(timeout=_TIMEOUT_S) as client:
            while (alert := self._waiting.get()) is not None:
                for webhook in self._webhooks:
                    through = self._deliver(client, webhook, alert)
                    if not through and self._stopping.is_set():
                        return

    def _deliver(self, client: httpx.Client, webhook: Webhook, alert: Alert) -> bool:
        for attempt in range(_TRIES):
            if attempt and self._stopping.wait(_WAIT_S[attempt - 1]):
                return False
            wrong, again = _post(client, *self._request(webhook, alert))
            if not wrong:
                self.sent += 1
                return True
            _log.warning("webhook did not take it", webhook=webhook.name, reason=wrong)
            if not again:
                break
        self.failed += 1
        return False

    def _request(self, webhook: Webhook, alert: Alert) -> tuple[str, dict[str, Any]]:
        host = socket.gethostname()
        title, body = title_and_body(alert, host)
        if webhook.kind == "post":
            at = to_datetime(alert.at_ms).isoformat()
            fields = alert.to_dict()
            del fields["at_ms"]
            return webhook.url, {**fields, "host": host, "at": at}
        if webhook.kind == "bark":
            return webhook.url, {"title": title, "body": body}
        url = webhook.url
        if webhook.kind == "dingtalk" and self._secret:
            url = _signed(url, self._secret, time.time_ns() // 1_000_000)
        return url, {"msgtype": "text", "text": {"content": f"{title}\n{body}"}}


def _signed(url: str, secret: str, now_ms: int) -> str:
    """Return DingTalk's URL with time and signature (open.dingtalk.com, 自定义机器人 加签)."""
    digest = hmac.new(secret.encode(), f"{now_ms}\n{secret}".encode(), hashlib.sha256).digest()
    sign = quote_plus(base64.b64encode(digest))
    return f"{url}{'&' if '?' in url else '?'}timestamp={now_ms}&sign={sign}"


def _post(client: httpx.Client, url: str, document: dict[str, Any]) -> tuple[str, bool]:
    """Return ``""`` or what was wrong, and whether to try again."""
    try:
        answer = client.post(url, json=document)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return type(error).__name__, not isinstance(error, httpx.InvalidURL)
    if answer.status_code >= 400:
        return f"HTTP {answer.status_code}", answer.status_code >= 500 or answer.status_code == 429
    try:
        fields = answer.json()
    except ValueError:
        return "", False
    # 企业微信 and 钉钉 refuse with 200 and errcode, Bark with code.
    if isinstance(fields, dict):
        if fields.get("errcode"):
            return f"errcode {fields['errcode']}: {fields.get('errmsg', '')}", True
        if isinstance(fields.get("code"), int) and fields["code"] >= 400:
            return f"code {fields['code']}: {fields.get('message', '')}", True
    return "", False
