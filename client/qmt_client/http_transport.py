"""Reading through the gateway: jobs, latest ticks and status by HTTP, live ticks by WebSocket."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import httpx
from pydantic import ValidationError

from qmt_protocol.errors import (
    AccessDenied,
    CodecError,
    Gap,
    GatewayUnavailable,
    InvalidRequest,
    JobFailed,
    NotFound,
    QMTError,
    TimedOut,
    Unavailable,
    error_from_dict,
)
from qmt_protocol.jobs import JobParams, Manifest, Progress, job_spec
from qmt_protocol.ticks import Tick

from .connections import address_of
from .jobs import from_stream
from .processes import Status
from .transport import OnGap, OnProgress

if TYPE_CHECKING:
    import pyarrow as pa
    from websockets.asyncio.client import ClientConnection

__all__ = ["HttpTransport"]

_ANSWER_WITHIN_S: Final = 15.0
_POLL_S: Final = 5.0
_CANCEL_WITHIN_S: Final = 2.0
_BACKOFF_S: Final = 0.2
_BACKOFF_CAP_S: Final = 3.0
_MAX_FRAME_BYTES: Final = 64 * 2**20
_CODES_PER_URL: Final = 500


class HttpTransport:
    """Carries a client's requests to the gateway.

    Parameters
    ----------
    url
        ``http://host:port`` or ``https://...``.
    api_key
        Sent as ``X-API-Key``; empty: none.
    give_up_after_s
        How long a live iteration tries to reconnect; ``None``: without limit.
    """

    def __init__(
        self, url: str, *, api_key: str = "", give_up_after_s: float | None = None
    ) -> None:
        self._url = url.rstrip("/")
        self._address = address_of(url)
        self._headers = {"X-API-Key": api_key} if api_key else {}
        self._give_up_after_s = give_up_after_s
        # A gateway stands in the same network: proxies of the environment do not reach it.
        self._http = httpx.AsyncClient(
            base_url=self._url, headers=self._headers, timeout=_ANSWER_WITHIN_S, trust_env=False
        )

    @property
    def address(self) -> str:
        """``host:port`` of the gateway."""
        return self._address

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def _ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            response = await self._http.request(method, path, **options)
        except httpx.TimeoutException as error:
            raise self._away("does not answer in time") from error
        except httpx.HTTPError as error:
            raise self._away(str(error) or type(error).__name__) from error
        if response.is_success:
            return response
        raise _error_of(response.content, response.status_code, self._address)

    def _away(self, reason: str) -> GatewayUnavailable:
        return GatewayUnavailable(
            f"The gateway at {self._address} cannot be reached: {reason.rstrip('.')}.",
            hint="Check that qmt-gateway runs and that the address is right.",
            address=self._address,
        )

    # Jobs

    async def run_job(
        self,
        name: str,
        params: JobParams,
        *,
        timeout_s: float,
        on_progress: OnProgress | None = None,
    ) -> tuple[Manifest, pa.Table | None]:
        """Have a catalogue job done; see `Transport.run_job`.

        Raises
        ------
        TimedOut
            When it did not end within ``timeout_s``; it is cancelled.
        GatewayUnavailable
        QMTError
            Whatever made the job fail.
        """
        deadline = time.monotonic() + timeout_s
        body = params.model_dump(mode="json")
        job_id = _document(await self._ask("POST", f"/api/v1/jobs/{name}", json=body))["id"]
        ended = False
        try:
            await self._wait_done(job_id, name, deadline, timeout_s, on_progress)
            ended = True
        except QMTError as error:
            ended = not isinstance(error, (TimedOut, Unavailable))
            raise
        finally:
            if not ended:
                await self._cancel_quietly(job_id)
        left_s = max(_ANSWER_WITHIN_S, deadline - time.monotonic())
        response = await self._ask("GET", f"/api/v1/jobs/{job_id}/result", timeout=left_s)
        if job_spec(name).result == "table":
            return await asyncio.to_thread(from_stream, response.content)
        try:
            return Manifest.model_validate_json(response.content), None
        except ValidationError as error:
            raise CodecError(f"The result of {name} cannot be read: {error}.") from error

    async def _wait_done(
        self,
        job_id: str,
        name: str,
        deadline: float,
        timeout_s: float,
        on_progress: OnProgress | None,
    ) -> None:
        after = "0-0"
        while True:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise TimedOut(
                    f"{name}: no answer within {timeout_s:g} s.",
                    hint="Ask for less, or allow more time with timeout_s.",
                    job=job_id,
                )
            wait_s = min(left_s, _POLL_S)
            response = await self._ask(
                "GET",
                f"/api/v1/jobs/{job_id}",
                params={"wait_s": f"{wait_s:.3f}", "after": after},
                timeout=wait_s + _ANSWER_WITHIN_S,
            )
            told = _document(response)
            if not told.get("entry") or told["entry"] == after:
                continue
            after = told["entry"]
            try:
                progress = Progress.model_validate(
                    {key: told[key] for key in Progress.model_fields if told.get(key) is not None}
                )
            except ValidationError as error:
                raise CodecError(f"Progress of {name} cannot be read: {error}.") from error
            if progress.state == "failed":
                raise error_from_dict(progress.error or JobFailed(f"{name} failed.").to_dict())
            if on_progress is not None:
                on_progress(progress)
            if progress.state == "done":
                return

    async def _cancel_quietly(self, job_id: str) -> None:
        try:
            asked = self._ask("DELETE", f"/api/v1/jobs/{job_id}")
            await asyncio.wait_for(asyncio.shield(asked), _CANCEL_WITHIN_S)
        except (QMTError, asyncio.TimeoutError):
            pass  # the error that led here says more; the job ends at its own deadline

    # Ticks

    async def latest(
        self, codes: Sequence[str] | None, markets: Sequence[str] = ()
    ) -> dict[str, Tick]:
        """Return the last stored tick of the codes; see `Transport.latest`.

        Raises
        ------
        InvalidRequest
            For whole markets, which the gateway does not serve.
        """
        codes = _only_codes(codes, markets)
        found: dict[str, Tick] = {}
        for start in range(0, len(codes), _CODES_PER_URL):
            some = ",".join(codes[start : start + _CODES_PER_URL])
            try:
                told = _document(await self._ask("GET", "/api/v1/latest", params={"codes": some}))
            except NotFound:
                continue
            for code, one in told["ticks"].items():
                found[code] = Tick(_sent(one["tick"]), code, one["id"], one["flags"])
        return {code: found[code] for code in codes if code in found}

    async def batches(
        self,
        codes: Sequence[str] | None,
        markets: Sequence[str] = (),
        *,
        snapshot: bool = False,
        on_gap: OnGap | None = None,
    ) -> AsyncGenerator[list[Tick], None]:
        """Yield live ticks; see `Transport.batches`.

        The gateway's frames carry no positions, and each connection begins with the latest ticks.
        So after a lost connection a code whose latest tick is another than the last one seen has
        a gap, which is told.
        """
        codes = _only_codes(codes, markets)
        seen: dict[str, Mapping[str, Any]] = {}
        first = list((await self.latest(codes)).values())
        seen.update((tick.code, dict(tick)) for tick in first)
        if snapshot and first:
            yield first
        lost_at: float | None = None
        again = False
        pause_s = _BACKOFF_S
        while True:
            try:
                async with self._socket() as socket:
                    wish = {"stocks": list(codes), "period": "tick", "notices": True}
                    await socket.send(json.dumps(wish))
                    async with aclosing(self._frames(socket, seen, on_gap)) as frames:
                        async for ticks in frames:
                            if again and ticks and on_gap is not None:
                                on_gap(self._lost({tick.code for tick in ticks}))
                            again, lost_at, pause_s = False, None, _BACKOFF_S
                            if ticks:
                                yield ticks
            except Unavailable:
                now = time.monotonic()
                lost_at = now if lost_at is None else lost_at
                if self._give_up_after_s is not None and now - lost_at >= self._give_up_after_s:
                    raise
                await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
                pause_s = min(pause_s * 2, _BACKOFF_CAP_S)
            again = True

    def _socket(self) -> _Socket:
        return _Socket(self, f"ws{self._url[4:]}/ws/realtime", self._headers)

    async def _frames(
        self,
        socket: ClientConnection,
        seen: dict[str, Mapping[str, Any]],
        on_gap: OnGap | None,
    ) -> AsyncGenerator[list[Tick], None]:
        async for message in socket:
            frame = json.loads(message)
            if "notice" in frame:
                gap = _gap_of(frame)
                if gap is not None and on_gap is not None:
                    on_gap(gap)
                continue
            ticks: list[Tick] = []
            for code, rows in frame.items():
                for row in rows:
                    values = _sent(row)
                    if seen.get(code) != values:
                        seen[code] = values
                        ticks.append(Tick(values, code, "", 0))
            yield ticks
        raise self._away("it closed the connection")

    def _lost(self, codes: set[str]) -> Gap:
        return Gap(
            f"The connection to {self._address} was lost: "
            f"ticks of {len(codes)} code(s) may be missing.",
            hint="A client over redis:// continues where it stopped.",
            codes=sorted(codes)[:20],
        )

    async def status(self) -> Status:
        """Return who is alive, as the gateway tells."""
        return Status.from_dict(_document(await self._ask("GET", "/api/v1/status")))


class _Socket:
    """One WebSocket connection whose failures are `GatewayUnavailable` or the gateway's own."""

    def __init__(self, transport: HttpTransport, url: str, headers: dict[str, str]) -> None:
        from websockets.asyncio.client import connect

        self._transport = transport
        self._connect = connect(
            url,
            additional_headers=headers,
            proxy=None,
            compression=None,
            max_size=_MAX_FRAME_BYTES,
            open_timeout=_ANSWER_WITHIN_S,
        )

    async def __aenter__(self) -> ClientConnection:
        from websockets.exceptions import InvalidStatus, WebSocketException

        try:
            return await self._connect.__aenter__()
        except InvalidStatus as error:
            body, status = error.response.body, error.response.status_code
            raise _error_of(bytes(body or b""), status, self._transport.address) from error
        except (WebSocketException, OSError, TimeoutError, asyncio.TimeoutError) as error:
            raise self._transport._away(str(error) or type(error).__name__) from error

    async def __aexit__(self, kind: Any, error: Any, trace: Any) -> None:
        from websockets.exceptions import ConnectionClosed

        await self._connect.__aexit__(kind, error, trace)
        if isinstance(error, ConnectionClosed):
            closed = error.rcvd
            reason = closed.reason if closed else "the connection was lost"
            if closed and closed.code in (4400, 4422):
                raise InvalidRequest(reason or "The gateway refused the subscription.") from error
            if closed and closed.code in (4401, 4403, 1008):
                raise _denied(self._transport.address) from error
            raise self._transport._away(reason or "the connection was closed") from error


