"""Waiting for the end of a job, whatever carries its progress."""

from __future__ import annotations

import asyncio
import time
from typing import Final, Protocol

from qmt_protocol.errors import JobFailed, QMTError, TimedOut, Unavailable, error_from_dict
from qmt_protocol.jobs import Progress

from .transport import OnProgress

__all__ = ["JobCarrier", "wait_for_end"]

_CANCEL_WITHIN_S: Final = 2.0


class JobCarrier(Protocol):
    """What tells of a submitted job and can give it up."""

    async def progress(
        self, job_id: str, after: str = "0-0", wait_s: float = 0.0
    ) -> tuple[str, Progress] | None:
        """Return the newest entry behind ``after``; ``None``: nothing new for ``wait_s``, or less.

        It may wait for a shorter time than asked.
        """

    async def cancel(self, job_id: str) -> None:
        """Give a job up."""


async def wait_for_end(
    carrier: JobCarrier,
    job_id: str,
    name: str,
    *,
    deadline: float,
    timeout_s: float,
    on_progress: OnProgress | None,
) -> None:
    """Follow a job until it is done; left early, it is cancelled.

    Parameters
    ----------
    deadline
        When to give up, by ``time.monotonic``.
    timeout_s
        The time allowed, for the message.

    Raises
    ------
    TimedOut
        At the deadline.
    QMTError
        Whatever made the job fail.
    """
    ended = False
    after = "0-0"
    try:
        while (left_s := deadline - time.monotonic()) > 0:
            entry = await carrier.progress(job_id, after, left_s)
            if entry is None:
                continue
            after, progress = entry
            if progress.state == "failed":
                raise error_from_dict(progress.error or JobFailed(f"{name} failed.").to_dict())
            if on_progress is not None:
                on_progress(progress)
            if progress.state == "done":
                ended = True
                return
        raise TimedOut(
            f"{name}: no answer within {timeout_s:g} s.",
            hint="Ask for less, or allow more time with timeout_s.",
            job=job_id,
        )
    except QMTError as error:
        ended = not isinstance(error, (TimedOut, Unavailable))
        raise
    finally:
        if not ended:
            await _cancel_quietly(carrier, job_id)


async def _cancel_quietly(carrier: JobCarrier, job_id: str) -> None:
    telling = asyncio.ensure_future(carrier.cancel(job_id))
    # Cut off itself, this leaves it behind: then nobody asks for its error.
    telling.add_done_callback(lambda done: done.cancelled() or done.exception())
    try:
        await asyncio.wait_for(asyncio.shield(telling), _CANCEL_WITHIN_S)
    except (QMTError, asyncio.TimeoutError):
        pass  # the error that led here says more; the job ends at its own deadline
