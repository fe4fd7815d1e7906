"""Ranges of row groups: as written, and never the process's end, whatever a byte became."""

from __future__ import annotations

import io
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq

from qmt_reading.stored.parquet_groups import group_ranges

DAMAGED = """
import io, sys
import pyarrow as pa, pyarrow.parquet as pq
from qmt_reading.stored.parquet_groups import group_ranges

data = sys.stdin.buffer.read()
size = int.from_bytes(data[-8:-4], "little")
read = refused = 0
for at in range(len(data) - 8 - size, len(data) - 8):
    for other in (data[at] ^ 1, data[at] ^ 4, (data[at] + 2) % 256, 255):
        changed = data[:at] + bytes([other]) + data[at + 1 :]
        try:
            list(group_ranges(pq.ParquetFile(io.BytesIO(changed)), ("id_ms", "code")))
            read += 1
        except (pa.ArrowException, OSError, MemoryError, ValueError):
            refused += 1
print(read, refused)
"""


def file_of(rows: int) -> bytes:
    file = io.BytesIO()
    columns = {
        "id_ms": pa.array(range(rows), pa.int64()),
        "code": pa.array([f"{number:06}.SH" for number in range(rows)]),
        "askPrice": pa.array([[1.0, 2.0]] * rows),
        "lastPrice": pa.array([1.5] * rows),
    }
    pq.write_table(pa.table(columns), file, row_group_size=4)
    return file.getvalue()


def test_the_ranges_are_those_of_each_group() -> None:
    parquet = pq.ParquetFile(io.BytesIO(file_of(10)))
    ranges = list(group_ranges(parquet, ("id_ms", "code", "no such column")))
    assert ranges == [
        {"id_ms": (0, 3), "code": ("000000.SH", "000003.SH")},
        {"id_ms": (4, 7), "code": ("000004.SH", "000007.SH")},
        {"id_ms": (8, 9), "code": ("000008.SH", "000009.SH")},
    ]


def test_a_changed_byte_of_a_footer_ends_no_process() -> None:
    done = subprocess.run(
        [sys.executable, "-c", DAMAGED], input=file_of(4), capture_output=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-500:]
    read, refused = map(int, done.stdout.split())
    assert read > 0
    assert refused > 0
