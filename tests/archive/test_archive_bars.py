"""Bar files put together: by code then label, of each bar the newest version, in bounded memory."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from archive_rig import archived_bars, manifest_of, run_archive

from qmt_archive import maintenance
from qmt_archive.buffers import Buffers, sort_bars
from qmt_archive.parquet import write_rows
from qmt_archive.store import ArchiveStore
from qmt_protocol.archive import ArchivedFile, bar_folder
from qmt_protocol.bars import Bar

NINE_MS = 1_763_602_200_000
MINUTE_MS = 60_000


def bars(minutes: range, codes: range, version: int) -> list[Bar]:
    return [
        Bar(
            {
                "time": (at := NINE_MS + minute * MINUTE_MS),
                "close": 10.0 + version,
                "volume": code,
                "closed": True,
            },
            f"{code:06}.SH",
            "1m",
            f"{at}-{version}",
        )
        for minute in minutes
        for code in codes
    ]


def write(store: ArchiveStore, some: list[Bar]) -> None:
    buffers = Buffers()
    buffers.add_bars("SH", some)
    (piece,) = buffers.take()
    table = sort_bars(piece.table)
    path = store.new_path(bar_folder("1m", "SH", piece.day), "part")
    size = store.write(
        path, lambda file: write_rows(file, "bar", [table], [], dense=False, simulated=False)
    )
    ids = table.column("id_ms").to_pylist()
    file = ArchivedFile(
        path=path,
        kind="bar",
        market="SH",
        day=piece.day,
        period="1m",
        rows=len(table),
        size_bytes=size,
        first_ms=min(ids),
        last_ms=max(ids),
    )
    store.commit(lambda held: msgspec.structs.replace(held, files=[*held.files, file]))


@pytest.mark.parametrize("at_once", [7, 100, 1_000_000])
def test_bars_become_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(maintenance, "_BARS_AT_ONCE", at_once)
    store = ArchiveStore(str(tmp_path))
    store.load("qmt")
    write(store, bars(range(30), range(10), 1))
    write(store, bars(range(20, 40), range(5, 15), 2))  # newer versions of some
    write(store, bars(range(25, 28), range(3), 0))  # older ones
    (group,) = maintenance.groups(store.manifest)
    done = maintenance.compact(store, group, lambda: None)
    store.delete(done.replaced)
    expected = {}
    for minutes, codes, version in ((range(30), range(10), 1), (range(20, 40), range(5, 15), 2)):
        for bar in bars(minutes, codes, version):
            ms, number = map(int, bar.id.split("-"))
            expected[bar.code, ms] = ("1m", number, bar["close"], bar["volume"], True)
    found = archived_bars(tmp_path)
    assert {(code, ms): (period, *rest) for code, period, ms, *rest in found} == expected
    assert len(found) == len(expected) == done.file.rows
    assert done.repeats == 30 * 10 + 20 * 10 + 9 - len(expected)
    assert [one["final"] for one in manifest_of(tmp_path)["files"]] == [True]
    assert run_archive(tmp_path, "verify").returncode == 0
