"""What the supervisor asks the parts: are they well, and how fast do they go."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import httpx
import redis

from qmt_protocol.decoding import printable
from qmt_protocol.errors import CodecError, QMTError
from qmt_protocol.feed import decode_latest
from qmt_protocol.keys import Keys
from qmt_protocol.status import LOST_AFTER_S, Heartbeat, decode_heartbeat
from qmt_protocol.times import redis_ms
from qmt_runtime.connections import connect

__all__ = ["Figures", "Probe"]

_TIMEOUT_S: Final = 1.0
_SAMPLE: Final = 20
"""Codes of each market whose newest tick is looked at for the age."""


_QUESTION: Final = {"codes": ["000001.SZ"], "period": "1d", "count": 60}
_WAIT_S: Final = 0.5
_JOB_EVERY_S: Final = 10.0
_JOB_PATIENCE_S: Final = 60.0


@dataclass(frozen=True)
class Figures:
    """What the live line shows; ``None`` where it is not known."""

    ticks_per_s: float | None
    published: int | None
    archived: int | None
    age_ms: int | None
    history_ms: float | None
    memory_mb: float | None


class Probe:
    """Short questions to Redis and the gateway, each with a deadline of a second."""

    def __init__(self, streams_url: str, http_url: str, markets: Iterable[str]) -> None:
        self._keys = Keys()
        self._markets = tuple(markets)
        self._redis = connect(streams_url, timeout_s=_TIMEOUT_S)
        self._http = httpx.Client(timeout=_TIMEOUT_S, trust_env=False)
        self.http_url = http_url
        self._history_ms: float | None = None
        self._job: str | None = None
        self._job_began = 0.0
        self._next_job_at = 0.0

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()
        self._http.close()

    def ping(self, url: str) -> str:
        """Return ``""`` when the Redis server answers, else why not."""
        try:
            with connect(url, timeout_s=_TIMEOUT_S) as connection:
                connection.ping()
        except redis.RedisError as error:
            return str(error)
        return ""

    def producer(self, since_ms: int) -> str:
        """Return ``""`` when a producer started since then beats and ticks have come."""
        beats = self._beats("producer", since_ms)
        if not beats:
            return "no heartbeat yet"
        unwell = _terminal_reason(beats)
        if unwell:
            return unwell
        try:
            if any(self._redis.hlen(self._keys.latest(market)) for market in self._markets):
                return ""
        except redis.RedisError as error:
            return str(error)
        return "no tick yet"

    def worker(self, since_ms: int, queues: Iterable[str]) -> str:
        """Return ``""`` when workers started since then serve all the queues."""
        beats = self._beats("worker", since_ms)
        served = {queue for beat in beats for queue in beat.queues}
        missing = sorted(set(queues) - served)
        if missing:
            return f"no heartbeat yet for {', '.join(missing)}"
        return _terminal_reason(beats)

    def gateway(self, producer_pid: int | None) -> str:
        """Return ``""`` when the gateway is well and reads the Redis that this producer fills.

        Another standalone's gateway may have got the port first; it knows another producer.
        """
        try:
            answer = self._http.get(f"{self.http_url}/healthz")
            if answer.status_code != 200:
                return f"/healthz answers {answer.status_code}"
            status = self._http.get(f"{self.http_url}/api/v1/status")
            status.raise_for_status()
            processes = status.json()["processes"]
        except (httpx.HTTPError, ValueError, KeyError) as error:
            return str(error) or type(error).__name__
        if producer_pid in {one.get("pid") for one in processes}:
            return ""
        return "the gateway on this port reads another Redis"

    def figures(self) -> Figures:
        """Return the current figures."""
        try:
            beats = self._beats("producer", 0)
            used = self._redis.info("memory")["used_memory"]
            archives = [beat.figures for beat in self._beats("archive", 0)]
            return Figures(
                ticks_per_s=sum(beat.rates.get("ticks_per_s", 0.0) for beat in beats),
                published=sum(beat.figures.get("published", 0) for beat in beats),
                archived=sum(map(_written, archives)) if archives else None,
                age_ms=self._age_ms(),
                history_ms=self._history_ms,
                memory_mb=used / 2**20,
            )
        except (redis.RedisError, QMTError):
            return Figures(None, None, None, None, self._history_ms, None)

    def time_history(self) -> None:
        """Time one small history job for the figures; to be called again and again.

        A job that takes longer than this may wait is looked at again in the next call: giving it
        up would make the worker give it up too.
        """
        try:
            if self._job is None:
                if time.monotonic() < self._next_job_at:
                    return
                self._job_began = time.perf_counter()
                self._job = str(self._json("POST", "/api/v1/jobs/history", json=_QUESTION)["id"])
            state = self._job_state()
            if state in ("queued", "running"):
                if time.perf_counter() - self._job_began < _JOB_PATIENCE_S:
                    return
                self._history_ms = None
            elif state == "failed":
                self._history_ms = None
            else:
                self._http.get(f"{self.http_url}/api/v1/jobs/{self._job}/result").raise_for_status()
                self._history_ms = (time.perf_counter() - self._job_began) * 1000
        except (httpx.HTTPError, ValueError, KeyError):
            self._history_ms = None
        self._job = None
        self._next_job_at = time.monotonic() + _JOB_EVERY_S

    def _job_state(self) -> str:
        """Return the job's state, after a short wait for its end."""
        deadline = time.monotonic() + _WAIT_S
        after = "0-0"
        while True:
            left = max(0.0, deadline - time.monotonic())
            document = self._json(
                "GET", f"/api/v1/jobs/{self._job}", params={"wait_s": left, "after": after}
            )
            state, after = str(document["state"]), str(document["entry"])
            if state in ("done", "failed") or not left:
                return state

    def _json(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        answer = self._http.request(method, f"{self.http_url}{path}", **options)
        answer.raise_for_status()
        return dict(answer.json())

    def _beats(self, role: str, since_ms: int) -> list[Heartbeat]:
        """Return the live heartbeats of a role's processes started since then."""
        try:
            with self._redis.pipeline(transaction=False) as both:
                both.time()
                both.zrange(self._keys.seen, 0, -1, withscores=True)
                both.hgetall(self._keys.status)
                time, seen, status = both.execute()
        except redis.RedisError:
            return []
        now_ms = redis_ms(time)
        fresh = {member for member, at in seen if now_ms - at < LOST_AFTER_S * 1000}
        beats = []
        for member in fresh & status.keys():
            try:
                beats.append(decode_heartbeat(status[member], member))
            except CodecError:
                continue  # the gateway's status names it
        return [beat for beat in beats if beat.role == role and beat.started_ms >= since_ms]

    def _age_ms(self) -> int | None:
        """Return the age of the newest of some ticks, by Redis time."""
        now_ms = redis_ms(self._redis.time())
        newest = 0
        for market in self._markets:
            flat: Any = self._redis.hrandfield(self._keys.latest(market), _SAMPLE, withvalues=True)
            for code, data in zip(flat[::2], flat[1::2], strict=True):
                try:
                    newest = max(newest, decode_latest(data, printable(code)).time_ms)
                except CodecError:
                    continue  # the gateway's answers name it
        return now_ms - newest if newest else None


def _written(figures: dict[str, Any]) -> int:
    """Return how many ticks and bars of those that were read are in the archive's files."""
    read = int(figures.get("ticks", 0)) + int(figures.get("bars", 0))
    return max(0, read - int(figures.get("waiting_rows", 0)))


def _terminal_reason(beats: list[Heartbeat]) -> str:
    for beat in beats:
        if beat.terminal and beat.terminal.get("state") != "ok":
            return f"terminal {beat.terminal.get('state')}: {beat.terminal.get('reason', '')}"
    return ""
