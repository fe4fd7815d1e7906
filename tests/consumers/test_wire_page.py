"""docs/wire.md: its bytes are those of the golden vectors, its commands run, its names are true."""

from __future__ import annotations

import json
import re
import shlex

import msgpack
import redis
from consumer_rig import ROOT, VECTORS
from wanting import heard_on

from qmt_protocol.keys import Keys
from qmt_protocol.schema import schema_documents

PAGE = (ROOT / "docs" / "wire.md").read_text("utf-8")
VECTOR_LIST = json.loads(VECTORS.read_text("utf-8"))["vectors"]
HEX_LINE = re.compile(r"([0-9a-f]+)  +(\S.*?)(?:  +(\S.*))?")
HEX_ROW = re.compile(r"^\| `((?:[0-9a-f]{2})+)` \| (\S+) \|", re.M)


def blocks(language: str) -> list[list[str]]:
    found = re.findall(rf"^ *```{language}\n(.*?)^ *```$", PAGE, re.M | re.S)
    return [[line.strip() for line in block.splitlines()] for block in found]


def test_every_block_of_bytes_is_a_golden_vector_and_says_what_it_holds() -> None:
    golden = {vector["bytes"] for vector in VECTOR_LIST}
    assert len(blocks("hex")) == 3
    for block in blocks("hex"):
        lines = [HEX_LINE.fullmatch(line) for line in block]
        assert all(lines), block
        assert "".join(line[1] for line in lines if line) in golden
        for line in filter(None, lines):
            if line[3]:
                value = msgpack.unpackb(bytes.fromhex(line[1]))
                assert (value, type(value)) == ((said := json.loads(line[3])), type(said))


def test_the_named_elements_are_the_schema() -> None:
    for block, schema in zip(blocks("hex"), ("t1", "k1"), strict=False):
        named = [match[2] for line in block[1:] if (match := HEX_LINE.fullmatch(line))]
        fields = json.loads(schema_documents()[schema])["fields"]
        assert named == [field["name"] for field in fields]


def test_single_numbers_are_what_the_page_says() -> None:
    rows = HEX_ROW.findall(PAGE)
    assert len(rows) == 8
    for data, said in rows:
        value = msgpack.unpackb(bytes.fromhex(data))
        assert (value, type(value)) == (json.loads(said), type(json.loads(said)))


def test_all_other_bytes_on_the_page_are_in_the_vectors() -> None:
    golden = "".join(vector["bytes"] for vector in VECTOR_LIST)
    spans = re.findall(r"`((?:[0-9a-f]{2}){4,})`", PAGE)
    assert spans
    rows = {data for data, _ in HEX_ROW.findall(PAGE)}
    assert [one for one in spans if one not in golden and one not in rows] == []


def test_flags_and_phases_are_those_of_the_schema() -> None:
    schema = json.loads(schema_documents()["t1"])
    flags = next(field for field in schema["fields"] if field["name"] == "flags")["bits"]
    table = re.findall(r"^\|.*\| (\d) \|$", PAGE, re.M)
    assert {*table} - {"0"} == flags.keys()
    sentence = re.search(r"trading phase: (.*?); the\nothers", PAGE, re.S)
    assert sentence is not None
    said = dict(re.findall(r"(\d+) ([a-z -]+)", sentence[1].replace("\n", " ")))
    assert len(said) == 8
    assert said.items() <= schema["phases"].items()


def test_the_keys_are_those_of_the_bridge() -> None:
    keys = Keys()
    code = "600519.SH"
    for key in (
        *(keys.tick(code), keys.bar("1m", code), keys.feed("SH"), keys.latest("SH")),
        *(keys.epoch("SH"), keys.schema, keys.events, keys.seen, keys.status),
    ):
        assert f"`{key}`" in PAGE


def test_every_command_on_the_page_runs(streams: redis.Redis) -> None:
    streams.hset("qmt:schema", mapping=schema_documents())
    streams.set("{qmt:SH}:epoch", "6f1c")
    by_schema = {vector["schema"]: bytes.fromhex(vector["bytes"]) for vector in VECTOR_LIST}
    streams.hset("{qmt:SH}:latest", "600519.SH", by_schema["latest"])
    streams.xadd("{qmt:SH}:tick:600519.SH", {"t1": by_schema["t1"]}, id="1763688603000-0")
    streams.xadd("{qmt:SH}:feed", {"b1": by_schema["b1"]}, id="1763688600250-0")
    streams.xadd("qmt:events", {"e": "{}"})
    streams.zadd("qmt:seen", {"producer@a": 1})
    inline = re.findall(r"`((?:XREVRANGE|ZREVRANGE|GET) [^`]+)`", PAGE)
    commands = [line for block in blocks("redis") for line in block] + inline
    assert len(commands) >= 13
    streams.hset("qmt:refused", "1m|600519.SH", "{}")
    with heard_on(streams, "qmt:demand") as heard, streams.client() as connection:
        connection.response_callbacks.clear()  # answers as they are, QUEUED among them
        for command in commands:
            answer = connection.execute_command(*shlex.split(command))
            assert answer, f"{command}: {answer!r}"
        assert heard() == ["1m|600519.SH", "5m|600519.SH"]
