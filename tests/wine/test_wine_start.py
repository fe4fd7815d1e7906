"""How the roles start on Windows: time zone, code pages, wrong settings."""

from __future__ import annotations

from pathlib import Path

import pytest
from wine_environment import WinePython, windows_path

ROLES = ("qmt_producer", "qmt_worker")
SAYS = """
from qmt_producer.__main__ import main
from qmt_runtime.process import start_logging
import structlog, logging
start_logging("info")
structlog.get_logger("一").info("无法连接xtquant服务", reason="请检查QMT")
try:
    raise RuntimeError("行情服务连接断开")
except RuntimeError:
    logging.getLogger("rq").exception("出错")
print(main([]))
"""


def test_another_time_zone_is_refused(windows: WinePython) -> None:
    roles = {role: windows.start("-m", role, env={"TZ": "UTC"}) for role in ROLES}
    for role, process in roles.items():
        out, _ = process.communicate(b"", 180)
        assert process.returncode == 2, (role, out)
        assert b"not China Standard Time" in out
        assert b"Traceback" not in out


@pytest.mark.parametrize("encoding", ["cp936", "cp1252"])
def test_chinese_text_on_an_old_code_page_ends_nothing(
    windows: WinePython, tmp_path: Path, encoding: str
) -> None:
    config = tmp_path / "设置.toml"
    config.write_text("markets = ''\nring = '行情'\n", "utf-8")
    env = {
        "PYTHONUTF8": "0",
        "PYTHONIOENCODING": encoding,
        "QMT_CONFIG": windows_path(config),
    }
    code, out, err = windows.run("-c", SAYS, env=env)
    assert (code, out.strip()) == (0, b"2"), err
    assert b"markets" in err
    assert b"UnicodeEncodeError" not in err
