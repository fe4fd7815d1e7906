"""Reading through the gateway: jobs, latest ticks and status by HTTP, live ticks by WebSocket."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, cast
from urllib.parse import quote

import httpx
from pydantic import ValidationError

from qmt_protocol.errors import (
    AccessDenied,
    CodecError,
    GatewayUnavailable,
    InvalidRequest,
    LimitExceeded,
    NotFound,
    QMTError,
    error_from_dict,
)
from qmt_protocol.jobs import JobParams, Manifest, Progress, job_spec
from qmt_protocol.live import MSGPACK_SUBPROTOCOL, CloseCode
from qmt_protocol.ticks import Tick
from qmt_protocol.urls import address_of

from .job_end import submit_and_wait
from .jobs import from_stream
from .live_gateway import GatewayFollower
from .processes import Status
from .transport import OnGap, OnProgress, Wish

if TYPE_CHECKING:
    import pyarrow as pa
    from websockets.asyncio.client import ClientConnection

    from .follow import Batch
    from .stored_gateway import GatewayStored

__all__ = ["HttpTransport"]

_ANSWER_WITHIN_S: Final = 15.0
_STREAM: Final = httpx.Timeout(_ANSWER_WITHIN_S, read=120.0)
_POLL_S: Final = 5.0
_PATIENCE_S: Final = 10.0
"""How long a request waits where the gateway says that it comes too soon."""
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

    def stored(self) -> GatewayStored:
        """Return where stored rows are read from: the gateway."""
        from .stored_gateway import GatewayStored

        async def ask(path: str, query: dict[str, str]) -> dict[str, Any]:
            return _document(await self._ask("GET", path, params=query))

        return GatewayStored(self._stream, ask)

    @asynccontextmanager
    async def _stream(
        self, path: str, query: dict[str, str]
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Open an answer that is read as it comes."""
        try:
            # Between two pieces any time may pass: a slow reader holds the gateway back.
            async with self._http.stream("GET", path, params=query, timeout=_STREAM) as response:
                if not response.is_success:
                    await response.aread()
                    raise _error_of(response.content, response.status_code, self._address)
                yield response.aiter_bytes()
        except httpx.TimeoutException as error:
            raise self._away("does not answer in time") from error
        except httpx.HTTPError as error:
            raise self._away(str(error) or type(error).__name__) from error

    async def _ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        patient_until = time.monotonic() + _PATIENCE_S
        while True:
            try:
                response = await self._http.request(method, path, **options)
            except httpx.TimeoutException as error:
                raise self._away("does not answer in time") from error
            except httpx.HTTPError as error:
                raise self._away(str(error) or type(error).__name__) from error
            if response.is_success:
                return response
            refusal = _error_of(response.content, response.status_code, self._address)
            wait_s = refusal.data.get("retry_after_s")
            if not isinstance(refusal, LimitExceeded) or not isinstance(wait_s, (int, float)):
                raise refusal
            if time.monotonic() + wait_s > patient_until:
                raise refusal
            await asyncio.sleep(wait_s)  # nothing was done, so it may be asked again

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
        job_id = await submit_and_wait(
            self,
            self._submit(name, params),
            name,
            deadline=deadline,
            timeout_s=timeout_s,
            on_progress=on_progress,
        )
        left_s = max(_ANSWER_WITHIN_S, deadline - time.monotonic())
        response = await self._ask("GET", f"/api/v1/jobs/{job_id}/result", timeout=left_s)
        if job_spec(name).result == "table":
            return await asyncio.to_thread(from_stream, response.content)
        try:
            return Manifest.model_validate_json(response.content), None
        except ValidationError as error:
            raise CodecError(f"The result of {name} cannot be read: {error}.") from error

    async def _submit(self, name: str, params: JobParams) -> str:
        body = params.model_dump(mode="json", exclude_unset=True)
        submitted = _document(await self._ask("POST", f"/api/v1/jobs/{name}", json=body))
        return cast("str", submitted["id"])

    async def progress(
        self, job_id: str, after: str = "0-0", wait_s: float = 0.0
    ) -> tuple[str, Progress] | None:
        """Return a job's newest progress entry behind ``after`` with its id; see `JobCarrier`."""
        wait_s = min(wait_s, _POLL_S)
        response = await self._ask(
            "GET",
            f"/api/v1/jobs/{job_id}",
            params={"wait_s": f"{wait_s:.3f}", "after": after},
            timeout=wait_s + _ANSWER_WITHIN_S,
        )
        told = _document(response)
        if not told.get("entry") or told["entry"] == after:
            return None
        try:
            return told["entry"], Progress.model_validate(
                {key: told[key] for key in Progress.model_fields if told.get(key) is not None}
            )
        except ValidationError as error:
            raise CodecError(f"Progress of job {job_id} cannot be read: {error}.") from error

    async def cancel(self, job_id: str) -> None:
        """Give a job up."""
        await self._ask("DELETE", f"/api/v1/jobs/{job_id}")

    # Ticks

    async def latest(
        self, codes: Sequence[str] | None, markets: Sequence[str] = ()
    ) -> dict[str, Tick]:
        """Return the last stored tick of the codes, or of markets; see `Transport.latest`."""
        asked = [{"markets": ",".join(markets)}] if markets else []
        some = codes or ()
        asked += [
            {"codes": ",".join(some[start : start + _CODES_PER_URL])}
            for start in range(0, len(some), _CODES_PER_URL)
        ]
        found: dict[str, Tick] = {}
        for params in asked:
            try:
                told = _document(await self._ask("GET", "/api/v1/latest", params=params))
            except NotFound:
                continue
            for code, one in told["ticks"].items():
                found[code] = Tick(_sent(one["tick"]), code, one["id"], one["flags"])
        return found if codes is None else {code: found[code] for code in codes if code in found}

    async def live(self, wish: Wish, on_gap: OnGap) -> AsyncGenerator[Batch, None]:
        """Yield live data as they are published, each once; see `Transport.live`.

        Raises
        ------
        GatewayUnavailable
            After ``give_up_after_s``.
        AccessDenied, InvalidRequest, Unavailable
            When the gateway refuses.
        """
        codes: Sequence[str] = wish.codes or ()
        if wish.start_ms is not None and wish.markets:
            codes = list(await self.latest(None, wish.markets))
        follower = GatewayFollower(
            self._socket,
            self._away,
            wish,
            on_gap,
            codes=codes,
            give_up_after_s=self._give_up_after_s,
        )
        async with aclosing(follower.batches()) as batches:
            async for batch in batches:
                yield batch

    def _socket(self) -> _Socket:
        return _Socket(self, f"ws{self._url[4:]}/ws/v1", self._headers)

    async def status(self) -> Status:
        """Return who is alive, as the gateway tells."""
        return Status.from_dict(_document(await self._ask("GET", "/api/v1/status")))


