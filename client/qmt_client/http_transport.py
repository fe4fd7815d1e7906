"""Reading through the gateway: jobs, latest ticks and status by HTTP, live ticks by WebSocket."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar

import httpx
from pydantic import ValidationError

from qmt_protocol.decoding import decode_document, printable, reason_of
from qmt_protocol.errors import (
    CodecError,
    GatewayUnavailable,
    InvalidRequest,
    LimitExceeded,
    NotFound,
)
from qmt_protocol.jobs import JobParams, Manifest, Progress, decode_manifest, job_spec
from qmt_protocol.limits import MAX_DOCUMENT_BYTES, MAX_FRAME_BYTES
from qmt_protocol.live import MSGPACK_SUBPROTOCOL, CloseCode
from qmt_protocol.ticks import Tick
from qmt_protocol.urls import address_of
from qmt_reading.callbacks import OnGap, OnProgress
from qmt_reading.jobs.end import submit_and_wait
from qmt_reading.jobs.queue import ResultStream
from qmt_reading.latest import LatestValues
from qmt_reading.processes import Status
from qmt_reading.requests import LiveRequest
from qmt_runtime.connections import timeout, to_its_end

from .gateway_answers import Accepted, Archive, JobState, LatestTicks, denied, error_of
from .live_gateway import GatewayFollower

if TYPE_CHECKING:
    import pyarrow as pa
    from websockets.asyncio.client import ClientConnection

    from qmt_protocol.cursor.batch import Batch

    from .stored_gateway import GatewayStored

__all__ = ["HttpTransport"]

_ANSWER_WITHIN_S: Final = 15.0
_STREAM: Final = httpx.Timeout(_ANSWER_WITHIN_S, read=120.0)
_POLL_S: Final = 5.0
_PATIENCE_S: Final = 10.0
"""How long a request waits where the gateway says that it comes too soon."""
_MIN_WAIT_S: Final = 0.05
_WHOLE_WITHIN_S: Final = 120.0
_TABLE_WITHIN_S: Final = 900.0
"""How long the rest of an answer may take that has begun."""
_CODES_PER_URL: Final = 500
_PLAIN: Final = {"Accept-Encoding": "identity"}
_VERSIONS: Final = "Check that a gateway of this version listens there."
_T = TypeVar("_T")


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
        self._whose = f"the gateway at {self._address}"
        self._give_up_after_s = give_up_after_s
        # A gateway stands in the same network: proxies of the environment do not reach it.
        self._http = httpx.AsyncClient(
            base_url=self._url,
            headers={**self._headers, **_PLAIN},
            timeout=_ANSWER_WITHIN_S,
            trust_env=False,
        )

    @property
    def address(self) -> str:
        """``host:port`` of the gateway."""
        return self._address

    async def close(self) -> None:
        """Close all connections."""
        await to_its_end(self._http.aclose())

    def stored(self) -> GatewayStored:
        """Return where stored rows are read from: the gateway."""
        from .stored_gateway import GatewayStored

        async def archive() -> Archive:
            return await self._document("GET", "/api/v1/archive", Archive)

        return GatewayStored(self._stream, archive, self._whose)

    @asynccontextmanager
    async def _stream(
        self, path: str, query: dict[str, str]
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Open an answer that is read as it comes."""
        # Between two pieces any time may pass: a slow reader holds the gateway back.
        async with self._opened("GET", path, params=query, timeout=_STREAM) as body:
            yield body

    @asynccontextmanager
    async def _opened(
        self, method: str, path: str, **options: Any
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Send a request; give the body of an answer that is no error, as it was sent.

        Raises
        ------
        GatewayUnavailable
            When it does not answer, or what it sends is no HTTP.
        CodecError
            When it sends the body in an encoding, which nobody asked for: there is no bound to
            what one may grow to.
        QMTError
            The gateway's own.
        """
        try:
            async with self._http.stream(method, path, **options) as response:
                encoding = response.headers.get("Content-Encoding", "identity")
                if encoding.lower() != "identity":
                    raise CodecError(
                        f"The gateway at {self._address} answered {path} in the encoding "
                        f"{printable(encoding)!r}, which was not asked for.",
                        hint="Let the proxy in front of it send answers as they are.",
                    )
                if not response.is_success:
                    body = await self._whole(response.aiter_raw(), path)
                    raise error_of(body, response.status_code, self._address)
                yield response.aiter_raw()
        except httpx.TimeoutException as error:
            raise self._away("does not answer in time") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self._away(reason_of(error)) from error

    async def _ask(
        self, method: str, path: str, *, within_s: float = _ANSWER_WITHIN_S, **options: Any
    ) -> bytes:
        """Return the body of an answer, of `MAX_DOCUMENT_BYTES` at most.

        Parameters
        ----------
        within_s
            How long the gateway may be silent.
        """
        patient_until = time.monotonic() + _PATIENCE_S
        while True:
            try:
                async with (
                    timeout(within_s + _WHOLE_WITHIN_S),
                    self._opened(method, path, timeout=within_s, **options) as body,
                ):
                    return await self._whole(body, path)
            except asyncio.TimeoutError as error:
                raise self._away("does not come to the end of its answer") from error
            except LimitExceeded as refusal:
                wait_s = refusal.data.get("retry_after_s")
                if not isinstance(wait_s, (int, float)):
                    raise
                if not time.monotonic() + wait_s <= patient_until:
                    raise
            # Nothing was done, so it may be asked again.
            await asyncio.sleep(max(wait_s, _MIN_WAIT_S))

    async def _whole(self, body: AsyncIterator[bytes], path: str) -> bytes:
        parts: list[bytes] = []
        left = MAX_DOCUMENT_BYTES
        async for part in body:
            left -= len(part)
            if left < 0:
                raise CodecError(
                    f"The answer of {self._whose} to {path} has more than {MAX_DOCUMENT_BYTES} "
                    "bytes.",
                    hint="Ask for fewer codes.",
                )
            parts.append(part)
        return b"".join(parts)

    async def _document(self, method: str, path: str, kind: type[_T], **options: Any) -> _T:
        return decode_document(
            await self._ask(method, path, **options), kind, self._answer(path), hint=_VERSIONS
        )

    def _answer(self, path: str) -> str:
        return f"The answer of {self._whose} to {path}"

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
        path = f"/api/v1/jobs/{job_id}/result"
        if job_spec(name).result == "table":
            return await self._table(
                path, ResultStream(name, params, job_id, self._address), left_s
            )
        answer = await self._ask("GET", path, within_s=left_s)
        return decode_manifest(answer, f"{self._answer(path)}", name), None

    async def _table(
        self, path: str, result: ResultStream, within_s: float
    ) -> tuple[Manifest, pa.Table]:
        try:
            async with (
                timeout(within_s + _TABLE_WITHIN_S),
                self._opened("GET", path, timeout=within_s) as pieces,
            ):
                async for piece in pieces:
                    result.feed(piece)
        except asyncio.TimeoutError as error:
            raise self._away("does not come to the end of its answer") from error
        return await asyncio.to_thread(result.end)

    async def _submit(self, name: str, params: JobParams) -> str:
        body = params.model_dump(mode="json", exclude_unset=True)
        accepted = await self._document("POST", f"/api/v1/jobs/{name}", Accepted, json=body)
        return accepted.id

    async def progress(
        self, job_id: str, after: str = "0-0", wait_s: float = 0.0
    ) -> tuple[str, Progress] | None:
        """Return a job's newest progress entry behind ``after`` with its id; see `JobCarrier`."""
        wait_s = min(wait_s, _POLL_S)
        received = await self._document(
            "GET",
            f"/api/v1/jobs/{job_id}",
            JobState,
            params={"wait_s": f"{wait_s:.3f}", "after": after},
            within_s=wait_s + _ANSWER_WITHIN_S,
        )
        if received.entry == after or received.state == "queued":
            return None
        try:
            return received.entry, Progress(
                state=received.state,
                finished=received.finished,
                total=received.total,
                message=received.message,
                error=received.error,
            )
        except ValidationError as error:
            raise CodecError(
                f"The progress of job {job_id} from {self._address} cannot be read: "
                f"{reason_of(error)}.",
                hint=_VERSIONS,
            ) from error

    async def cancel(self, job_id: str) -> None:
        """Give a job up."""
        await self._ask("DELETE", f"/api/v1/jobs/{job_id}")

    # Ticks

    async def latest(
        self, codes: Sequence[str] | None, markets: Sequence[str] = ()
    ) -> LatestValues[Tick]:
        """Return the last stored tick of the codes, or of markets; see `Transport.latest`."""
        asked = [{"markets": ",".join(markets)}] if markets else []
        some = codes or ()
        asked += [
            {"codes": ",".join(some[start : start + _CODES_PER_URL])}
            for start in range(0, len(some), _CODES_PER_URL)
        ]
        found: LatestValues[Tick] = LatestValues()
        for params in asked:
            try:
                received = await self._document("GET", "/api/v1/latest", LatestTicks, params=params)
            except NotFound:
                continue
            found.unreadable.update(received.unreadable)
            for code, one in received.ticks.items():
                found[code] = Tick(_sent(one.tick), code, one.id, one.flags)
        return found if codes is None else found.of(codes)

    async def live(self, request: LiveRequest, on_gap: OnGap) -> AsyncGenerator[Batch, None]:
        """Yield live data as they are published, each once; see `Transport.live`.

        Raises
        ------
        GatewayUnavailable
            After ``give_up_after_s``.
        AccessDenied, InvalidRequest, Unavailable
            When the gateway refuses.
        """
        codes: Sequence[str] = request.codes or ()
        if request.start_ms is not None and request.markets:
            codes = list(await self.latest(None, request.markets))
        follower = GatewayFollower(
            self._socket,
            self._away,
            request,
            on_gap,
            codes=codes,
            give_up_after_s=self._give_up_after_s,
            address=self._address,
        )
        async with aclosing(follower.batches()) as batches:
            async for batch in batches:
                yield batch

    def _socket(self) -> _Socket:
        return _Socket(self, f"ws{self._url[4:]}/ws/v1", self._headers)

    async def status(self) -> Status:
        """Return who is alive, as the gateway tells."""
        path = "/api/v1/status"
        return Status.from_json(await self._ask("GET", path), self._answer(path))


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
            max_size=MAX_FRAME_BYTES,
            subprotocols=[Subprotocol(MSGPACK_SUBPROTOCOL)],
            open_timeout=_ANSWER_WITHIN_S,
        )

    async def __aenter__(self) -> ClientConnection:
        from websockets.exceptions import InvalidStatus, WebSocketException

        try:
            return await self._connect.__aenter__()
        except InvalidStatus as error:
            body, status = error.response.body, error.response.status_code
            raise error_of(bytes(body or b""), status, self._transport.address) from error
        except (WebSocketException, OSError, TimeoutError, asyncio.TimeoutError) as error:
            raise self._transport._away(reason_of(error)) from error

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
                raise denied(self._transport.address, printable(reason)) from error
            if closed and closed.code == CloseCode.LIMIT_EXCEEDED:
                raise LimitExceeded(printable(reason), limit="connections") from error
            raise self._transport._away(printable(reason) or "the connection was closed") from error


def _sent(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}
