"""A stream that lost what a dictionary was sent for is no answer without rows."""

from __future__ import annotations

import pyarrow as pa
import pytest

from qmt_protocol.arrow_stream import ArrowStream
from qmt_protocol.errors import CodecError


def test_a_dictionary_without_rows_is_a_stream_that_lost_them() -> None:
    codes = pa.array(["600519.SH", "000001.SZ"]).dictionary_encode()
    table = pa.table({"code": codes})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    whole = sink.getvalue()
    stream = ArrowStream(lambda schema: True, "the stream")
    (batch,) = stream.feed(whole.to_pybytes())
    assert stream.end().names == ["code"]
    assert batch.column(0).to_pylist() == ["600519.SH", "000001.SZ"]

    messages = list(pa.ipc.MessageReader.open_stream(whole))
    assert [one.type for one in messages] == ["schema", "dictionary", "record batch"]
    rest = b"".join(one.serialize().to_pybytes() for one in messages[:2])
    stream = ArrowStream(lambda schema: True, "the stream")
    assert stream.feed(rest + b"\xff\xff\xff\xff\0\0\0\0") == []
    with pytest.raises(CodecError, match="no rows behind it"):
        stream.end()
