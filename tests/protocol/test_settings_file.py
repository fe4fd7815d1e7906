"""``qmt.toml`` as people's editors leave it behind."""

from pathlib import Path

import pytest

from qmt_protocol.errors import ConfigurationError
from qmt_protocol.settings import TerminalSettings, load_settings


def load(file: Path, written: bytes, monkeypatch: pytest.MonkeyPatch) -> TerminalSettings:
    file.write_bytes(written)
    monkeypatch.setenv("QMT_CONFIG", str(file))
    return load_settings(TerminalSettings, [])


def test_the_mark_that_windows_puts_in_front(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "terminal_path = 'D:\\国金QMT交易端'\r\nterminal_programs = 'a.exe, b.exe'\r\n"
    settings = load(tmp_path / "qmt.toml", b"\xef\xbb\xbf" + text.encode(), monkeypatch)
    assert str(settings.terminal_path) == "D:\\国金QMT交易端"
    assert settings.terminal_programs == ["a.exe", "b.exe"]
    listed = load(tmp_path / "qmt.toml", b"terminal_programs = ['a.exe']", monkeypatch)
    assert listed.terminal_programs == ["a.exe"]


def test_a_path_that_is_left_empty_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QMT_CALENDAR_FILE", "")
    settings = load(tmp_path / "qmt.toml", b"terminal_path = ''", monkeypatch)
    assert settings.calendar_file is None
    assert settings.terminal_path is None


@pytest.mark.parametrize(
    ("written", "told"),
    [
        (b'ok = 1\nterminal_path = "D:\\QMT"\n', "line 2"),
        ("terminal_path = 'D:\\国金'".encode("gbk"), "utf-8"),
        (b"just words", "line 1"),
    ],
)
def test_a_file_that_is_wrong_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: bytes, told: str
) -> None:
    with pytest.raises(ConfigurationError, match=told) as caught:
        load(tmp_path / "qmt.toml", written, monkeypatch)
    assert "qmt.toml" in caught.value.message
    assert "UTF-8" in caught.value.hint
