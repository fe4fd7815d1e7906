"""``qmt-windows``: everything that runs beside the terminal, as one process to start."""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from qmt_protocol.errors import ConfigurationError, QMTError
from qmt_protocol.times import to_datetime
from qmt_runtime.process import when_stdin_ends

from .home import Home, find_home
from .settings import WindowsSettings, read_settings

__all__ = ["app", "main"]

app = typer.Typer(
    name="qmt-windows",
    help="What runs beside the QMT terminal: producer, worker, and who looks after them.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

HomeOption = Annotated[
    Path | None, typer.Option("--home", help="folder of settings, ring and logs (QMT_HOME)")
]


@app.callback(invoke_without_command=True)
def options(context: typer.Context, home: HomeOption = None) -> None:
    """Say where the bridge's folder is; without a command: run."""
    context.obj = find_home(home)
    if context.invoked_subcommand is None:
        run(context)


@app.command()
def run(
    context: typer.Context,
    exit_with_stdin: Annotated[
        bool, typer.Option("--exit-with-stdin", help="end when standard input closes")
    ] = False,
) -> None:
    """Run producer and worker, and look after them until Ctrl-C."""
    from .console import Console, awake, on_stop, without_quick_edit
    from .logs import log_to_file
    from .single import end_orphans, only_one
    from .supervisor import Supervisor, make_masker

    home: Home = context.obj
    settings = read_settings(home)
    stopped = threading.Event()
    with only_one(home):
        log_to_file(
            home.logs / "windows.log",
            level=settings.log_level,
            max_mb=settings.log_max_mb,
            files=settings.log_files,
            masker=make_masker(settings),
        )
        console = Console()
        say = console.say
        say(f"QMT Bridge · {home.folder}")
        if not home.config.exists():
            say(
                f"{home.config} 不存在，用默认设置 · is not there: defaults serve. qmt-windows join"
            )
        for name in end_orphans(home):
            say(f"{name}: 上次遗留的进程，已结束 · was left behind and had to be ended")
        supervisor = Supervisor(home, settings, _timed(say))
        on_stop(supervisor.stop, stopped)
        if exit_with_stdin or settings.exit_with_stdin:
            when_stdin_ends(supervisor.stop)
        say("按 Ctrl-C 停止 · Ctrl-C stops")
        try:
            with without_quick_edit(), awake():
                code = supervisor.run()
            say("已停止 · stopped")
        finally:
            console.close()
            stopped.set()
    raise SystemExit(code)


@app.command()
def join(
    context: typer.Context,
    line: Annotated[str, typer.Argument(metavar="LINE", help="what docker/join printed")],
    anyway: Annotated[
        bool, typer.Option("--anyway", help="write the settings also when the test fails")
    ] = False,
) -> None:
    """Join a bridge: test the line that the Linux side printed, and write qmt.toml."""
    from .join import check_servers, parse_join_line, write_config

    home: Home = context.obj
    joined = parse_join_line(line)
    settings = WindowsSettings(**joined.settings)  # type: ignore[arg-type]
    well = _show_checks(check_servers(settings, settings.worker_streams_url))
    if not well and not anyway:
        print(
            "未写入设置，排除后重试（或加 --anyway） · nothing was written; mend it and join again "
            "(or add --anyway)"
        )
        raise SystemExit(1)
    write_config(home.config, joined.settings)
    print(f"已写入 · written: {home.config}")
    from .single import holder

    if holder(home) is not None:
        print("qmt-windows 正在运行，请重启它 · runs already: restart it to use this")
    raise SystemExit(0 if well else 1)


@app.command()
def status(context: typer.Context) -> None:
    """Show how producer, worker and terminal are."""
    from .overview import show_status

    home: Home = context.obj
    raise SystemExit(show_status(home, read_settings(home)))


@app.command(
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def doctor(context: typer.Context) -> None:
    """Look for what keeps the bridge from working; --probe asks the terminal many questions."""
    try:
        from .doctor import main as examine
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"doctor cannot run: {error.name} is not installed.",
            hint="Install qmt-redis-bridge[windows].",
        ) from error
    home: Home = context.obj
    os.environ.setdefault("QMT_HOME", str(home.folder))
    raise SystemExit(examine(list(context.args)))


def _show_checks(checks: list[Any]) -> bool:
    for one in checks:
        if one.wrong:
            print(f"fail  {one.what}: {one.wrong}")
        else:
            print(f"ok    {one.what}: {one.latency_ms:.1f} ms")
        if one.remark:
            print(f"warn  {one.remark}")
    return not any(one.wrong for one in checks)


def _timed(say: Any) -> Any:
    def timed(text: str) -> None:
        say(f"{to_datetime(time.time_ns() // 1_000_000):%H:%M:%S} {text}")

    return timed


def _fail(error: QMTError) -> NoReturn:
    print(f"qmt-windows: {error}", file=sys.stderr)
    raise SystemExit(2 if isinstance(error, ConfigurationError) else 1)


def main(arguments: list[str] | None = None) -> int:
    """Run the command that the arguments name; a known trouble is one line and no traceback."""
    for stream in (sys.stdout, sys.stderr):
        # A pipe may stand on a code page without Chinese.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        app(args=arguments)
    except QMTError as error:
        _fail(error)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except OSError as error:
        _fail(QMTError(f"{error.filename or 'file'}: {error.strerror or error}."))
    return 0


if __name__ == "__main__":
    sys.exit(main())