def _denied(address: str) -> AccessDenied:
    return AccessDenied(
        f"The gateway at {address} refused access.",
        hint="Give api_key=..., or set QMT_API_KEY.",
        address=address,
    )


def _error_of(body: bytes, status: int, address: str) -> QMTError:
    """Rebuild the error that a problem document tells."""
    try:
        told = json.loads(body)
    except ValueError:
        told = None
    if status in (401, 403):
        return _denied(address)
    if isinstance(told, dict) and "error" in told:
        return error_from_dict(told)
    return GatewayUnavailable(
        f"The gateway at {address} answered with HTTP status {status}.",
        hint="Check that a gateway of this version listens there.",
        address=address,
    )


def _gap_of(notice: Mapping[str, Any]) -> Gap | None:
    """Return the gap that a notice of the gateway tells, if it is one."""
    if notice["notice"] == "gap":
        markets = ", ".join(notice["markets"])
        return Gap(
            f"Ticks of {markets} were lost before they reached the gateway.",
            hint="Read them as history.",
            markets=notice["markets"],
        )
    if notice["notice"] == "conflated":
        skipped = sum(notice["skipped"].values())
        return Gap(
            f"This reader was too slow: {skipped} ticks were left out.",
            hint="Follow fewer codes, or read from redis://.",
            skipped=notice["skipped"],
        )
    return None


def _document(response: httpx.Response) -> dict[str, Any]:
    try:
        told = response.json()
    except ValueError:
        told = None
    if not isinstance(told, dict):
        raise CodecError(f"{quote(response.url.path)} did not answer with a JSON object.")
    return told


def _sent(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _only_codes(codes: Sequence[str] | None, markets: Sequence[str]) -> Sequence[str]:
    if markets or codes is None:
        raise InvalidRequest(
            "Whole markets are not served through the gateway.",
            hint="Name the codes, or read from redis://.",
            field="markets",
        )
    return codes
