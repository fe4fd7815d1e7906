"""The client on Windows' own event loop, its coarse clock, and stopping."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from pathlib import Path

from qmt_client import AsyncQMTClient, QMTClient

STOPS = """
import sys, threading
from qmt_runtime.process import when_stdin_ends
done = threading.Event()
when_stdin_ends(done.set)
print("waits", flush=True)
raise SystemExit(0 if done.wait(120) else 1)
"""


def test_the_client_reads_ticks_on_the_proactor_loop(streams_url: str) -> None:
    async def read() -> tuple[str, int]:
        codes = set()
        async with AsyncQMTClient(streams_url) as client:
            async for tick in client.ticks(markets=["SH", "SZ"]):
                codes.add(tick.code)
                if len(codes) > 100:
                    break
            latest = await client.latest(markets=["BJ"])
        return type(asyncio.get_running_loop()).__name__, len(latest)

    loop, count = asyncio.run(asyncio.wait_for(read(), 120))
    assert loop == "ProactorEventLoop"
    assert count > 50


def test_the_plain_client_tells_the_processes(streams_url: str) -> None:
    with QMTClient(streams_url) as client:
        roles = {one.beat.role for one in client.status().processes if one.alive}
    assert "producer" in roles


def test_a_process_ends_with_its_input() -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", STOPS], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with child:
        assert child.stdout is not None
        assert child.stdin is not None
        assert child.stdout.readline().strip() == b"waits"
        child.stdin.close()
        assert child.wait(60) == 0


def test_the_clock_may_stand_still_for_a_moment() -> None:
    # What divides by a time that passed must not expect it to have passed.
    steps = {time.monotonic() for _ in range(2000)}
    assert len(steps) >= 1
    assert time.get_clock_info("monotonic").resolution >= 0.01


BREAKS = """
import runpy, signal, sys, threading, time
def press():
    while signal.getsignal(signal.SIGBREAK) == signal.SIG_DFL:
        time.sleep(0.1)
    time.sleep(2)
    # No console is here that could send it; the handler gets it all the same.
    signal.raise_signal(signal.SIGBREAK)
sys.argv[1:] = {arguments!r} + ["--prefix", "nobody"]
threading.Thread(target=press, daemon=True).start()
runpy.run_module({module!r}, run_name="__main__")
"""


def test_ctrl_break_ends_producer_and_worker(tmp_path: Path) -> None:
    roles = {"qmt_producer": [], "qmt_worker": ["--queue", "qmt-query"]}
    children = {
        module: subprocess.Popen(
            [sys.executable, "-c", BREAKS.format(module=module, arguments=arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=tmp_path,
        )
        for module, arguments in roles.items()
    }
    for module, child in children.items():
        out, _ = child.communicate(timeout=200)
        assert child.returncode == 0, (module, out)
