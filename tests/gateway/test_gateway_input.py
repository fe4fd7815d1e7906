"""What may not be sent, by REST and by WebSocket: refused by the field's name; nobody is asked."""

from __future__ import annotations

import json
from typing import Any

import httpx
import msgpack
import pytest
from gateway_bench import OPEN_MS, GatewayProcess, Producer, Worker
from test_gateway_market import problem_of
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

from qmt_protocol import live

WIDE = "６００５１９.SH"
"""Full-width digits, which `int` and a regular expression's ``\\d`` take for 600519."""
CODE = "600519.SH"
JOB = f"/api/v1/jobs/{'a' * 32}"
JSON = {"content-type": "application/json"}
FAR_MS = 2**62 + 1

QUERIES: list[tuple[str, str, str]] = [
    *(
        (path, f"{name}={value}", name)
        for path, name in (
            (f"/api/history?stock={CODE}", "start"),
            (f"/api/v1/stored/ticks?codes={CODE}", "start"),
            (f"/api/v1/stored/bars?codes={CODE}", "end"),
        )
        for value in (
            *("0001-01-01", "00010101", "1969-12-31", "9999-12-31", "9999-12-31T23:59:59-08:00"),
            *("２０２６-０１-０５", "２０２６０１０５", "2026-01-05%00", "-1", "NaN", "2" * 5000),
        )
    ),
    *(
        (f"/api/history?stock={CODE}", f"count={value}", "count")
        for value in ("１２", "1_000", "%2B5", "1e3", "9" * 5000, "NaN", "0", "-2", "1000001", "")
    ),
    *(
        (path, f"{name}={code}", name)
        for path, name in (
            ("/api/history?", "stock"),
            ("/api/instrument_detail?", "stock"),
            ("/api/batch_history?", "stocks"),
            ("/api/full_tick?", "stocks"),
            ("/api/v1/latest?", "codes"),
            ("/api/v1/stored/ticks?", "codes"),
        )
        for code in (
            WIDE,
            "٠.SH",
            "6%0000519.SH",
            "1m|600519.SH",
            f"{'x' * 5000}.SH",
            "600519.ＳＨ",
        )
    ),
    ("/api/v1/latest?", "markets=ＳＨ", "markets"),
    ("/api/v1/latest?", f"markets={','.join(f'M{n}' for n in range(33))}", "markets"),
    ("/api/v1/latest?", "codes=%ff.SH", "query"),
    ("/api/sector_stocks?", "sector=%ed%a0%80", "query"),
    ("/api/sector_stocks?", "sector=a%00", "sector"),
    ("/api/sector_stocks?", f"sector={'x' * 65}", "sector"),
    *(
        (f"{JOB}?", f"after={value}", "after")
        for value in ("١-٢", f"{'9' * 30}-0", f"0-{2**64}", f"{'9' * 5000}-0", "1-0%0A")
    ),
    *((f"{JOB}?", f"wait_s={value}", "wait_s") for value in ("NaN", "inf", "１", "-1")),
    (f"/api/history?stock={CODE}", "stock=000001.SZ", "stock"),
    ("/api/v1/status?", "%00=1", "\\x00"),
]

BODIES: list[tuple[str, bytes, str]] = [
    ("history", b"", "body"),
    ("history", b"[]", "body"),
    ("history", b"[" * 200_000, "body"),
    ("history", b'{"codes":' * 100_000, "body"),
    ("history", b'{"codes":["600519.SH"],"codes":["000001.SZ"]}', "codes"),
    ("history", b'{"codes":["600519.SH"],"count":NaN}', "body"),
    ("history", b'{"codes":["600519.SH"],"count":%d}' % 10**400, "count"),
    ("history", b'{"codes":["600519.SH"],"count":true}', "count"),
    ("history", '{"codes":["600519.SH"],"count":"１２"}'.encode(), "count"),
    ("history", b'{"codes":["600519.SH"],"start_ms":-5}', "start_ms"),
    ("history", b'{"codes":["600519.SH"],"end_ms":%d}' % FAR_MS, "end_ms"),
    ("history", b'{"codes":["600519.SH"],"start_ms":1.5}', "start_ms"),
    ("history", b'{"codes":["600519.SH"],"auto_download_rows":%d}' % 10**30, "auto_download_rows"),
    ("history", b'{"codes":["600519.SH"],"period":"\\ud800"}', "body"),
    ("history", b'{"codes":["\\u0000.SH"]}', "codes"),
    ("history", json.dumps({"codes": [WIDE]}).encode(), "codes"),
    ("history", json.dumps({"codes": [f"{n}.SH" for n in range(70_000)]}).encode(), "codes"),
    ("history", b'{"codes":[%b5]}' % (b"5," * 400_000), "codes.0"),
    ("history", b'{"codes":["600519.SH"]}'.decode().encode("utf-16"), "body"),
    ("history", b'{"codes":["\xff.SH"]}', "body"),
    ("history", b"{}", "codes"),
    ("sector_stocks", b'{"sector":"\\u0000"}', "sector"),
    ("download", b'{"codes":[]}', "codes"),
]


