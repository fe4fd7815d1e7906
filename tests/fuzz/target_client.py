"""A hostile gateway: every call of the client against answers and frames that are changed."""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import warnings
import zlib
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any, Final

import msgpack
import msgspec
from fuzz_changes import changed, changed_document, encoded
from fuzz_children import Report, in_children
from fuzz_run import ROOT, Target
from hostile_gateway import HostileGateway, http_answer, pack
from target_arrow import (
    CODES,
    FIRST_MS,
    history_table,
    result_of,
    stored_tables,
    stream_of,
)

from qmt_client import AsyncQMTClient
from qmt_protocol.errors import AccessDenied, QMTError
from qmt_protocol.jobs import Manifest
from qmt_protocol.live import (
    GapNotice,
    HeartbeatNotice,
    Live,
    NowLive,
    Shutdown,
    Skipped,
    Subscribed,
    Welcome,
)
from qmt_protocol.status import Heartbeat
from qmt_reading.processes import Process, Status

CODE: Final = CODES[0]
ROWS: Final = 12
JOB: Final = "5f0c7e1f3c0b4a3f8f6f0a2d5b9c1e77"
META: Final = {"simulated": True, "source": {"edition": "x"}, "absent": {}, "market_ms": 1}
MARK: Final = {"SH": ("epoch", "1763688600000-0"), "events": ("", "1763688600000-0")}
END: Final = "the end of the frames"
WITHIN_S: Final = 20.0
_TAKEN: Final = 40

Call = Callable[[AsyncQMTClient], Awaitable[Any]]


def _documents() -> dict[str, Any]:
    """Return what a gateway answers, by the part of the path that says so."""
    beats = [
        Heartbeat(role="producer", host="a", pid=1, markets=["SH", "SZ"], terminal={"state": "ok"}),
        Heartbeat(role="worker", host="a", pid=2, queues=["qmt-query", "qmt-download"]),
    ]
    status = Status(FIRST_MS, tuple(Process(beat, 5) for beat in beats))
    tick = {"time": FIRST_MS, "lastPrice": 10.5, "volume": 3, "askPrice": [1.0, 2.0], "pe": None}
    missing = {"market": "SH", "from_ms": FIRST_MS, "to_ms": FIRST_MS + 1, "reason": "x"}
    return {
        "/status": status.to_dict(),
        "/latest": {
            "ticks": {code: {"id": f"{FIRST_MS}-0", "flags": 0, "tick": tick} for code in CODES},
            "unreadable": {},
            "simulated": True,
        },
        "/archive": {"archived": True, "markets": ["SH"], "missing": [missing], "days": []},
        "POST": {"id": JOB},
        "/jobs/": {
            "id": JOB,
            "entry": "1-0",
            "state": "done",
            "finished": 2,
            "total": 2,
            "message": "",
            "error": None,
        },
        "problem": {
            "error": "history-missing",
            "message": "Not there.",
            "hint": "Download it.",
            "data": {"codes": [CODE], "last_seen_ms": 5},
        },
    }


def _results() -> dict[str, Any]:
    """Return the documents of jobs, by name."""
    return {
        "full_tick": {CODE: {"time": FIRST_MS, "lastPrice": 10.5}},
        "sector_stocks": CODES,
        "instrument_detail": {CODE: {"InstrumentName": "茅台"}, CODES[1]: None},
        "download": {CODE: {"rows": 3, "first_ms": 1, "last_ms": 2}},
    }


def _frames() -> list[dict[str, Any]]:
    """Return the messages of a live connection, as structures of msgpack."""
    vectors = json.loads((ROOT / "docs/wire/vectors.json").read_text("utf-8"))["vectors"]
    t1, k1 = (
        [msgpack.unpackb(bytes.fromhex(one["bytes"])) for one in vectors if one["schema"] == name]
        for name in ("t1", "k1")
    )
    ticks = [[code, f"{FIRST_MS + at}-0", t1[at]] for at, code in enumerate(CODES)]
    bars = [[CODE, "1m", f"{FIRST_MS}-0", k1[0]]]
    told: list[Any] = [
        Welcome(version=1, simulated=True, flush_ms=50, max_bytes=10**6, stall_s=10, heartbeat_s=5),
        Subscribed(id="", position=MARK, codes=3),
        Live(kind="snapshot", position=MARK, ticks=ticks),
        Live(kind="live", position=MARK, ticks=ticks, bars=bars),
        GapNotice(market="SH", reason="trimmed", after=("epoch", "1-1"), codes={CODE: [1, 2, 3]}),
        NowLive(id="", position=MARK),
        HeartbeatNotice(position=MARK, now_ms=FIRST_MS, producer_age_ms=3),
        Live(kind="missed", position={}, ticks=ticks),
        Skipped(ticks=1, codes={CODE: 1}, from_ms=1, to_ms=2),
        Shutdown(reason="x", position=MARK),
    ]
    return [msgspec.to_builtins(one) for one in told]


