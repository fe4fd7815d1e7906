"""`qmt-simulator`: start a simulated terminal."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import signal
from pathlib import Path
from typing import Any

from qmt_simulator.clock import Clock, parse_moment, parse_start
from qmt_simulator.profiles import PROFILES, load_profile
from qmt_simulator.terminal import Settings, Terminal, watch_stdin


def main(argv: list[str] | None = None) -> int:
    """Run until SIGINT, SIGTERM or, where asked for, the end of standard input."""
    parser = _parser()
    options = parser.parse_args(argv)
    logging.basicConfig(
        level=logging.DEBUG if options.verbose else logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
    )
    try:
        settings = _settings(options)
    except ValueError as error:
        parser.error(str(error))
    try:
        asyncio.run(_run(settings, exit_with_stdin=options.exit_with_stdin))
    except KeyboardInterrupt:
        pass
    except OSError as error:
        parser.exit(1, f"qmt-simulator: {error}\n")
    return 0


async def _run(settings: Settings, *, exit_with_stdin: bool) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[int] = loop.create_future()
    terminal = Terminal(settings)
    serving = asyncio.create_task(terminal.serve(ready))
    starting: set[asyncio.Future[Any]] = {serving, ready}
    await asyncio.wait(starting, return_when=asyncio.FIRST_COMPLETED)
    if serving.done():
        await serving
    port = ready.result()
    print(
        json.dumps(
            {
                "ready": True,
                "port": port,
                "control_port": port,
                "pid": os.getpid(),
                "profile": settings.profile,
                "simulated": True,
                "wall_start_ms": terminal.clock.wall_start_ms,
            }
        ),
        flush=True,
    )
    with contextlib.suppress(NotImplementedError):  # Windows: Ctrl-C arrives by itself
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, serving.cancel)
    waiting = {serving}
    if exit_with_stdin:
        waiting.add(asyncio.create_task(watch_stdin()))
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    serving.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await serving


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="qmt-simulator",
        description="A simulated QMT terminal. Every number it serves is invented.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=58610, help="0 takes a free one")
    parser.add_argument("--seed", type=int, default=20260101, help="the market's seed")
    parser.add_argument(
        "--profile",
        default="research",
        help=f"{', '.join(sorted(PROFILES))}, or a probe's report: FILE.json",
    )
    parser.add_argument(
        "--clock",
        choices=("real", "fixed"),
        help="default: real, or fixed where --start is given",
    )
    parser.add_argument("--start", help="fixed clock: 'YYYY-MM-DD HH:MM:SS' in China time")
    parser.add_argument(
        "--speed", type=float, default=1.0, help="fixed clock: market seconds per second"
    )
    parser.add_argument(
        "--wall-start-ms",
        type=int,
        help="when the fixed clock started: goes on with that of a process that is gone, whose "
        "--start and --speed it needs; its ready line has the number",
    )
    parser.add_argument(
        "--login-at",
        help="market time, 'HH:MM[:SS]' or as --start, before which native clients are turned away",
    )
    parser.add_argument(
        "--quotes-at", help="market time before which the terminal has no quote server"
    )
    parser.add_argument("--real-hours", action="store_true", help="trade in exchange hours only")
    parser.add_argument(
        "--interval-ms", type=int, default=3000, help="time between two ticks of a code"
    )
    parser.add_argument("--push-ms", type=int, default=250, help="time between two pushes")
    parser.add_argument(
        "--cache-delay-s",
        default="0.5,2",
        help="'low,high': downloaded data become readable that much later",
    )
    parser.add_argument("--push-log", type=Path, help="append every pushed tick to this file")
    parser.add_argument("--data-dir", type=Path, help="keep the local cache here")
    parser.add_argument("--app-dir", default="", help="folder it says that it is installed in")
    parser.add_argument("--broker", default="", help="broker that it names")
    parser.add_argument(
        "--exit-with-stdin", action="store_true", help="end when standard input closes"
    )
    parser.add_argument("--verbose", action="store_true")
    return parser


def _settings(options: argparse.Namespace) -> Settings:
    fixed = options.clock == "fixed" or (options.clock is None and options.start is not None)
    if fixed and options.start is None:
        raise ValueError("--clock fixed needs --start")
    if not 20 <= options.interval_ms <= 15_000 or 60_000 % options.interval_ms:
        raise ValueError("--interval-ms must divide 60000 and lie between 20 and 15000")
    if options.push_ms < 10 or options.speed < 0:
        raise ValueError("--push-ms must be 10 or more, --speed 0 or more")
    if options.wall_start_ms is not None and not fixed:
        raise ValueError("--wall-start-ms needs --start")
    clock = Clock()
    if fixed:
        clock = Clock(parse_start(options.start), options.speed, options.wall_start_ms)
    now_ms = clock.now_ms()
    load_profile(options.profile)  # a ValueError while it can still be told well
    low, _, high = options.cache_delay_s.partition(",")
    return Settings(
        host=options.host,
        port=options.port,
        seed=options.seed,
        profile=options.profile,
        clock=clock,
        real_hours=options.real_hours,
        interval_ms=options.interval_ms,
        push_ms=options.push_ms,
        cache_delay_s=(float(low), float(high or low)),
        push_log=options.push_log,
        data_dir=options.data_dir,
        app_dir=options.app_dir,
        broker=options.broker,
        login_at_ms=parse_moment(options.login_at, now_ms) if options.login_at else 0,
        quotes_at_ms=parse_moment(options.quotes_at, now_ms) if options.quotes_at else 0,
    )


if __name__ == "__main__":
    raise SystemExit(main())