def get(http: httpx.Client, path: str, query: str) -> httpx.Response:
    separator = "" if path.endswith("?") else "&"
    return http.get(f"{path}{separator}{query}")


def test_a_query_that_says_something_else_is_refused_with_its_field(
    http: httpx.Client, gateway_process: GatewayProcess, worker: Worker, producer: Producer
) -> None:
    wrong = []
    for path, query, field in QUERIES:
        response = get(http, path, query)
        told = response.json()
        if response.status_code != 422 or told["data"].get("field") != field:
            wrong.append((path, query[:60], response.status_code, told["message"]))
        assert len(response.content) < 4_000, "what was sent is not sent back at length"
    assert wrong == []
    assert worker.asked == []
    assert "Traceback" not in gateway_process.log()


def test_a_body_that_two_readers_would_take_differently_is_refused(
    http: httpx.Client, gateway_process: GatewayProcess, worker: Worker
) -> None:
    wrong = []
    for job, body, field in BODIES:
        response = http.post(f"/api/v1/jobs/{job}", content=body, headers=JSON)
        told = response.json()
        if response.status_code != 422 or told["data"].get("field") != field:
            wrong.append((job, body[:60], response.status_code, told["message"], told["data"]))
    assert wrong == []
    for body, field in (
        (b'{"stock":"600519.SH","start":"0001-01-02"}', "start"),
        (b'{"stock":"600519.SH","stock":"000001.SZ"}', "stock"),
        (b'{"stock":"600519.SH","begin":"20260105"}', "begin"),
        (b'{"stock":"600519.SH","period":"\\ud800"}', "body"),
    ):
        response = http.post("/api/download", content=body, headers=JSON)
        assert problem_of(response, 422, "invalid-request")["data"]["field"] == field
    assert worker.asked == []
    assert "Traceback" not in gateway_process.log()


@pytest.mark.parametrize(
    ("headers", "field"),
    [
        ({"content-type": "text/plain"}, "Content-Type"),
        ({"content-type": ""}, "Content-Type"),
        ({"content-type": "application/json; charset=utf-16"}, "Content-Type"),
        ({**JSON, "content-encoding": "gzip"}, "Content-Encoding"),
    ],
)
def test_another_media_type_is_refused(
    http: httpx.Client, worker: Worker, headers: dict[str, str], field: str
) -> None:
    for path, body in (("v1/jobs/history", b'{"codes":[]}'), ("download", b"{}")):
        response = http.post(f"/api/{path}", content=body, headers=headers)
        assert problem_of(response, 415, "invalid-request")["data"]["field"] == field


def test_json_is_taken_as_its_standard_writes_it(http: httpx.Client, worker: Worker) -> None:
    worker.answers["download"] = lambda params: {params["codes"][0]: {"rows": 3}}
    headers = {"content-type": 'Application/JSON; Charset="UTF-8"'}
    body = ' {"stock": "600519.SH", "\\u0073tart": "1970-01-01"} '
    assert http.post("/api/download", content=body, headers=headers).status_code == 200
    assert worker.asked[0][1]["start_ms"] == 0


# WebSockets


@pytest.fixture
def socket_url(gateway_process: GatewayProcess) -> str:
    """Address of the gateway's WebSockets."""
    return f"ws{gateway_process.url[4:]}"


def read_on(client: ClientConnection) -> None:
    while True:
        client.recv(timeout=120)


def closed(client: ClientConnection) -> tuple[int, str]:
    with pytest.raises(ConnectionClosed) as ended:
        read_on(client)
    assert ended.value.rcvd is not None, "it ended without a reason"
    return ended.value.rcvd.code, ended.value.rcvd.reason