class ClientCases:
    """See `fuzz_children.Cases`."""

    def __init__(self) -> None:
        warnings.simplefilter("ignore")
        self._loop = asyncio.new_event_loop()
        self._documents = _documents()
        self._results = _results()
        self._frames = _frames()
        ticks, bars = stored_tables()
        self._streams = {"ticks": stream_of(ticks, 3), "bars": stream_of(bars, 2)}
        self._tables = {
            period: result_of(
                Manifest(job="history", kind="table", chunks=1, rows=ROWS, meta=META),
                history_table(period, None, ROWS),
            )
            for period in ("1d", "tick")
        }
        self._gateway = HostileGateway(self._answer)
        self._loop.run_until_complete(self._gateway.start())
        self._client: AsyncQMTClient | None = None
        self._name, self._call, self._target = "", _CALLS["status"][0], ""
        self._changed = b""
        self._job = ""

    def close(self) -> None:
        """End the listener."""
        if self._client is not None:
            self._loop.run_until_complete(self._client.close())
        self._loop.run_until_complete(self._gateway.stop())

    def input(self, chance: random.Random) -> bytes:
        """Return a changed answer to one of the requests of a call."""
        self._name = chance.choice(list(_CALLS))
        self._call, asked = _CALLS[self._name]
        self._target = chance.choice(asked)
        if self._target == "frames":
            return self._changed_frame(chance)
        valid = self._valid(self._target)
        act = chance.random()
        if act < 0.15:
            broken = changed(chance, http_answer(valid), [])
            return chance.choice((chance.randbytes(60), b"", broken))
        if act < 0.25:
            return _inflated(chance, valid)
        if act < 0.40:
            problem = encoded(changed_document(chance, self._documents["problem"]))
            status = chance.choice((400, 401, 404, 409, 422, 500, 502, 503, 599))
            return http_answer(problem, status)
        document = self._document(self._target)
        if document is None or act < 0.6:
            body = changed(chance, valid, list(self._tables.values()))
        else:
            body = encoded(changed_document(chance, document))
        return http_answer(body, chance.choice((200, 200, 200, 200, 202, 204, 301, 500)))

    def _changed_frame(self, chance: random.Random) -> bytes:
        frame = chance.choice(self._frames)
        if chance.random() < 0.7:
            return pack(changed_document(chance, frame))
        return changed(chance, pack(frame), [pack(one) for one in self._frames])

    def _document(self, target: str) -> Any:
        if target == "result" and self._name in _JOBS and _JOBS[self._name] in self._results:
            manifest = Manifest(
                job=_JOBS[self._name],
                kind="document",
                document=self._results[_JOBS[self._name]],
                meta=META,
            )
            return manifest.model_dump(mode="json")
        return self._documents.get(target)

    def _valid(self, target: str) -> bytes:
        if target in self._streams:
            return self._streams[target]
        document = self._document(target)
        if document is not None:
            return encoded(document)
        return self._tables["tick" if self._name == "history of ticks" else "1d"]

    def _answer(self, method: str, path: str) -> bytes:
        """Answer a request: as it should be, but for the one that is changed."""
        path = path.partition("?")[0]
        target = next(
            (
                name
                for name, found in (
                    ("POST", method == "POST"),
                    ("result", path.endswith("/result")),
                    ("/jobs/", "/jobs/" in path),
                    ("/latest", path.endswith("/latest")),
                    ("/archive", path.endswith("/archive")),
                    ("/status", path.endswith("/status")),
                    ("ticks", path.endswith("/ticks")),
                    ("bars", path.endswith("/bars")),
                )
                if found
            ),
            "",
        )
        if method == "DELETE":
            return http_answer(b"", 204)
        return self._changed if target == self._target else http_answer(self._valid(target))

    def judge(self, data: bytes, chance: random.Random) -> None:
        """Call the client, which gets it."""
        self._changed = data
        frames = list(map(pack, self._frames))
        if self._target == "frames":
            frames.insert(chance.randrange(len(frames)), data)
        ended = AccessDenied(END).to_dict()
        self._gateway.frames = [*frames, pack({"type": "error", "id": "", "error": ended})]
        self._loop.run_until_complete(self._called(data))

    async def _called(self, data: bytes) -> None:
        if self._client is None:
            self._client = AsyncQMTClient(self._gateway.url, timeout_s=0.5, progress=False)
            self._client.transport._give_up_after_s = 0.0  # type: ignore[attr-defined]
        try:
            result = await asyncio.wait_for(self._call(self._client), WITHIN_S)
        except QMTError as error:
            self._check(error)
            if error.message == END:
                return  # all frames were taken
            raise
        self._compare(result, data)

    @staticmethod
    def _check(error: QMTError) -> None:
        """An error says what happened, and can go on to other processes."""
        assert error.message
        assert len(error.message) < 5_000
        again = type(error)(error.message, hint=error.hint, **error.data)
        assert again.to_dict() == error.to_dict()

    def _compare(self, result: Any, data: bytes) -> None:
        """What was taken is what JSON says, where it is plain."""
        if self._target not in ("/latest", "/status"):
            return
        head, _, body = data.partition(b"\r\n\r\n")
        if b" 200 " not in head.partition(b"\r\n")[0]:
            return
        # A head may call a part of it the whole.
        told, _ = json.JSONDecoder().raw_decode(body.decode("utf-8", "replace"))
        if self._name == "latest" and self._target == "/latest":
            for code, tick in result.items():
                sent = told["ticks"][code]["tick"]
                assert dict(tick) == {name: one for name, one in sent.items() if one is not None}
        if self._name == "status" and self._target == "/status":
            assert len(result.processes) == len(told["processes"])
            json.dumps(result.to_dict())


