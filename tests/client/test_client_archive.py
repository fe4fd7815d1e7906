"""The archive read by `ArchiveReader`, judged by DuckDB and polars over the same files."""

from __future__ import annotations

import random
import re
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

import duckdb
import httpx
import polars
import pyarrow as pa
import pytest
from client_archive import CODES, DAY, T0, Archive, key_of, make_wires, market_of

from qmt_protocol.columns import TICK_COLUMNS, rows_from
from qmt_protocol.errors import ArchiveDamaged, ArchiveUnavailable, ConfigurationError
from qmt_protocol.ticks import decode_tick
from qmt_reading.stored.archive import ArchiveReader, open_archive

DOCS = Path(__file__).resolve().parents[2] / "docs"
Key = tuple[int, str, int]


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive(tmp_path / "archive")


def keys(batches: Iterator[pa.RecordBatch] | Sequence[pa.RecordBatch]) -> list[Key]:
    found: list[Key] = []
    for batch in batches:
        columns = [batch.column(name).to_pylist() for name in ("id_ms", "code", "id_seq")]
        found += zip(*columns, strict=True)
    return found


def test_files_of_all_markets_become_one_order(archive: Archive) -> None:
    """Files that overlap in time, small row groups, a late file: as DuckDB orders them."""
    wires = make_wires(3_000)
    chance = random.Random(2)
    parts: list[list[tuple[str, str, bytes]]] = [[] for _ in range(7)]
    for number, wire in enumerate(wires):
        parts[min(6, number * 7 // len(wires) + chance.choice((0, 0, 1)))].append(wire)
    for part in parts:
        archive.add(part, group=37)
    files = [str(archive.root / path) for path in archive.manifest.paths]
    whole = duckdb.sql(
        f"SELECT id_ms, code, id_seq FROM read_parquet({files}) ORDER BY id_ms, code, id_seq"
    ).fetchall()
    assert keys(ArchiveReader(archive.url).ticks()) == whole
    assert len(whole) == len(wires)
    for _ in range(12):
        codes = chance.sample(CODES, chance.randint(1, 4))
        start, end = sorted(chance.choices([key_of(wire)[0] for wire in wires], k=2))
        some = [key for key in whole if key[1] in codes and start <= key[0] <= end]
        assert keys(ArchiveReader(archive.url).ticks(codes, start, end)) == some
    of_sh = keys(ArchiveReader(archive.url).ticks(markets=["SH"]))
    assert of_sh == [key for key in whole if market_of(key[1]) == "SH"]


def test_what_is_read_is_what_was_published(archive: Archive) -> None:
    wires = make_wires(500)
    archive.add(wires)
    rows = [row for batch in ArchiveReader(archive.url).ticks() for row in rows_from(batch)]
    ordered = sorted(wires, key=key_of)
    assert [(code, at) for code, at, _ in rows] == [(code, at) for code, at, _ in ordered]
    ticks = [decode_tick(t1, code, at) for code, at, t1 in ordered]
    from qmt_protocol.columns import ticks_from

    read = [tick for batch in ArchiveReader(archive.url).ticks() for tick in ticks_from(batch)]
    assert [repr(tick) for tick in read] == [repr(tick) for tick in ticks]  # NaN is NaN
    assert [(t.code, t.id, t.flags) for t in read] == [(t.code, t.id, t.flags) for t in ticks]


def test_a_repeat_comes_once_and_columns_can_be_chosen(archive: Archive) -> None:
    wires = make_wires(300)
    archive.add(wires[:200])
    archive.add(wires[100:])
    (batch,) = ArchiveReader(archive.url).ticks(columns=["volume"])
    assert batch.schema.names == ["code", "id_ms", "id_seq", "volume"]
    assert keys([batch]) == sorted(map(key_of, wires))
    (batch,) = ArchiveReader(archive.url).ticks()
    assert batch.schema.equals(TICK_COLUMNS, check_metadata=True)


def test_a_trading_day_holds_the_night_before(archive: Archive) -> None:
    night = make_wires(20, ["rb2701.SF"], start_ms=T0 - 12 * 3_600_000)
    day = make_wires(20, ["rb2701.SF"])
    archive.add([*night, *day], day=DAY)
    archive.add(make_wires(5, ["rb2701.SF"], start_ms=T0 + 12 * 3_600_000), day=DAY + 3)
    read = keys(ArchiveReader(archive.url).ticks(day=DAY))
    assert read == sorted(map(key_of, [*night, *day]))


def test_compaction_while_it_is_read(archive: Archive) -> None:
    """Files go away between two batches: reading goes on in their successor."""
    wires = make_wires(60_000, step=1, strange=False)
    for at in range(0, len(wires), 20_000):
        archive.add(wires[at : at + 20_000], group=5_000)
    batches = iter(ArchiveReader(archive.url).ticks())
    read = keys([next(batches)])
    assert 0 < len(read) < len(wires)
    archive.compact(wires)
    read += keys(batches)
    assert read == sorted(map(key_of, wires))


def test_damage_is_named(archive: Archive) -> None:
    archive.add(make_wires(2_000), group=500)
    file = archive.manifest.ticks("SZ")[0]
    path = archive.root / file.path
    whole = path.read_bytes()
    for broken in (
        whole[: len(whole) // 2],
        b"",
        whole[:4] + b"\0" * (len(whole) // 2) + whole[4 + len(whole) // 2 :],
    ):
        path.write_bytes(broken)
        with pytest.raises(ArchiveDamaged, match=re.escape(file.path)) as caught:
            list(ArchiveReader(archive.url).ticks())
        assert caught.value.path == file.path
        assert keys(ArchiveReader(archive.url).ticks(["600519.SH"]))  # others can be read
    path.unlink()
    with pytest.raises(ArchiveDamaged, match="is not there") as caught:
        list(ArchiveReader(archive.url).ticks())
    assert caught.value.path == file.path


def test_no_archive_and_a_broken_manifest(tmp_path: Path, archive: Archive) -> None:
    with pytest.raises(ArchiveUnavailable, match="no archive"):
        ArchiveReader(str(tmp_path / "nowhere")).manifest()
    (archive.root / "manifest.json").write_text("{")
    with pytest.raises(ArchiveDamaged, match="manifest"):
        ArchiveReader(archive.url).manifest()


@pytest.mark.parametrize("url", ["", "ftp://nas/ticks", "s3://", "s3://bucket?colour=red"])
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(ConfigurationError):
        open_archive(url)


def test_addresses(archive: Archive, tmp_path: Path) -> None:
    archive.add(make_wires(10))
    assert ArchiveReader(f"file://{archive.root}").manifest() == archive.manifest
    reader = ArchiveReader("s3://key:hidden@bucket/ticks?endpoint_override=127.0.0.1:1")
    assert reader.address == "s3://bucket/ticks"
    assert reader.root == "bucket/ticks"


def test_s3(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over HTTP from a server that speaks S3, and what is told when there is none."""
    from moto.server import ThreadedMotoServer

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"s3://bucket/deep/ticks?endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1"
    with pytest.raises(ArchiveUnavailable, match=r"s3://bucket/deep/ticks"):
        ArchiveReader(url).manifest()
    server = ThreadedMotoServer("127.0.0.1", port, verbose=False)
    server.start()
    try:
        wires = make_wires(1_000)
        archive.add(wires, group=200)
        reader = ArchiveReader(url)
        httpx.put(f"http://127.0.0.1:{port}/bucket", timeout=120).raise_for_status()
        for path in [*archive.manifest.paths, "manifest.json"]:
            with reader.filesystem.open_output_stream(reader.path_of(path)) as file:
                file.write((archive.root / path).read_bytes())
        assert keys(reader.ticks()) == sorted(map(key_of, wires))
        gone = archive.manifest.files[0].path
        reader.filesystem.delete_file(reader.path_of(gone))
        with pytest.raises(ArchiveDamaged, match=re.escape(gone)):
            list(ArchiveReader(url).ticks())
    finally:
        server.stop()


def blocks(language: str) -> list[str]:
    page = (DOCS / "replay.md").read_text("utf-8")
    return re.findall(rf"```{language}\n(.*?)```", page, re.S)


def test_the_sql_of_the_documentation_reads_what_the_manifest_names(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    wires = make_wires(400)
    archive.add(wires[:250])
    archive.compact(wires)
    orphan = archive.root / f"ticks/market=SH/day={DAY}/half.parquet"
    orphan.write_bytes((archive.root / archive.manifest.ticks("SH")[0].path).read_bytes())
    monkeypatch.chdir(archive.root)
    statements = [one for block in blocks("sql") for one in block.split(";") if one.strip()]
    assert len(statements) >= 3
    connection = duckdb.connect()
    for statement in statements:
        connection.execute(statement)
    assert connection.execute("SELECT count(*) FROM ticks").fetchall() == [(len(wires),)]
    assert connection.execute(
        "SELECT id_ms, code, id_seq FROM ticks ORDER BY ALL"
    ).fetchall() == sorted(map(key_of, wires))
    (block,) = [one for one in blocks("python") if "polars" in one]
    scope: dict[str, polars.LazyFrame] = {}
    exec(block, scope)  # our own page
    frame = scope["ticks"].select("id_ms", "code", "id_seq").sort("id_ms", "code", "id_seq")
    assert frame.collect().rows() == sorted(map(key_of, wires))
