"""Webhooks: a real HTTP server takes them as 企业微信, 钉钉, Bark and our own do."""

from __future__ import annotations

import base64
import hashlib
import hmac
import logging
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from waiting import wait_for
from windows_rig import Receiver

from qmt_protocol.errors import ConfigurationError
from qmt_protocol.times import parse_start
from qmt_windows.alerts import Alerts, parse_webhook, title_and_body
from qmt_windows.logs import Masker, log_to_file
from qmt_windows.troubles import Alert

AT_MS = parse_start("2026-11-20 08:30") or 0
LOGIN = Alert("terminal", "waiting_for_login", "窗口在等密码", AT_MS)


def deliver(alerts: Alerts, done: Callable[[], bool]) -> None:
    alerts.start()
    try:
        wait_for(done, "it is delivered")
    finally:
        alerts.stop()


def test_each_kind_gets_its_own_shape(receiver: Receiver) -> None:
    hooks = [
        parse_webhook(f"{kind}:{receiver.url}/{kind}?key=token-of-{kind}")
        for kind in ("wecom", "dingtalk", "bark", "post")
    ]
    alerts = Alerts(hooks, secret="SEC-of-a-robot")
    alerts.send(LOGIN)
    deliver(alerts, lambda: alerts.sent == 4)
    wecom, dingtalk, bark, post = receiver.got
    assert wecom.path == "/wecom?key=token-of-wecom"
    assert wecom.body["msgtype"] == "text"
    assert "等待登录" in wecom.body["text"]["content"]
    assert "log in" in wecom.body["text"]["content"]
    assert "窗口在等密码" in wecom.body["text"]["content"]
    assert dingtalk.body == wecom.body
    query = parse_qs(urlsplit(dingtalk.path).query)
    stamp = query["timestamp"][0]
    assert abs(int(stamp) / 1000 - time.time()) < 60
    digest = hmac.new(b"SEC-of-a-robot", f"{stamp}\nSEC-of-a-robot".encode(), hashlib.sha256)
    assert base64.b64decode(query["sign"][0]) == digest.digest()
    assert query["key"] == ["token-of-dingtalk"]
    assert set(bark.body) == {"title", "body"}
    assert "QMT Bridge" in bark.body["title"]
    assert post.body.pop("host")
    assert post.body == {
        "kind": "terminal",
        "state": "waiting_for_login",
        "reason": "窗口在等密码",
        "at": "2026-11-20T08:30:00+08:00",
        "simulated": False,
    }


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("https://qyapi.weixin.qq.com/cgi-bin/webhook/send?key=1", "wecom"),
        ("https://oapi.dingtalk.com/robot/send?access_token=1", "dingtalk"),
        ("https://api.day.app/abcdef", "bark"),
        ("https://example.com/hook", "post"),
        ("bark:https://bark.example.com/key", "bark"),
    ],
)
def test_kind_by_prefix_or_by_host(text: str, kind: str) -> None:
    hook = parse_webhook(text)
    assert hook.kind == kind
    assert hook.url.startswith("https://")
    assert "key" not in hook.name
    assert "abcdef" not in hook.name


@pytest.mark.parametrize("text", ["qyapi.weixin.qq.com", "ftp://x/y", "wecom:", "https:///no"])
def test_what_is_no_webhook(text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_webhook(text)
    assert "alert_urls" in str(caught.value)


def test_refused_with_200_is_tried_again_and_a_bad_key_is_not(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qmt_windows.alerts._WAIT_S", (0.05, 0.05))
    busy = {"errcode": 45009, "errmsg": "too many"}
    receiver.answers = [(200, busy), (502, {}), (200, {"errcode": 0}), (404, {})]
    hook = parse_webhook(f"wecom:{receiver.url}/send")
    alerts = Alerts([hook])
    alerts.send(LOGIN)
    alerts.send(Alert("redis", "away", "", AT_MS))
    deliver(alerts, lambda: alerts.sent + alerts.failed == 2)
    assert (alerts.sent, alerts.failed) == (1, 1)
    assert len(receiver.got) == 4


def test_a_dead_webhook_keeps_nobody_waiting(tmp_path: Path, receiver: Receiver) -> None:
    """And its token stays out of the log, also out of httpx's own lines."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers[:] = []
    try:
        log = tmp_path / "windows.log"
        log_to_file(log, level="debug", max_mb=1, files=1, masker=Masker())
        dead = parse_webhook("wecom:http://127.0.0.1:9/send?key=token-nobody-may-see")
        well = parse_webhook(f"wecom:{receiver.url}/send?key=token-nobody-may-see")
        alerts = Alerts([well, dead])
        alerts.start()
        began = time.monotonic()
        for _ in range(200):
            alerts.send(LOGIN)
        alerts.stop()
        assert time.monotonic() - began < 30
        assert alerts.failed >= 95  # too many waited
        alerts._thread.join(60)
        assert not alerts._thread.is_alive(), "what does not get through is given up"
        text = log.read_text(encoding="utf-8")
        assert "wecom:127.0.0.1" in text
        assert "窗口在等密码" in text
        assert "token-nobody" not in text
    finally:
        root.handlers[0].close()
        root.handlers[:] = handlers
        root.setLevel(level)


def test_what_people_read() -> None:
    title, body = title_and_body(LOGIN, "BOX")
    assert title == "QMT Bridge BOX：终端等待登录"
    assert body.splitlines()[0] == "终端: 等待登录"
    assert "Log in by hand" in body
    assert "2026-11-20 08:30:00" in body
    title, body = title_and_body(Alert("terminal", "ok", "", AT_MS, simulated=True), "BOX")
    assert title.startswith("[模拟 SIMULATED]")
    assert "恢复正常" in title
    for kind, state in [
        ("producer", "aborted"),
        ("worker", "misconfigured"),
        ("redis", "away"),
        ("terminals", "differ"),
    ]:
        title, _ = title_and_body(Alert(kind, state, "", AT_MS), "BOX")
        assert state not in title  # in words, not by its name
