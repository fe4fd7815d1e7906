"""What ``qmt-windows status`` says of a process, from its heartbeat."""

from __future__ import annotations

from qmt_protocol.status import Heartbeat
from qmt_windows.overview import _of


def test_it_tells_what_a_worker_could_not_run() -> None:
    last = {"key": "rq:workers", "reason": "It holds a hash where RQ keeps a set."}
    well = {"state": "ok"}
    beat = Heartbeat(role="worker", terminal=well, figures={"dead": 1, "last_dead": last})
    lines, fine = _of(beat)
    assert fine
    assert lines[-1].endswith("the last, key rq:workers: It holds a hash where RQ keeps a set.")
    assert "无法执行" not in "".join(_of(Heartbeat(role="worker", terminal=well))[0])
