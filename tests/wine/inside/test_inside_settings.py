"""Settings from files as Windows people write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from qmt_producer.settings import ProducerSettings
from qmt_protocol.errors import ConfigurationError
from qmt_protocol.settings import load_settings

TEXT = "# 国金证券\nring = 'D:\\行情\\ring.sqlite'\nmarkets = 'SH,BJ'\n"


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "国信 QMT" / "设置.toml"
    path.parent.mkdir()
    monkeypatch.setenv("QMT_CONFIG", str(path))
    monkeypatch.delenv("QMT_RING", raising=False)
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_file_with_a_chinese_name_and_text(file: Path, encoding: str) -> None:
    file.write_text(TEXT, encoding, newline="\r\n")
    settings = load_settings(ProducerSettings, [])
    assert settings.ring == Path("D:\\行情\\ring.sqlite")
    assert settings.markets == ["SH", "BJ"]


@pytest.mark.parametrize(
    "content",
    [b"ring = 'D:\\\xd0\xd0\xc7\xe9\\ring.sqlite'\n", b'ring = "D:\\qmt\\ring.sqlite"\n'],
    ids=["gbk", "escapes"],
)
def test_what_is_no_toml_is_named(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    with pytest.raises(ConfigurationError) as caught:
        load_settings(ProducerSettings, [])
    assert str(file) in str(caught.value)


def test_a_file_of_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("QMT_CONFIG", raising=False)
    (tmp_path / "qmt.toml").write_text("prefix = 'other'\n", "utf-8")
    assert load_settings(ProducerSettings, []).prefix == "other"
