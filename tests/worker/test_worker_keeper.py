"""The keeper and its child without RQ: deadlines."""

from collections.abc import Iterator
from typing import Any

import pytest

from qmt_protocol.errors import InvalidRequest, TimedOut
from qmt_worker.keeper import ChildKeeper
from qmt_worker.settings import WorkerSettings


def run(keeper: ChildKeeper, name: str, params: dict[str, Any], timeout_s: float) -> Any:
    return keeper.run(
        name,
        params,
        timeout_s,
        cancelled=lambda: False,
        on_progress=lambda finished, total, message: None,
        on_chunk=lambda data: None,
    )


@pytest.fixture
def keeper(start_simulated: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("TZ", "Asia/Shanghai")
    monkeypatch.setenv("QMT_LOG_LEVEL", "error")
    simulated = start_simulated()
    running = ChildKeeper(
        WorkerSettings(terminal_port=simulated.port, native_module="qmt_simulator.native"),
        lambda: None,
    )
    running.start()
    yield running, simulated
    running.stop()


def test_a_stuck_download_is_ended_at_the_deadline(keeper: Any) -> None:
    running, simulated = keeper
    sector = {"sector": "上证50"}
    assert len(run(running, "sector_stocks", sector, 30).document) == 50
    simulated.control.set_fault("stuck_download")
    with pytest.raises(TimedOut, match="download was not done within 1 s"):
        run(running, "download", {"codes": ["600000.SH"], "period": "1d"}, 1)
    simulated.control.clear_fault()
    assert len(run(running, "sector_stocks", sector, 30).document) == 50


def test_an_error_of_the_task_keeps_the_child(keeper: Any) -> None:
    running, simulated = keeper
    sector = {"sector": "上证50"}
    assert len(run(running, "sector_stocks", sector, 30).document) == 50
    child_pid = simulated.control.status()["clients"][0]["pid"]
    with pytest.raises(InvalidRequest):
        run(running, "history", {"codes": ["nonsense"]}, 10)
    assert len(run(running, "sector_stocks", sector, 30).document) == 50
    assert simulated.control.status()["clients"][0]["pid"] == child_pid
