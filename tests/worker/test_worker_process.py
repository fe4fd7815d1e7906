"""The worker as a process: what it answers, refuses, survives and tells."""

import json
import os
import pickle
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from rq import Callback, Queue
from rq.job import Job
from rq.serializers import JSONSerializer
from waiting import wait_for
from worker_rig import Caller, wait_for_running

from qmt_protocol.jobs import QUERY_QUEUE
from qmt_simulator.process import TerminalProcess

CODE = "600000.SH"


# -- plain answers ------------------------------------------------------------------------------


def test_documents(midsession: TerminalProcess, caller: Caller) -> None:
    sector = caller.ask("sector_stocks", sector="上证50")
    assert len(sector.manifest["document"]) == 50
    assert sector.manifest["kind"] == "document"
    detail = caller.ask("instrument_detail", codes=["600519.SH", "000001.SH", "609999.SH"])
    documents = detail.manifest["document"]
    assert documents["600519.SH"]["InstrumentName"] == "贵州茅台"
    assert documents["000001.SH"]["UpStopPrice"] is None
    assert documents["609999.SH"] is None
    assert detail.manifest["meta"]["absent"] == {"609999.SH": "no such instrument"}
    tick = caller.ask("full_tick", codes=["600519.SH"]).manifest["document"]["600519.SH"]
    market_ms = midsession.control.now()
    assert 0 <= market_ms - tick["time"] < 10_000
    assert len(tick["askPrice"]) == 5


def test_unknown_names_are_errors(midsession: TerminalProcess, caller: Caller) -> None:
    assert caller.ask("sector_stocks", sector="没有").error["error"] == "sector-not-found"
    for name in ("full_tick", "instrument_detail"):
        assert caller.ask(name, codes=["609999.SH"]).error["error"] == "instrument-not-found"


def test_wrong_parameters_are_told_by_the_worker_too(
    midsession: TerminalProcess, caller: Caller
) -> None:
    job_id = caller.enqueue("history", check=False, codes=["600519"], period="1d")
    error = caller.wait(job_id).error
    assert error["error"] == "invalid-code"
    assert "600519.SH" in error["hint"]


def test_the_forming_bar_is_marked(midsession: TerminalProcess, caller: Caller) -> None:
    minutes = caller.ask("history", codes=[CODE], period="1m", count=5).frame(CODE)
    now_ms = midsession.control.now()
    ends = minutes["time"].astype("datetime64[ms, UTC]").astype("int64")
    assert minutes["closed"].tolist()[:3] == [True] * 3
    assert not minutes["closed"].iloc[-1]
    assert ends.iloc[-1] > now_ms - 5_000


# -- the guard ----------------------------------------------------------------------------------


def rq_end(caller: Caller, job_id: str) -> dict[bytes, Any]:
    """Wait until RQ has dealt with a job and return its record."""

    def ended() -> dict[bytes, Any]:
        record: dict[bytes, Any] = caller.jobs.hgetall(f"rq:job:{job_id}")
        return record if record.get(b"status") in (b"failed", b"finished", b"stopped") else {}

    return wait_for(ended, f"RQ has dealt with job {job_id}")


class _Touch:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        ("os.system", ["touch {0}"]),
        ("subprocess.check_output", [["touch", "{0}"]]),
        ("builtins.eval", ["open('{0}', 'w')"]),
        ("qmt.nothing", []),
        ("qmt.download", []),  # of the other queue
        ("qmt.history", ["positional"]),
        ("qmt_worker.tasks.history", []),
    ],
)
def test_nothing_but_the_catalogue_runs(
    midsession: TerminalProcess, caller: Caller, tmp_path: Path, function: str, arguments: list[Any]
) -> None:
    trace = tmp_path / "ran"
    filled = json.loads(json.dumps(arguments).replace("{0}", str(trace)))
    queue = Queue(QUERY_QUEUE, connection=caller.jobs, serializer=JSONSerializer)
    job = queue.enqueue_call(function, args=filled, timeout=30)
    assert rq_end(caller, job.id)[b"status"] == b"failed"
    assert not trace.exists()
    assert caller.ask("sector_stocks", sector="上证50").state == "done"


def test_a_pickled_job_is_not_loaded(
    midsession: TerminalProcess, caller: Caller, tmp_path: Path
) -> None:
    trace = tmp_path / "ran"
    queue = Queue(QUERY_QUEUE, connection=caller.jobs, serializer=JSONSerializer)
    job = Job.create("qmt.history", connection=caller.jobs, serializer=JSONSerializer)
    job.origin = QUERY_QUEUE
    job.save()
    caller.jobs.hset(job.key, "data", pickle.dumps(("qmt.history", None, (), _Touch(trace))))
    queue.push_job_id(job.id)
    assert rq_end(caller, job.id)[b"status"] == b"failed"
    assert not trace.exists()
    assert caller.ask("sector_stocks", sector="上证50").state == "done"