@pytest.mark.parametrize("path", ["/ws/v1", "/ws/realtime", "/ws/whole_quote"])
def test_what_cannot_be_read_is_closed_with_the_reason(
    socket_url: str, gateway_process: GatewayProcess, producer: Producer, path: str
) -> None:
    head = '{"codes":'
    if path == "/ws/realtime":
        head = '{"stocks":'
    elif path == "/ws/v1":
        head = '{"op":"subscribe","codes":'
    for message in (
        *("", b"", "{", "[" * 200_000),
        head + '["600519.SH"],"x":' + "[" * 200_000,
        head + '["600519.SH"],' + head[1:] + '["000001.SZ"]}',
        head + '["\\ud800.SH"]}',
        head + '{"a":1}}',
        b"\x81\xa1x" * 100_000,
        b"\xdd\xff\xff\xff\xff",
    ):
        with connect(f"{socket_url}{path}", proxy=None, close_timeout=1) as client:
            client.send(message)
            code, reason = closed(client)
            assert code == live.CloseCode.BAD_MESSAGE, message[:60]
            assert reason
    assert "Traceback" not in gateway_process.log()


@pytest.mark.parametrize(
    ("path", "message", "told"),
    [
        ("/ws/realtime", {"stocks": [WIDE]}, WIDE),
        ("/ws/realtime", {"stocks": ["\0.SH"]}, "x00"),
        ("/ws/realtime", {"stocks": []}, "No code"),
        ("/ws/realtime", {"stocks": ["x" * 900_000]}, "xxx..."),
        ("/ws/whole_quote", {"codes": ["ＳＨ"]}, "ＳＨ"),
        ("/ws/whole_quote", {"codes": [f"M{n}" for n in range(100)]}, "32 markets"),
    ],
)
def test_the_incumbents_sockets_tell_what_is_wrong(
    socket_url: str, producer: Producer, path: str, message: dict[str, Any], told: str
) -> None:
    with connect(f"{socket_url}{path}", proxy=None, close_timeout=1) as client:
        client.send(json.dumps(message))
        code, reason = closed(client)
    assert code == live.CloseCode.BAD_MESSAGE
    assert told in reason


SUBSCRIBE = {"op": "subscribe", "id": "a", "codes": [CODE]}
REPLAY = {"op": "replay", "id": "a", "codes": [CODE], "start_ms": OPEN_MS}
LONG = "9" * 5000
MESSAGES: list[tuple[dict[str, Any], str]] = [
    ({**SUBSCRIBE, "id": "x" * 65}, "id"),
    ({**SUBSCRIBE, "id": "\0"}, "id"),
    *(
        ({**SUBSCRIBE, "start_ms": at_ms}, "start_ms")
        for at_ms in (-1, FAR_MS, 2**64 - 1, 4_102_416_000_000)
    ),
    *(
        ({**SUBSCRIBE, "position": {"SH": ["e", entry_id]}}, "position")
        for entry_id in ("٣-٤", f"{'9' * 30}-0", f"{LONG}-0", "1-1-1", "-1-0", "1-0\n", "")
    ),
    ({**SUBSCRIBE, "position": {"events": ["", f"{LONG}-0"]}}, "position"),
    ({**SUBSCRIBE, "position": {"S H": ["e", "1-0"]}}, "position"),
    ({**SUBSCRIBE, "position": {"SH": ["e" * 65, "1-0"]}}, "position"),
    ({**SUBSCRIBE, "last_ids": {CODE: f"{LONG}-0"}}, "position"),
    ({**SUBSCRIBE, "last_ids": {WIDE: "1-0"}}, "position"),
    ({**SUBSCRIBE, "codes": ["1m|600519.SH"]}, "codes"),
    ({**SUBSCRIBE, "codes": [f"{n}.SH" for n in range(10_001)]}, "codes"),
    ({**SUBSCRIBE, "markets": [f"M{n}" for n in range(33)]}, "markets"),
    ({**SUBSCRIBE, "sectors": ["x" * 65]}, "sectors"),
    ({**SUBSCRIBE, "sectors": ["s"] * 101}, "sectors"),
    ({"op": "unsubscribe", "id": "a", "codes": [WIDE]}, "codes"),
    ({**REPLAY, "id": "x" * 65}, "id"),
    *(({**REPLAY, "start_ms": at_ms}, "start_ms") for at_ms in (-1, FAR_MS, -(10**17))),
    *(({**REPLAY, "end_ms": at_ms}, "end_ms") for at_ms in (-1, FAR_MS)),
    *(({**REPLAY, "speed": speed}, "speed") for speed in (0, -1, 1e300, float("nan"))),
    *(({**REPLAY, "skip_idle_s": s}, "skip_idle_s") for s in (-1, float("nan"), float("inf"))),
    ({"op": "replay_seek", "id": "a", "at_ms": FAR_MS}, "at_ms"),
    *(({"op": "replay_step", "id": "a", "count": count}, "count") for count in (0, -1, 2**62)),
    ({"op": "replay_speed", "id": "a", "speed": float("inf")}, "speed"),
]