def _inflated(chance: random.Random, valid: bytes) -> bytes:
    """Return an answer in an encoding that nobody asked for."""
    name, body = chance.choice(
        (
            ("gzip", gzip.compress(valid)),
            ("deflate", zlib.compress(b"[" + b"0," * 10**6 + b"0]")),
            ("br", valid),
            ("gzip, gzip", gzip.compress(gzip.compress(valid))),
            ("identity", valid),
        )
    )
    return http_answer(body, **{"Content-Encoding": name})


async def _some(items: Any) -> list[Any]:
    found = []
    async with aclosing(items):
        async for item in items:
            found.append(item)
            if len(found) >= _TAKEN:
                break
    return found


async def _batches(client: AsyncQMTClient) -> list[Any]:
    return await _some(await client.stored_ticks(CODES, as_="batches"))


async def _realtime(client: AsyncQMTClient) -> None:
    await client.subscribe_realtime(CODES, lambda data: None)


_JOB: Final = ("POST", "/jobs/", "result")
_LIVE: Final = ("frames", "frames", "frames", "/status", "/latest")
_POSITION: Final = {"SH": ["epoch", "1763688500000-0"]}
_CALLS: Final[dict[str, tuple[Call, tuple[str, ...]]]] = {
    "history": (lambda client: client.history(CODES, "1d"), _JOB),
    "history of one": (lambda client: client.history(CODE, "1d"), _JOB),
    "history of ticks": (lambda client: client.history(CODES, "tick", layout="long"), _JOB),
    "download": (lambda client: client.download(CODE), _JOB),
    "sector": (lambda client: client.sector_stocks("沪深300"), _JOB),
    "detail": (lambda client: client.instrument_detail(CODES), _JOB),
    "detail of one": (lambda client: client.instrument_detail(CODE), _JOB),
    "full_tick": (lambda client: client.full_tick(CODES), ("/latest", "/status")),
    "latest": (lambda client: client.latest(CODES), ("/latest",)),
    "latest of markets": (lambda client: client.latest(markets=["SH"]), ("/latest",)),
    "status": (lambda client: client.status(), ("/status",)),
    "stored": (lambda client: client.stored_ticks(CODES), ("ticks", "/archive")),
    "stored arrow": (lambda client: client.stored_ticks("*", as_="arrow"), ("ticks", "/status")),
    "stored batches": (_batches, ("ticks", "/archive")),
    "stored bars": (lambda client: client.stored_bars(CODES, "1m"), ("bars",)),
    "replay": (lambda client: _some(client.replay(CODES, speed="max")), ("ticks", "/archive")),
    "ticks": (lambda client: _some(client.ticks(CODES)), _LIVE),
    "ticks of markets": (lambda client: _some(client.ticks(markets=["SH"], snapshot=True)), _LIVE),
    "ticks from a position": (
        lambda client: _some(client.ticks(CODES, position=_POSITION)),
        _LIVE,
    ),
    "bars": (lambda client: _some(client.bars(CODE, "1m", snapshot=True)), _LIVE),
    "realtime": (_realtime, _LIVE),
}
"""Each call, and which requests of it are answered with something else."""
_JOBS: Final = {
    "download": "download",
    "sector": "sector_stocks",
    "detail": "instrument_detail",
    "detail of one": "instrument_detail",
}


def make_cases() -> ClientCases:
    """Return the cases, in a child."""
    return ClientCases()


def run(seed: int, count: int, keep: Path | None = None) -> Report:
    """Run the target."""
    return in_children("client", seed, count, keep)


TARGET: Final = Target(
    "client",
    "every call of the client, over real HTTP and WebSocket, against a gateway whose answers and "
    "frames are changed",
    50_000,
    400,
    run,
)
