"""The ``qmt`` command: what the client can do, for a shell and its pipes."""

from __future__ import annotations

import dataclasses
import itertools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, NoReturn, cast

import typer

from qmt_protocol.amounts import parse_count, parse_seconds
from qmt_protocol.archive import is_simulated
from qmt_protocol.errors import ConfigurationError, NotFound, QMTError
from qmt_protocol.ticks import Tick
from qmt_protocol.times import to_datetime
from qmt_protocol.trading_days import ends_soon, iso_day

from .sync_client import QMTClient
from .writing import ReaderLeft, json_line, leave_quietly, say, tick_document, written

if TYPE_CHECKING:
    from collections.abc import Iterable

    from qmt_reading.replay.engine import Replay

__all__ = ["app", "main"]

app = typer.Typer(
    name="qmt",
    help="A-share market data from QMT: history, ticks, reference data.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Shape(str, Enum):
    """How rows are written."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"
    PARQUET = "parquet"


class StreamShape(str, Enum):
    """How rows are written that may be more than memory holds."""

    CSV = "csv"
    JSON = "json"
    PARQUET = "parquet"


CodesArgument = Annotated[
    list[str], typer.Argument(metavar="CODE...", help="such as 600519.SH; also comma-separated")
]
SomeCodesArgument = Annotated[
    list[str], typer.Argument(metavar="[CODE...]", help="such as 600519.SH; or --sector")
]
PeriodOption = Annotated[str, typer.Option("--period", "-p", help="tick, 1m, 5m, ... 1d, 1w")]
StartOption = Annotated[str, typer.Option(help="first label, such as 20260105")]
EndOption = Annotated[str, typer.Option(help="last label, included")]
SectorOption = Annotated[
    list[str], typer.Option("--sector", help="codes of a sector, such as 沪深300; may be repeated")
]
OutputOption = Annotated[
    Path | None, typer.Option("--output", "-o", help="file; its ending (.csv, .parquet) says how")
]
JsonOption = Annotated[bool, typer.Option("--json", help="write JSON")]


_MOST: Final = 10**15


def _whole(field: str, **bounds: int) -> dict[str, Any]:
    """Return how an option takes a whole number: as everywhere, Python's own way takes １２."""
    return {"parser": lambda text: parse_count(text, field, **bounds), "metavar": "<int>"}


def _seconds(field: str, **bounds: float) -> dict[str, Any]:
    return {"parser": lambda text: parse_seconds(text, field, **bounds), "metavar": "<float>"}


StopOption = Annotated[
    int,
    typer.Option(
        "--count", "-n", help="stop after so many", **_whole("count", least=0, most=_MOST)
    ),
]


@dataclasses.dataclass(frozen=True)
class _Run:
    """What the options before the command say."""

    make: Callable[[], QMTClient]
    naive: bool


def _show_version(requested: bool) -> None:
    if requested:
        from importlib.metadata import version

        print(f"qmt {version('qmt-redis-bridge')}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    url: Annotated[
        str, typer.Option(envvar="QMT_URL", help="redis://... or http://...; else --host")
    ] = "",
    host: Annotated[str, typer.Option(help="the gateway's address")] = "",
    port: Annotated[
        int,
        typer.Option(help="the gateway's port (8000)", **_whole("port", least=0, most=65_535)),
    ] = 0,
    jobs_url: Annotated[str, typer.Option(help="Redis of the jobs (QMT_JOBS_URL)")] = "",
    prefix: Annotated[str, typer.Option(help="prefix of the keys in Redis")] = "",
    archive_url: Annotated[
        str, typer.Option(help="folder or s3:// of the archive (QMT_ARCHIVE_URL)")
    ] = "",
    timeout: Annotated[
        float, typer.Option(help="seconds a request may take", **_seconds("timeout", least=0.1))
    ] = 60.0,
    naive: Annotated[
        bool, typer.Option("--naive", help="write China time without its zone, +08:00")
    ] = False,
    version: Annotated[
        bool,
        typer.Option("--version", help="show the version", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    """Say where to read; QMT_URL, or QMT_STREAMS_URL and QMT_JOBS_URL, and QMT_API_KEY do too."""

    def make() -> QMTClient:
        return QMTClient(
            url if not (host or port) else None,
            host=host or None,
            port=port or None,
            jobs_url=jobs_url or None,
            prefix=prefix or None,
            archive_url=archive_url or None,
            timeout_s=timeout,
        )

    context.obj = _Run(make, naive)


@contextmanager
def _client(context: typer.Context) -> Iterator[QMTClient]:
    run: _Run = context.obj
    with run.make() as client:
        yield client


def _naive(context: typer.Context) -> bool:
    run: _Run = context.obj
    return run.naive


@app.command()
def history(
    context: typer.Context,
    codes: SomeCodesArgument = (),  # type: ignore[assignment]
    period: PeriodOption = "1d",
    start: StartOption = "",
    end: EndOption = "",
    count: Annotated[
        int | None, typer.Option("--count", "-n", help="last so many rows", **_whole("count"))
    ] = None,
    fields: Annotated[str, typer.Option(help="columns, comma-separated")] = "",
    adjust: Annotated[
        str,
        typer.Option(
            help="none; front (qfq) and back (hfq), which add dividends as xtquant does; "
            "front_ratio and back_ratio, which multiply as most others do"
        ),
    ] = "none",
    download: Annotated[str, typer.Option(help="auto or never")] = "auto",
    fill: Annotated[bool, typer.Option(help="keep rows the terminal made up")] = False,
    sector: SectorOption = (),  # type: ignore[assignment]
    shape: Annotated[
        Shape | None, typer.Option("--format", "-f", help="of the output (table)")
    ] = None,
    output: OutputOption = None,
) -> None:
    """Bars or ticks of history, as a table, CSV, JSON lines or Parquet."""
    from .output import FORMS, form_of, write_frame

    form = form_of(output, shape.value if shape else "", FORMS, "table")
    with _client(context) as client:
        named = [*codes, *(code for one in sector for code in client.sector_stocks(one))]
        frame = client.history(
            ",".join(named),
            period,
            start=start,
            end=end,
            count=count,
            fields=fields,
            adjust=adjust,
            download=cast(Literal["auto", "never"], download),  # checked by the client
            fill=fill,
            layout="long",
        )
    absent: dict[str, str] = frame.attrs["absent"]
    if frame.empty and absent:
        code, reason = next(iter(absent.items()))
        raise NotFound(f"{code}: {reason.rstrip('.')}.")
    _note(frame.attrs["simulated"])
    with written(output) as file:
        write_frame(frame, form, file, period, naive=_naive(context))


@app.command()
def tick(context: typer.Context, codes: CodesArgument, as_json: JsonOption = False) -> None:
    """The latest tick of each code."""
    with _client(context) as client:
        ticks = client.full_tick(",".join(codes))
    _note(ticks.simulated)
    _write_ticks(context, ticks.values(), as_json)


@app.command()
def ticks(
    context: typer.Context,
    codes: CodesArgument,
    follow: Annotated[bool, typer.Option("--follow", "-F", help="go on until interrupted")] = False,
    count: StopOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Live ticks as they come; without --follow or --count the latest ones, once."""
    if not follow and not count:
        tick(context, codes, as_json)
        return
    with _client(context) as client:
        _note(client.status().simulated)
        with client.ticks(",".join(codes)) as live:
            _write_ticks(context, live, as_json, count)


@app.command()
def stored(
    context: typer.Context,
    codes: SomeCodesArgument = (),  # type: ignore[assignment]
    period: Annotated[str, typer.Option("--period", "-p", help="tick, or a bar's")] = "tick",
    start: StartOption = "",
    end: EndOption = "",
    fields: Annotated[str, typer.Option(help="columns, comma-separated")] = "",
    sector: SectorOption = (),  # type: ignore[assignment]
    shape: Annotated[
        StreamShape | None, typer.Option("--format", "-f", help="of the output (csv)")
    ] = None,
    output: OutputOption = None,
) -> None:
    """Ticks or closed bars that were collected, as CSV, JSON lines or Parquet; '*' is all."""
    from .output import form_of, write_batches

    forms = tuple(one.value for one in StreamShape)
    form = form_of(output, shape.value if shape else "", forms, "csv")
    names = [name.strip() for name in fields.split(",") if name.strip()] or None
    with _client(context) as client:
        of: dict[str, Any] = {"fields": names, "sectors": list(sector), "as_": "batches"}
        named = ",".join(codes) or None
        batches = (
            client.stored_ticks(named, start, end, **of)
            if period == "tick"
            else client.stored_bars(named, period, start, end, **of)
        )
        first = next(batches, None)  # an error comes before any output: a file, a header
        if first is None:
            raise NotFound(
                f"Nothing is stored of {_shown([*codes, *sector])} in the range.",
                hint="`qmt-archive ls` and GET /api/v1/archive name the days that are archived.",
            )
        _note(is_simulated(first.schema.metadata))
        with written(output) as file:
            whole = itertools.chain([first], batches)
            write_batches(whole, form, file, period, names, naive=_naive(context))


def _shown(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


@app.command()
def replay(
    context: typer.Context,
    codes: CodesArgument,
    start: StartOption = "",
    end: EndOption = "",
    speed: Annotated[str, typer.Option("--speed", "-x", help="1, 10, ... or max")] = "1",
    count: StopOption = 0,
    skip_idle: Annotated[
        float,
        typer.Option(
            help="seconds; longer pauses of the market take no time", **_seconds("skip-idle")
        ),
    ] = 1800.0,
    as_json: JsonOption = False,
) -> None:
    """Stored ticks again, at the time they had or faster; '*' is all."""
    with (
        _client(context) as client,
        client.replay(
            ",".join(codes),
            start,
            end,
            cast(float, speed),  # checked by the client
            skip_idle_s=skip_idle,
        ) as ticks,
    ):
        if not _write_ticks(context, _noted(ticks), as_json, count):
            raise NotFound(
                f"Nothing is stored of {_shown(codes)} in the range.",
                hint="`qmt-archive ls` and GET /api/v1/archive name the days that are archived.",
            )


def _noted(replay: Replay[Tick]) -> Iterator[Tick]:
    """Say before the first tick whether it is simulated."""
    for number, one in enumerate(replay):
        if not number:
            _note(bool(replay.simulated))
        yield one


def _write_ticks(
    context: typer.Context, ticks: Iterable[Tick], as_json: bool, count: int = 0
) -> int:
    """Write ticks, up to a count (0: all), and return how many there were."""
    number = 0
    for number, one in enumerate(ticks, start=1):
        _write_tick(context, one, as_json)
        if number == count:
            break
    return number


def _write_tick(context: typer.Context, one: Tick, as_json: bool) -> None:
    if as_json:
        _write_json(tick_document(one, naive=_naive(context)))
        return
    at = to_datetime(one.time_ms)
    price = one.get("lastPrice")
    bid, ask = (_first(one.get(name)) for name in ("bidPrice", "askPrice"))
    say(
        f"{at:%Y-%m-%d %H:%M:%S}.{at.microsecond // 1000:03d}  {one.code:<12}"
        f"{_number(price):>10}  {_number(bid):>9}/{_number(ask):<9}"
        f"{one.get('volume', ''):>12}  {one.phase}",
    )


def _first(levels: Any) -> Any:
    return levels[0] if levels else None


def _number(value: Any) -> str:
    return "" if value is None else f"{value:.4f}".rstrip("0").rstrip(".")


@app.command()
def sector(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="such as 沪深300")],
    as_json: JsonOption = False,
) -> None:
    """The codes of a sector, one per line."""
    with _client(context) as client:
        codes = client.sector_stocks(name)
    if as_json:
        _write_json(codes)
    else:
        print("\n".join(codes))


@app.command()
def detail(context: typer.Context, codes: CodesArgument, as_json: JsonOption = False) -> None:
    """What the terminal knows about instruments."""
    with _client(context) as client:
        found = client.instrument_detail([part for one in codes for part in one.split(",")])
    if as_json:
        _write_json(found)
        return
    for code, document in found.items():
        print(code)
        width = max(len(key) for key in document)
        for key, value in document.items():
            print(f"  {key:<{width}}  {'' if value is None else value}")


@app.command()
def download(
    context: typer.Context,
    codes: CodesArgument,
    period: PeriodOption = "1d",
    start: StartOption = "",
    end: EndOption = "",
    as_json: JsonOption = False,
) -> None:
    """Fetch history into the terminal's cache; Ctrl-C cancels it."""
    with _client(context) as client:
        answer = client.download(",".join(codes), period, start, end)
    if as_json:
        _write_json(answer)
        return
    for code, one in answer.items():
        print(f"{code}  {one.get('rows', '') if isinstance(one, dict) else one}")


@app.command()
def status(context: typer.Context, as_json: JsonOption = False) -> None:
    """Who is alive: producers, workers, gateways and their terminals."""
    with _client(context) as client:
        answer = client.status()
    if as_json:
        _write_json(answer.to_dict())
        return
    _note(answer.simulated)
    if not answer.processes:
        print("No process of the bridge was ever seen here.")
    for one in answer.processes:
        beat = one.beat
        serves = ",".join(beat.markets or beat.queues)
        terminal = beat.terminal.get("state", "")
        reason = beat.terminal.get("reason") or ""
        print(
            f"{beat.role:<9} {beat.host}:{beat.pid:<8} "
            f"{'alive' if one.alive else 'LOST'} {one.age_ms / 1000:>8.1f} s ago  "
            f"{serves:<22} terminal {terminal or '-'} {reason}".rstrip()
        )
        about = (_about_terminal(beat.terminal), *_about_calendar(beat.terminal), beat.dead)
        for line in filter(None, about):
            print(f"          {line}")


def _about_terminal(answer: dict[str, Any]) -> str:
    """Return which terminal it is, in a line; empty where none was ever connected."""
    if not answer.get("address"):
        return ""
    words = [str(answer.get(name) or "") for name in ("broker", "edition", "version")]
    named = " ".join(word for word in words if word) or "a terminal"
    xtquant = f"xtquant {answer['xtquant_version']}" if answer.get("xtquant_version") else ""
    parts = (f"{named} at {answer['address']}", answer.get("path"), xtquant)
    return ", ".join(str(part) for part in parts if part)


def _about_calendar(answer: dict[str, Any]) -> list[str]:
    """Return what is wrong with the trading days that a producer knows."""
    day = answer.get("trading_day") or {}
    lines = []
    if day.get("file_error"):
        lines.append(f"calendar file: {day['file_error']}")
    if ends_soon(day):
        lines.append(
            f"trading days are known until {iso_day(int(day['known_until']))} only: "
            "see 'Trading days' in docs/windows.md"
        )
    elif day.get("source") == "weekday" and day.get("trades"):
        lines.append("whether today trades is a guess: see 'Trading days' in docs/windows.md")
    return lines


@app.command(
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def doctor(context: typer.Context) -> None:
    """On the Windows box: look for what keeps the bridge from working; --probe asks QMT."""
    import importlib.util
    import subprocess

    if importlib.util.find_spec("qmt_windows") is None:
        raise QMTError(
            "qmt doctor runs beside the terminal, and the Windows part is not installed here.",
            hint="There: pip install 'qmt-redis-bridge[windows]'.",
        )
    call = [sys.executable, "-m", "qmt_windows", "doctor", *context.args]
    raise SystemExit(subprocess.run(call, check=False).returncode)


def _write_json(value: Any) -> None:
    say(json_line(value))


def _note(simulated: bool) -> None:
    if simulated:
        print("SIMULATED data", file=sys.stderr)


def _fail(error: QMTError) -> NoReturn:
    print(f"qmt: {error}".replace("\n", " "), file=sys.stderr)
    raise SystemExit(2 if isinstance(error, ConfigurationError) else 1)


def main() -> None:
    """Run ``qmt``: one line on stderr when the bridge refuses or is away, and exit code 1.

    2: it was called wrong, or a setting is wrong.
    """
    import warnings

    from .user_warnings import QMTWarning

    for stream in (sys.stdout, sys.stderr):
        # A Windows console or pipe may stand on a code page without Chinese.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8")
    warnings.simplefilter("always", QMTWarning)
    warnings.showwarning = lambda message, *_: print(f"qmt: {message}", file=sys.stderr)
    try:
        app()
    except QMTError as error:
        _fail(error)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except ReaderLeft:
        leave_quietly()
        raise SystemExit(0) from None
    except OSError as error:
        _fail(QMTError(f"{error.filename or 'output'}: {error.strerror or error}."))
