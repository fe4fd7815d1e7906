"""History through the real xtdata.py: an empty cache, downloads, today's part, padding."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from xtdata_scripts import MIDSESSION, ScriptedTerminal

from qmt_simulator.history import BAR_COLUMNS, BoundError, parse_bound, well_formed
from qmt_simulator.oracle import Oracle

TODAY_MS = parse_bound("20261120", end=False) or 0
CODES = ["600519.SH", "000001.SZ", "300750.SZ", "510300.SH", "000001.SH"]

TABLE = """
    def table(frame):
        columns = {name: frame[name].tolist() for name in frame.columns}
        dtypes = {name: str(frame[name].dtype) for name in frame.columns}
        return {"index": list(frame.index), "columns": columns, "dtypes": dtypes}
    def read(codes, period, **words):
        words.setdefault("fill_data", False)
        frames = xtdata.get_market_data_ex([], codes, period, **words)
        return {code: table(frame) for code, frame in frames.items()}
    def load(codes, period, start="", end=""):
        result = xtdata.download_history_data2(codes, period, start, end)
        assert set(result) == set(codes), result
        time.sleep(0.3)
"""


@pytest.fixture
def oracle(midsession: ScriptedTerminal) -> Iterator[Oracle]:
    asked = Oracle(midsession.port)
    yield asked
    asked.close()


def assert_bars(table: dict[str, Any], truth: dict[str, Any]) -> None:
    for name, kind in BAR_COLUMNS.items():
        assert table["columns"][name] == truth[name].tolist(), name
        assert table["dtypes"][name] == {"<i8": "int64", "<f8": "float64", "<i4": "int32"}[kind]


def test_nothing_is_readable_before_a_download_and_some_time_after(
    start_terminal: Callable[..., ScriptedTerminal],
) -> None:
    terminal = start_terminal(*MIDSESSION[:-1], "0.8,0.8")
    before, at_once, progress, later = terminal.run(
        TABLE
        + """
    progress = []
    before = read(["600519.SH"], "1d")
    xtdata.download_history_data2(["600519.SH", "000001.SZ"], "1d", "20261101", "", progress.append)
    at_once = read(["600519.SH"], "1d")
    time.sleep(1.0)
    for item in progress:
        item.pop("result", None)
    tell([before, at_once, progress, read(["600519.SH"], "1d")])
    """
    )
    assert before["600519.SH"]["index"] == at_once["600519.SH"]["index"] == []
    assert list(before["600519.SH"]["columns"]) == list(BAR_COLUMNS)
    assert [(item["finished"], item["total"]) for item in progress] == [(1, 2), (2, 2)]
    assert later["600519.SH"]["index"][0] == "20261102"
    assert later["600519.SH"]["index"][-1] == "20261120"


@pytest.mark.parametrize("period", ["1d", "1m", "5m", "15m", "1w", "1mon"])
def test_downloaded_and_subscribed_bars_are_the_oracles(
    midsession: ScriptedTerminal, oracle: Oracle, period: str
) -> None:
    base = {"15m": "5m", "1w": "1d", "1mon": "1d"}.get(period, period)
    start = "20261116" if base != "1d" else "20260101"
    tables = midsession.run(
        TABLE
        + f"""
    codes = {CODES}
    load(codes, "{base}", "{start}")
    for code in codes:
        assert xtdata.subscribe_quote(code, "{base}", count=-1) > 0
    tell(read(codes, "{period}", start_time="{start}"))
    """
    )
    assert list(tables) == CODES
    for code, table in tables.items():
        start_ms = parse_bound(start, end=False)
        assert start_ms is not None
        truth = oracle.bars(code, period, start_ms)
        assert len(truth["time"]) > 3
        assert_bars(table, truth)
        assert len(table["index"][0]) == (8 if base == "1d" else 14)
    if period == "1m":
        assert table["index"][-1] == "20261120103100"
        assert sum(stamp.startswith("20261119") for stamp in table["index"]) == 241


@pytest.mark.parametrize("adjust", ["front", "back", "front_ratio", "back_ratio"])
def test_adjusted_bars_are_the_oracles(
    midsession: ScriptedTerminal, oracle: Oracle, adjust: str
) -> None:
    table = midsession.run(
        TABLE
        + f"""
    load(["600519.SH"], "1d", "20200101")
    tell(read(["600519.SH"], "1d", start_time="20200101", dividend_type="{adjust}"))
    """
    )["600519.SH"]
    start_ms = parse_bound("20200101", end=False)
    assert start_ms is not None
    assert_bars(table, oracle.bars("600519.SH", "1d", start_ms, adjust=adjust))
    plain = oracle.bars("600519.SH", "1d", start_ms)
    assert table["columns"]["close"] != plain["close"].tolist()


def test_today_needs_a_subscription_and_stays_after_it(
    start_terminal: Callable[..., ScriptedTerminal],
) -> None:
    stages = start_terminal(*MIDSESSION).run(
        TABLE
        + """
    def last():
        return read(["600519.SH"], "1m", count=2)["600519.SH"]["index"]
    stages = []
    load(["600519.SH"], "1m", "20261118", "20261119")
    stages.append(last())
    number = xtdata.subscribe_quote("600519.SH", "1m", count=-1)
    stages.append(last())
    xtdata.unsubscribe_quote(number)
    stages.append(last())
    stages.append(list(xtdata.get_local_data([], ["600519.SH"], "1m", count=2)["600519.SH"].index))
    tell(stages)
    """
    )
    assert stages[0] == ["20261119145900", "20261119150000"]
    assert stages[1] == ["20261120103000", "20261120103100"]
    assert stages[2] == ["20261120102900", "20261120103000"]
    assert stages[3] == stages[2]


def test_bounds_and_count(midsession: ScriptedTerminal) -> None:
    answers = midsession.run(
        TABLE
        + """
    import datetime as dt
    load(["000001.SZ"], "1m", "20261116")
    def index(**words):
        return read(["000001.SZ"], "1m", **words)["000001.SZ"]["index"]
    whole = index(start_time="20261117", end_time="20261117")
    minutes = index(start_time="20261117100000", end_time="20261117100300")
    moment = lambda minute: dt.datetime(2026, 11, 17, 10, minute)
    dates = index(start_time=moment(0), end_time=moment(3))
    tell([whole, minutes, dates, index(end_time="20261117100300", count=2),
          index(count=0), index(start_time="20261118", end_time="20261117")])
    """
    )
    whole, minutes, dates, counted, none, reverse = answers
    assert (whole[0], whole[-1], len(whole)) == ("20261117093000", "20261117150000", 241)
    assert minutes == dates == [f"2026111710{minute:02}00" for minute in range(4)]
    assert counted == minutes[-2:]
    assert none == reverse == []


def test_ticks_are_the_oracles(midsession: ScriptedTerminal, oracle: Oracle) -> None:
    result = midsession.run(
        TABLE
        + """
    xtdata.download_history_data2(["600519.SH"], "tick", "20261119", "")
    wait_for(lambda: xtdata.get_market_data_ex([], ["600519.SH"], "tick")["600519.SH"].size)
    frame = xtdata.get_market_data_ex([], ["600519.SH"], "tick", start_time="20261120")["600519.SH"]
    some = xtdata.get_market_data_ex(["lastPrice"], ["600519.SH"], "tick", count=3)["600519.SH"]
    array = xtdata.get_market_data([], ["600519.SH"], "tick", count=3)["600519.SH"]
    unknown = xtdata.get_market_data_ex([], ["999999.SH"], "tick")
    tell([table(frame), table(some), array["time"].tolist(), list(array["askPrice"]), unknown])
    """
    )
    frame, some, times, asks, unknown = result
    truth = oracle.ticks("600519.SH")
    assert len(truth["time"]) > 500
    for name, values in frame["columns"].items():
        if name != "tickvol":
            assert values == truth[name].tolist(), name
    assert sum(frame["columns"]["tickvol"]) == truth["volume"][-1]
    assert some["columns"] == {"lastPrice": truth["lastPrice"][-3:].tolist()}
    assert times == truth["time"][-3:].tolist()
    assert asks == truth["askPrice"][-3:].tolist()
    assert unknown == {}


def test_padding_invents_rows(start_terminal: Callable[..., ScriptedTerminal]) -> None:
    script = (
        TABLE
        + """
    never = read(["600000.SH"], "1d", start_time="20261116", fill_data=True)["600000.SH"]
    load(["600519.SH"], "1d", "20261117", "20261118")
    part = read(["600519.SH"], "1d", start_time="20261116", fill_data=True)["600519.SH"]
    tell([never, part, read(["600519.SH"], "1d", start_time="20261116")["600519.SH"]])
    """
    )
    days = ["20261116", "20261117", "20261118", "20261119", "20261120"]
    for profile in ("research", "broker"):
        never, part, real = start_terminal(*MIDSESSION, "--profile", profile).run(script)
        assert never["index"] == part["index"] == days
        assert never["columns"]["suspendFlag"] == [1] * 5
        assert never["columns"]["volume"] == [0] * 5
        assert (never["columns"]["close"][0] > 0) == (profile == "research")
        assert real["index"] == days[1:3]
        assert part["columns"]["suspendFlag"] == [1, 0, 0, 1, 1]
        close = real["columns"]["close"][-1]
        for name in ("open", "high", "low", "close"):
            assert part["columns"][name][3:] == [close, close]


def test_padding_knows_each_days_session(terminal: ScriptedTerminal) -> None:
    own = Oracle(terminal.port)
    try:
        past = str(own.trading_days(20200101, 20991231)[-2])
    finally:
        own.close()
    index = terminal.run(
        TABLE
        + f"""
    tell(read(["600519.SH"], "1m", start_time="{past}", fill_data=True)["600519.SH"]["index"])
    """
    )
    # The past day kept exchange hours; today, around the clock, has a row for every minute so far.
    assert sum(stamp.startswith(past) for stamp in index) == 241
    assert index == sorted(set(index))
    later = index[241:]
    assert all(stamp.endswith("00") for stamp in later)
    assert not later or later[0].endswith("000100")


def test_wrong_arguments_as_the_native_side_takes_them(midsession: ScriptedTerminal) -> None:
    output, _errors = midsession.output(
        TABLE
        + """
    def shape(**words):
        answer = xtdata.get_market_data_ex([], ["600519.SH", "nodot", "999999.SH"], **words)
        return {code: list(frame.columns) for code, frame in answer.items()}
    answers = [shape(period="1x"), shape(start_time="2026-01-01"), shape(end_time="20261399"),
               shape(dividend_type="side"), list(shape(period="1d"))]
    try:
        import datetime as dt
        shape(start_time=dt.datetime(2026, 1, 1))
    except TypeError as error:
        answers.append("incompatible function arguments" in str(error))
    tell(answers)
    """
    )
    assert 'RESULT [{}, {}, {}, {}, ["600519.SH", "999999.SH"], true]' in output
    for line in (
        "周期错误 1x, 可以用<get_period_list>函数获取支持的周期",
        "起始时间错误 2026-01-01",
        "结束时间错误 20261399",
        "除权方式错误 side",
        "代码错误，代码:nodot",
    ):
        assert line in output


def test_history_depth_and_old_download(start_terminal: Callable[..., ScriptedTerminal]) -> None:
    firsts = start_terminal(*MIDSESSION, "--profile", "old").run(
        TABLE
        + """
    answers = [xtdata.download_history_data("600519.SH", period, "20100101", "")
               for period in ("1m", "1d")]
    wait_for(lambda: len(read(["600519.SH"], "1d")["600519.SH"]["index"]))
    wait_for(lambda: len(read(["600519.SH"], "1m", count=1)["600519.SH"]["index"]))
    firsts = [read(["600519.SH"], period, end_time="20260101")["600519.SH"]["index"][0]
              for period in ("1m", "1d")]
    tell([answers, firsts, list(read(["999999.SH"], "1d"))])
    """
    )
    assert firsts[0] == [None, None]
    assert firsts[1][0].startswith("202511")
    assert firsts[1][1] < "20180101"
    assert firsts[2] == []


def test_a_data_dir_keeps_the_cache(
    start_terminal: Callable[..., ScriptedTerminal], tmp_path: Path
) -> None:
    flags = (*MIDSESSION, "--data-dir", str(tmp_path))
    first = start_terminal(*flags)
    first.run(TABLE + "\n    load(['600519.SH'], '1d', '20261101')\n    tell(1)")
    first.stop()
    index = start_terminal(*flags).run(
        TABLE + "\n    tell(read(['600519.SH'], '1d')['600519.SH']['index'])"
    )
    assert index[0] == "20261102"


def test_full_kline_and_wide_frames(midsession: ScriptedTerminal, oracle: Oracle) -> None:
    kline, wide = midsession.run("""
        frame = xtdata.get_full_kline(["close"], ["600519.SH"], "1m", count=3)["close"]
        xtdata.subscribe_quote("600000.SH", "5m", count=-1)
        other = xtdata.get_market_data(["close"], ["600000.SH"], "5m", count=2)["close"]
        tell([[list(frame.index), list(frame.columns), frame.values.tolist()],
              [list(other.index), list(other.columns), other.values.tolist()]])
    """)
    truth = oracle.bars("600519.SH", "1m", TODAY_MS)["close"][-3:].tolist()
    assert kline == [["600519.SH"], [f"2026112010{m}00" for m in (29, 30, 31)], [truth]]
    truth = oracle.bars("600000.SH", "5m", TODAY_MS)["close"][-2:].tolist()
    assert wide == [["600000.SH"], ["20261120103000", "20261120103500"], [truth]]


def test_bounds_are_china_time() -> None:
    day = 1_795_104_000_000  # 2026-11-20 00:00 +08:00
    assert parse_bound("20261120", end=False) == day
    assert parse_bound("20261120", end=True) == day + 86_400_000 - 1
    assert parse_bound("20261120000001", end=False) == day + 1000
    assert parse_bound("", end=True) is None
    assert parse_bound(day, end=True) == day
    for wrong in ("2026", "2026-11-20", "20261340", "2026112025"):
        with pytest.raises(BoundError):
            parse_bound(wrong, end=True)


@pytest.mark.parametrize(
    ("code", "expected"),
    [("600519.SH", True), ("nodot", False), (".SH", False), ("1.", False), ("a.b.SH", False)],
)
def test_codes_have_a_market(code: str, expected: bool) -> None:
    assert well_formed(code) is expected