def test_callbacks_and_webhooks_do_not_run(
    midsession: TerminalProcess, caller: Caller, tmp_path: Path
) -> None:
    trace = tmp_path / "ran"
    os.environ["TRACE"] = str(trace)
    queue = Queue(QUERY_QUEUE, connection=caller.jobs, serializer=JSONSerializer)
    for sector, status in (("上证50", b"finished"), ("没有", b"failed")):
        job = queue.enqueue_call(
            "qmt.sector_stocks",
            kwargs={"params": {"sector": sector}, "version": 2},
            on_success=Callback("pathlib.Path.touch"),
            on_failure=Callback("breakpoint"),
            timeout=120,
        )
        caller.jobs.hset(
            job.key,
            "webhooks",
            json.dumps([{"url": "http://127.0.0.1:9/", "statuses": ["finished"]}]),
        )
        record = rq_end(caller, job.id)
        assert record[b"status"] == status
    assert caller.ask("sector_stocks", sector="上证50").state == "done"


def test_an_instance_method_is_refused(midsession: TerminalProcess, caller: Caller) -> None:
    queue = Queue(QUERY_QUEUE, connection=caller.jobs, serializer=JSONSerializer)
    job = Job.create("qmt.history", connection=caller.jobs, serializer=JSONSerializer)
    job.origin = QUERY_QUEUE
    job.save()
    data = ["qmt.sector_stocks", "an instance", [], {"params": {"sector": "上证50"}, "version": 2}]
    caller.jobs.hset(job.key, "data", json.dumps(data))
    queue.push_job_id(job.id)
    assert rq_end(caller, job.id)[b"status"] == b"failed"


# -- deaths -------------------------------------------------------------------------------------


def test_a_native_abort_fails_the_job_at_once_and_the_next_one_works(
    midsession: TerminalProcess, caller: Caller
) -> None:
    midsession.control.set_fault("latency", func="get_stock_list_in_sector", s=600)
    job_id = caller.enqueue("sector_stocks", sector="上证50")
    wait_for_running(caller, job_id)
    assert midsession.control.set_fault("abort_client", role="worker") == 1
    error = caller.wait(job_id).error
    assert error["error"] == "job-failed"
    assert error["data"]["reason"] == "child died"
    assert "signal 6" in error["message"]
    midsession.control.clear_fault()
    assert caller.ask("sector_stocks", sector="上证50").state == "done"


def test_a_killed_child_is_replaced(midsession: TerminalProcess, caller: Caller) -> None:
    def clients() -> list[dict[str, Any]]:
        return list(midsession.control.status()["clients"])

    wait_for(clients, "the child of the last test has its successor")
    midsession.control.set_fault("latency", func="get_full_tick", s=600)
    job_id = caller.enqueue("full_tick", codes=[CODE])
    wait_for_running(caller, job_id)
    os.kill(clients()[0]["pid"], signal.SIGKILL)
    assert caller.wait(job_id).error["data"]["reason"] == "child died"
    midsession.control.clear_fault()
    assert caller.ask("full_tick", codes=[CODE]).state == "done"


def test_a_cancelled_job_ends_and_frees_the_worker(
    midsession: TerminalProcess, caller: Caller
) -> None:
    midsession.control.set_fault("stuck_download")
    job_id = caller.enqueue("history", codes=["600004.SH"], period="1d", count=100)
    wait_for_running(caller, job_id)
    time.sleep(0.5)
    caller.jobs.set(caller.keys.cancel(job_id), b"1", ex=60)
    error = caller.wait(job_id).error
    assert error["data"]["reason"] == "cancelled"
    midsession.control.clear_fault()
    assert caller.ask("history", codes=["600004.SH"], period="1d", count=100).state == "done"


def test_a_download_that_fails_without_a_word_is_no_success(
    midsession: TerminalProcess, caller: Caller
) -> None:
    midsession.control.set_fault("empty_failure_download")
    error = caller.ask("history", codes=["600007.SH"], period="1d", count=100).error
    assert error["error"] == "download-incomplete"
    midsession.control.clear_fault()
    midsession.control.set_fault("failed_download", message="服务器忙")
    error = caller.ask("history", codes=["600007.SH"], period="1d", count=100).error
    assert error["error"] == "terminal-refused"
    assert "服务器忙" in error["message"]
    midsession.control.clear_fault()


def test_a_function_the_terminal_lacks(midsession: TerminalProcess, caller: Caller) -> None:
    midsession.control.set_fault("not_realized", func="get_stock_list_in_sector")
    error = caller.ask("sector_stocks", sector="上证50").error
    assert error["error"] == "terminal-unsupported"
    midsession.control.clear_fault()


def test_heartbeats_go_on_while_a_job_runs(midsession: TerminalProcess, caller: Caller) -> None:
    midsession.control.set_fault("latency", func="get_full_tick", s=8)
    job_id = caller.enqueue("full_tick", codes=[CODE])
    wait_for_running(caller, job_id)
    ages = []
    while caller.entries(job_id)[-1]["state"] == "running":
        (beat,) = [one for one in caller.heartbeats() if one["age_s"] < 30]
        ages.append(beat["age_s"])
        assert beat["terminal"]["state"] == "ok"
        time.sleep(0.1)
    midsession.control.clear_fault()
    assert len(ages) > 20
    assert max(ages) < 6, "one call takes eight seconds"