def test_every_route_refuses_what_it_does_not_know(http: httpx.Client) -> None:
    """Also those that come later: they are taken from the description."""
    paths: dict[str, dict[str, Any]] = http.get("/openapi.json").json()["paths"]
    asked = 0
    for path, operations in paths.items():
        for method in operations:
            url = path.replace("{id}", "a" * 32).replace("{name}", "history")
            told = http.request(method, f"{url}?start_tmie=1")
            assert told.status_code == 422, (method, path, told.text)
            problem = told.json()
            assert problem["data"]["field"] == "start_tmie", (method, path)
            assert "start_tmie" not in problem["data"]["allowed"]
            asked += 1
    assert asked >= 18


@pytest.mark.parametrize(
    ("path", "query", "told"),
    [
        ("/ws/realtime", "stocks=600519.SH", "has no parameter 'stocks'"),
        ("/ws/whole_quote", "api_key=a&api_key=b", "api_key stands 2 times"),
        ("/ws/v1", "position=1", "has no parameter 'position'"),
    ],
)
def test_a_sockets_query_too(socket_url: str, path: str, query: str, told: str) -> None:
    url = f"{socket_url}{path}?{query}"
    if path == "/ws/v1":  # a browser learns no reason from a handshake that fails
        with connect(url) as client:
            code, reason = closed(client)
        assert code == live.CloseCode.BAD_MESSAGE
        assert told in reason
        return
    with pytest.raises(InvalidStatus) as refused, connect(url):
        pass
    assert refused.value.response.status_code == 422
    assert told.encode() in refused.value.response.body


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/ws/v1", {"op": "subscribe", "codes": [CODE], "snapshots": False}),
        ("/ws/v1", {"op": "replay_pause", "id": "a", "at_ms": 1}),
        ("/ws/realtime", {"stocks": [CODE], "periods": "1m"}),
        ("/ws/whole_quote", {"codes": ["SH"], "period": "tick"}),
    ],
)
def test_a_message_may_hold_nothing_unknown(
    socket_url: str, path: str, message: dict[str, Any]
) -> None:
    with connect(f"{socket_url}{path}") as client:
        client.send(json.dumps(message))
        code, reason = closed(client)
    assert code == live.CloseCode.BAD_MESSAGE
    assert "unknown field" in reason


def test_a_body_with_an_unknown_key_names_those_there_are(http: httpx.Client) -> None:
    """As the incumbent's callers spell it: what was ignored fetched the whole history."""
    told = http.post("/api/download", json={"stock": CODE, "start_time": "20260105"})
    assert told.status_code == 422
    assert told.json()["data"]["field"] == "start_time"
    assert "stock, period, start, end" in told.json()["hint"]


def test_numbers_out_of_bounds_are_told_and_the_connection_goes_on(
    socket_url: str, gateway_process: GatewayProcess, producer: Producer
) -> None:
    offered = [Subprotocol(live.MSGPACK_SUBPROTOCOL)]  # only msgpack can say NaN
    with connect(f"{socket_url}/ws/v1", proxy=None, subprotocols=offered) as client:

        def answer(message: dict[str, Any]) -> dict[str, Any]:
            client.send(msgpack.packb(message))
            while (told := msgpack.unpackb(client.recv(timeout=120)))["type"] in (
                *("heartbeat", "welcome"),
            ):
                pass
            return dict(told)

        wrong = []
        for message, field in MESSAGES:
            told = answer(message)
            error = told.get("error", {})
            if told["type"] != "error" or error["data"].get("field") != field:
                wrong.append((str(message)[:80], str(told)[:200]))
            assert told["id"] == message["id"][:64]
            assert len(str(told)) < 2_000
        assert wrong == []
        assert answer(SUBSCRIBE)["type"] == "subscribed"
    assert "Traceback" not in gateway_process.log()
