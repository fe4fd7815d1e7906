"""What can go wrong with the place: said once, nothing lost, and written when it is right again."""

from __future__ import annotations

import resource
import select
import socket
import socketserver
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import pytest
import redis
from archive_rig import (
    DAY,
    FRIDAY_MS,
    Publisher,
    archive_process,
    archived_count,
    archived_rows,
    assert_same,
    events,
    kill_archive,
    manifest_of,
    run_archive,
    start_archive,
    stop_archive,
    wait_archived,
)
from moto.server import ThreadedMotoServer
from small_disk import SmallDisk, can_mount
from waiting import wait_for

from qmt_standalone.redis_server import RedisServer


def test_a_full_disk_delays_and_loses_nothing(
    streams: redis.Redis, streams_server: RedisServer, folder: Path
) -> None:
    publisher = Publisher(streams)
    now = publisher.steps(3)
    with archive_process(folder, streams_server.url) as child:
        wait_archived(folder, 120)
        was = manifest_of(folder)
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.prlimit(child.pid, resource.RLIMIT_FSIZE, (2000, limit[1]))
        now = publisher.steps(3, now)
        wait_for(lambda: events(streams, "archive unwritable"), "it is told")
        publisher.steps(3, now)
        assert manifest_of(folder) == was
        assert {path.relative_to(folder).as_posix() for path in folder.rglob("*.parquet*")} == {
            one["path"] for one in was["files"]
        }
        resource.prlimit(child.pid, resource.RLIMIT_FSIZE, limit)
        wait_archived(folder, 360)
        wait_for(lambda: events(streams, "archive written again"), "that too")
    (told,) = events(streams, "archive unwritable")
    assert "cannot be written" in told["reason"]
    assert str(folder) in told["reason"]
    assert_same(archived_rows(folder), publisher.expected())


def test_a_disk_without_a_byte_delays_and_loses_nothing(
    streams: redis.Redis, streams_server: RedisServer, folder: Path
) -> None:
    if not can_mount():
        pytest.skip("mounting a small disk needs root")
    publisher = Publisher(streams)
    now = publisher.steps(3)
    with SmallDisk(folder, 8 * 2**20) as disk:
        store = folder / "archive"
        with archive_process(store, streams_server.url):
            wait_archived(store, 120)
            disk.fill()
            now = publisher.steps(3, now)
            wait_for(lambda: events(streams, "archive unwritable"), "it is told")
            assert archived_count(store) == 120
            disk.free()
            wait_archived(store, 240)
        assert_same(archived_rows(store), publisher.expected())
        assert run_archive(store, "verify").returncode == 0


