"""Addresses as people set them: what cannot be used is refused, nothing of a password is shown."""

from __future__ import annotations

from urllib.parse import quote

import pytest
import redis

from qmt_protocol.errors import ConfigurationError
from qmt_protocol.urls import address_of, check_http_url, check_redis_url

NASTY = "p#w@x/y%z:q w?[中]"


@pytest.mark.parametrize(
    "url",
    [
        "",
        " ",
        "192.168.1.10:6379",
        "http://h:8000",
        "REDIS://h",
        "redis://",
        "redis://:6379",
        "redis://u:secret@:6379/0",
        "redis://h:abc/0",
        "redis://h:0",
        "redis://h:65536",
        "redis://h:6379/abc",
        "redis://h:6379/0/1",
        "redis://h:6379/0#x",
        "redis://h:6379?db=x",
        "redis://h:6379?sokket_timeout=3",
        "redis://h:6379?protocol=3",
        "redis://ho st:6379",
        "redis://[::1:6379",
        "redis://::1:6379",
        "redis://u:sec#ret@h:6379/0",
        "redis://u:sec/ret@h:6379/0",
        "redis://u:sec?ret@h:6379/0",
        "redis://u:sec[ret@h:6379/0",
        "redis://u:sec ret@h:6379/0",
        "redis://u:sec\tret@h:6379/0",
        "redis://u:secret",
        "unix://",
        '"redis://u:secret@h:6379/0"',
    ],
)
def test_a_redis_url_that_cannot_be_used(url: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        check_redis_url(url, "QMT_STREAMS_URL")
    told = str(refused.value)
    assert told.startswith("QMT_STREAMS_URL cannot be used: ")
    assert "sec" not in told
    assert refused.value.hint
    if any(f"sec{one}ret" in url for one in "#/?["):
        assert "%23" in told


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://h", "h:6379"),
        ("redis://u:secret@192.168.1.10:6380/3", "192.168.1.10:6380"),
        ("redis://[::1]:6379/0", "[::1]:6379"),
        ("rediss://h:6379/0?ssl_cert_reqs=none", "h:6379"),
        ("redis://:secret@h/", "h:6379"),
        ("redis://h:6379?db=2&client_name=me", "h:6379"),
        ("unix:///run/redis.sock?db=1", "/run/redis.sock"),
        ("redis://u:a:b@c@h:6379/0", "h:6379"),
    ],
)
def test_a_redis_url_that_can(url: str, address: str) -> None:
    assert check_redis_url(url, "url") == url
    assert address_of(url) == address
    redis.ConnectionPool.from_url(url)  # or it raises


def test_an_encoded_password_arrives_as_it_is() -> None:
    url = f"redis://{quote(NASTY, safe='')}:{quote(NASTY, safe='')}@h:6379/0"
    told = redis.ConnectionPool.from_url(check_redis_url(url, "url")).connection_kwargs
    assert (told["username"], told["password"], told["host"]) == (NASTY, NASTY, "h")


@pytest.mark.parametrize(
    "url", ["", "h:80", "ftp://h", "http://", "http://h:abc", "http://ho st", "http://[::1"]
)
def test_an_http_url_that_cannot_be_used(url: str) -> None:
    with pytest.raises(ConfigurationError, match="alert_urls cannot be used"):
        check_http_url(url, "alert_urls")


def test_an_http_url_that_can() -> None:
    url = "https://oapi.dingtalk.com/robot/send?access_token=1#2".partition("#")[0]
    assert check_http_url(url, "url") == url
    assert address_of(url) == "oapi.dingtalk.com:443"
