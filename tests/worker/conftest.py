"""Workers, simulated terminals and Redis servers for the tests of this folder."""

from collections.abc import Callable, Iterator

import pytest
import redis
from worker_rig import Caller, WorkerProcess

from qmt_simulator.process import TerminalProcess
from qmt_standalone.redis_server import RedisServer


@pytest.fixture(scope="session")
def worker_streams(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A streams server that tests of other folders do not empty meanwhile."""
    server = RedisServer(tmp_path_factory.mktemp("worker-streams"), aof=False)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def worker_jobs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("worker-jobs"), aof=False)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def caller(worker_streams: RedisServer, worker_jobs: RedisServer) -> Iterator[Caller]:
    with (
        redis.Redis.from_url(worker_jobs.url) as jobs,
        redis.Redis.from_url(worker_streams.url) as streams,
    ):
        yield Caller(jobs, streams)


StartWorker = Callable[..., WorkerProcess]


@pytest.fixture
def start_worker(
    worker_streams: RedisServer, worker_jobs: RedisServer, caller: Caller
) -> Iterator[StartWorker]:
    """Start workers on empty servers; they end with the test."""
    caller.jobs.flushall()
    caller.streams.flushall()
    started: list[WorkerProcess] = []

    def start(port: int, *flags: str, ready: bool = True, **env: str) -> WorkerProcess:
        started.append(WorkerProcess(port, worker_streams.url, worker_jobs.url, *flags, **env))
        if ready:
            caller.wait_for_terminal("ok")
        return started[-1]

    yield start
    for worker in started:
        worker.stop()


@pytest.fixture(scope="module")
def midsession(
    simulated_midsession: TerminalProcess,
    worker_streams: RedisServer,
    worker_jobs: RedisServer,
    caller: Caller,
) -> Iterator[TerminalProcess]:
    """A terminal in mid-session and a worker for queries, for all tests of a module."""
    caller.jobs.flushall()
    caller.streams.flushall()
    worker = WorkerProcess(
        simulated_midsession.port, worker_streams.url, worker_jobs.url, "--queue", "qmt-query"
    )
    try:
        caller.wait_for_terminal("ok")
        yield simulated_midsession
    finally:
        worker.stop()