def test_a_folder_that_cannot_be_used_is_said_at_the_start(
    streams_server: RedisServer, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    for where in (tmp_path / "file", tmp_path / "file" / "archive"):
        done = run_archive(where, "run")
        assert done.returncode == 2
        assert str(where) in done.stderr
        assert "Traceback" not in done.stderr
    for command in ("ls", "verify", "prune", "compact"):
        done = run_archive(tmp_path / "nowhere", command)
        assert done.returncode == 2
        assert "There is no archive at" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["verify", "yesterday"], "is not a day"),
        (["verify", "20200101"], "has nothing of 20200101"),
        (["prune", "--keep", "all"], "no number of trading days"),
        (["run", "--archive-url", "s3://"], "names no bucket"),
        (["run", "--archive-url", "gopher://a/b"], "not the address of an archive"),
        (["run", "--prefix", "other"], "holds the prefix 'qmt'"),
    ],
)
def test_bad_arguments_are_said(
    folder: Path, arguments: list[str], message: str, streams_server: RedisServer
) -> None:
    folder.mkdir()
    (folder / "manifest.json").write_text('{"version": 1, "prefix": "qmt"}', "utf-8")
    done = run_archive(folder, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_damaged_manifest_is_said(folder: Path) -> None:
    folder.mkdir()
    (folder / "manifest.json").write_text('{"version": 1, "files": [', "utf-8")
    done = run_archive(folder, "ls")
    assert done.returncode == 1
    assert "manifest.json cannot be read" in done.stderr


def test_a_damaged_file_is_named_and_left(
    streams: redis.Redis, streams_server: RedisServer, folder: Path
) -> None:
    publisher = Publisher(streams, ["SH"])
    now = publisher.steps(3)
    with archive_process(folder, streams_server.url):
        wait_archived(folder, 60)
        now = publisher.steps(3, now)
        wait_archived(folder, 120)
    files = sorted(one["path"] for one in manifest_of(folder)["files"])
    hurt = folder / files[0]
    data = bytearray(hurt.read_bytes())
    data[100:200] = bytes(100)
    hurt.write_bytes(data)
    verified = run_archive(folder, "verify", str(DAY))
    assert verified.returncode == 1
    assert files[0] in verified.stdout
    compacted = run_archive(folder, "compact")
    assert compacted.returncode == 1
    assert files[0] in compacted.stderr
    assert hurt.read_bytes() == data
    assert sorted(one["path"] for one in manifest_of(folder)["files"]) == files
    # Recording goes on beside it.
    with archive_process(folder, streams_server.url, QMT_ARCHIVE_COMPACT_AFTER_S="0.3"):
        publisher.steps(3, now)
        wait_archived(folder, 180)
        wait_for(lambda: events(streams, "archive damaged"), "the damage is told")
    assert [one["path"] for one in events(streams, "archive damaged")] == [files[0]]
    hurt.unlink()
    assert files[0] in run_archive(folder, "verify").stdout


def test_what_no_manifest_names_is_removed_at_the_start_only(
    streams: redis.Redis, streams_server: RedisServer, folder: Path
) -> None:
    publisher = Publisher(streams, ["SH"])
    publisher.steps(2)
    child = start_archive(folder, streams_server.url)
    wait_archived(folder, 40)
    kill_archive(child)
    named = folder / manifest_of(folder)["files"][0]["path"]
    orphan, part = named.with_name("part-5-x.parquet"), named.with_name("part-6-y.parquet.part")
    mine = folder / "notes.txt"
    for path in (orphan, part, mine):
        path.write_bytes(b"x")
    assert run_archive(folder, "ls").returncode == 0
    assert orphan.exists()
    stop_archive(start_archive(folder, streams_server.url))
    assert [path.exists() for path in (named, orphan, part, mine)] == [True, False, False, True]


def test_prune_keeps_the_newest_days(
    streams: redis.Redis, streams_server: RedisServer, folder: Path
) -> None:
    publisher = Publisher(streams, ["SH"])
    for day in range(3):
        publisher.steps(1, FRIDAY_MS + day % 2 * 86_400_000 + day // 2 * 4 * 86_400_000)
    with archive_process(folder, streams_server.url):
        wait_archived(folder, 60)
    done = run_archive(folder, "prune", "--keep", "2d")
    assert done.returncode == 0, done.stderr
    assert {one["day"] for one in manifest_of(folder)["files"]} == {20251121, 20251124}
    assert len(list(folder.rglob("*.parquet"))) == 2
    assert run_archive(folder, "verify").returncode == 0


@pytest.fixture
def s3_port() -> Iterator[int]:
    """A server that speaks S3, with an empty bucket."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    port = int(server.get_host_and_port()[1])
    yield port
    server.stop()


class Relay:
    """Stands before a server, and can be away."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._server: socketserver.ThreadingTCPServer | None = None
        self.port = 0

    def __enter__(self) -> Relay:
        to = self._to

        class Pipe(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with socket.create_connection(("127.0.0.1", to)) as other:
                    ends = {self.request: other, other: self.request}
                    while True:
                        ready, _, _ = select.select(list(ends), [], [], 30)
                        for end in ready:
                            data = end.recv(65_536)
                            if not data:
                                return
                            ends[end].sendall(data)
                        if not ready:
                            return

        class Server(socketserver.ThreadingTCPServer):
            allow_reuse_address = True
            daemon_threads = True
            block_on_close = False

        self._server = Server(("127.0.0.1", self.port), Pipe)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.shutdown()
        self._server.server_close()


def bucket_url(port: int) -> str:
    options = f"endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1"
    return f"s3://k:s@market/data?{options}"


@pytest.fixture
def bucket(s3_port: int, folder: Path) -> Iterator[Callable[[], Path]]:
    """Makes the bucket; downloads all that is in it."""
    client = boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{s3_port}",
        aws_access_key_id="k",
        aws_secret_access_key="s",
        region_name="us-east-1",
    )
    reset = urllib.request.Request(f"http://127.0.0.1:{s3_port}/moto-api/reset", method="POST")
    urllib.request.urlopen(reset, timeout=120).close()
    client.create_bucket(Bucket="market")

    def download() -> Path:
        for page in client.get_paginator("list_objects_v2").paginate(Bucket="market"):
            for one in page.get("Contents", []):
                if one["Key"].endswith("/"):  # an empty folder's offset
                    continue
                path = folder / one["Key"]
                path.parent.mkdir(parents=True, exist_ok=True)
                client.download_file("market", one["Key"], str(path))
        return folder / "data"

    yield download
    client.close()


def test_s3(
    streams: redis.Redis,
    streams_server: RedisServer,
    s3_port: int,
    folder: Path,
    bucket: Callable[[], Path],
) -> None:
    url = bucket_url(s3_port)
    publisher = Publisher(streams)
    now = publisher.steps(3)
    child = start_archive(url, streams_server.url)
    try:
        wait_for(lambda: archived_count(bucket()) >= 120, "the first ticks are in the bucket")
        second = run_archive(url, "run", "--streams-url", streams_server.url)
        assert second.returncode == 3
        assert "another qmt-archive" in second.stderr
        now = publisher.steps(3, now)
        wait_for(lambda: archived_count(bucket()) >= 240, "the next")
    finally:
        kill_archive(child)
    streams.delete("qmt:archive")  # its lease would run out in half a minute
    publisher.steps(3, now)
    with archive_process(url, streams_server.url):
        wait_for(lambda: archived_count(bucket()) >= 360, "and the last")
    done = run_archive(url, "compact", "--streams-url", streams_server.url)
    assert done.returncode == 0, done.stderr
    assert_same(archived_rows(bucket()), publisher.expected())
    assert len(manifest_of(folder / "data")["files"]) == 2
    assert run_archive(url, "verify").returncode == 0


def test_s3_away(
    streams: redis.Redis,
    streams_server: RedisServer,
    s3_port: int,
    bucket: Callable[[], Path],
) -> None:
    publisher = Publisher(streams)
    now = publisher.steps(3)
    relay = Relay(s3_port)
    with relay:
        url = bucket_url(relay.port)
        child = start_archive(url, streams_server.url)
        try:
            wait_for(lambda: archived_count(bucket()) >= 120, "the first ticks are in the bucket")
        except BaseException:
            kill_archive(child)
            raise
    try:
        now = publisher.steps(3, now)
        wait_for(lambda: events(streams, "archive unwritable"), "it is told")
        done = run_archive(url, "ls")
        assert done.returncode == 2
        assert "The archive at s3://market/data cannot be read" in done.stderr
        publisher.steps(3, now)
        with relay:
            wait_for(lambda: archived_count(bucket()) >= 360, "all is there")
            assert stop_archive(child) == 0
    finally:
        kill_archive(child)
    assert len(events(streams, "archive unwritable")) == 1
    assert_same(archived_rows(bucket()), publisher.expected())
