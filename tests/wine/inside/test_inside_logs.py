"""Log files of `qmt-windows`: Windows refuses to rename one that anybody else has open."""

from __future__ import annotations

from pathlib import Path

import pytest

from qmt_windows.logs import LineLog, Masker


def test_a_log_rotates_and_waits_while_another_program_has_it_open(tmp_path: Path) -> None:
    path = tmp_path / "日志" / "producer.log"
    log = LineLog(path, max_mb=0.001, files=2, masker=Masker(["secret-one"]))
    lines = [f"第 {number} 行 secret-one" for number in range(600)]
    for line in lines[:300]:
        log.write(line)
    assert sorted(one.name for one in path.parent.iterdir()) == [
        "producer.log",
        "producer.log.1",
        "producer.log.2",
    ]
    with open(path, encoding="utf-8") as held:
        with pytest.raises(PermissionError):
            path.rename(path.with_name("elsewhere"))
        for line in lines[300:]:
            log.write(line)
        assert lines[-1].replace("secret-one", "***") in held.read()
    log.close()
    assert "secret-one" not in "".join(one.read_text("utf-8") for one in path.parent.iterdir())