class _Socket:
    """One WebSocket connection whose failures are `GatewayUnavailable` or the gateway's own."""

    def __init__(self, transport: HttpTransport, url: str, headers: dict[str, str]) -> None:
        from websockets.asyncio.client import connect
        from websockets.typing import Subprotocol

        self._transport = transport
        self._connect = connect(
            url,
            additional_headers=headers,
            proxy=None,
            compression=None,
            max_size=_MAX_FRAME_BYTES,
            subprotocols=[Subprotocol(MSGPACK_SUBPROTOCOL)],
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

        # Without the closing handshake: it would wait for room in a queue that nobody empties.
        self._connect.connection.transport.abort()
        await self._connect.__aexit__(kind, error, trace)
        if isinstance(error, ConnectionClosed):
            closed = error.rcvd
            reason = closed.reason if closed else "the connection was lost"
            if closed and closed.code == CloseCode.BAD_MESSAGE:
                raise InvalidRequest(reason or "The gateway refused the subscription.") from error
            if closed and closed.code in (CloseCode.ACCESS_DENIED, 1008):
                raise _denied(self._transport.address, closed.reason) from error
            if closed and closed.code == CloseCode.LIMIT_EXCEEDED:
                raise LimitExceeded(reason, limit="connections") from error
            raise self._transport._away(reason or "the connection was closed") from error


def _denied(address: str, reason: str = "") -> AccessDenied:
    return AccessDenied(
        f"The gateway at {address} refused access{f': {reason}' if reason else '.'}",
        hint="Give api_key=..., or set QMT_API_KEY.",
        address=address,
    )


def _error_of(body: bytes, status: int, address: str) -> QMTError:
    """Rebuild the error that a problem document tells."""
    try:
        told = json.loads(body)
    except ValueError:
        told = None
    if isinstance(told, dict) and "error" in told:
        error = error_from_dict(told)
        return _denied(address, error.message) if type(error) is AccessDenied else error
    if status in (401, 403):
        return _denied(address)
    return GatewayUnavailable(
        f"The gateway at {address} answered with HTTP status {status}.",
        hint="Check that a gateway of this version listens there.",
        address=address,
    )


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
