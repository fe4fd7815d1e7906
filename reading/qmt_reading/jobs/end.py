"""A job from its submission to its end, whatever carries its progress."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any, Final, Protocol

from qmt_protocol.errors import (
    CodecError,
    JobFailed,
    QMTError,
    TimedOut,
    Unavailable,
    error_from_dict,
)
from qmt_protocol.jobs import Progress
from qmt_reading.callbacks import OnProgress

__all__ = ["JobCarrier", "failure_of", "submit_and_wait"]

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


def failure_of(progress: Progress, name: str = "The job") -> QMTError:
    """Return why a job failed, as its worker says; what it does not say is a `JobFailed`."""
    document = progress.error or JobFailed(f"{name} failed.").to_dict()
    return error_from_dict(document, unknown=JobFailed)


async def submit_and_wait(
    carrier: JobCarrier,
    submission: Coroutine[Any, Any, str],
    name: str,
    *,
    deadline: float,
    timeout_s: float,
    on_progress: OnProgress | None,
) -> str:
    """Submit a job and follow it until it is done; left early, it is cancelled.

    Parameters
    ----------
    submission
        Submits the job and returns its id.
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
    job_id = await _submitted(carrier, submission)
    ended = False
    after = "0-0"
    try:
        while (left_s := deadline - time.monotonic()) > 0:
            entry = await carrier.progress(job_id, after, left_s)
            if entry is None:
                continue
            after, progress = entry
            if progress.state == "failed":
                raise failure_of(progress, name)
            if on_progress is not None:
                on_progress(progress)
            if progress.state == "done":
                ended = True
                return job_id
        raise TimedOut(
            f"{name}: no answer within {timeout_s:g} s.",
            hint="Ask for less, or allow more time with timeout_s.",
            job=job_id,
        )
    except QMTError as error:
        ended = not isinstance(error, (TimedOut, Unavailable, CodecError))
        raise
    finally:
        if not ended:
            await _quietly(carrier.cancel(job_id))


async def _submitted(carrier: JobCarrier, submission: Coroutine[Any, Any, str]) -> str:
    """Return a submitted job's id; cut off meanwhile, the job is cancelled once it has one."""
    submitting = asyncio.ensure_future(submission)
    try:
        return await asyncio.shield(submitting)
    except asyncio.CancelledError:
        # It may have arrived already, and its id is only in the answer.
        await _quietly(_cancel_submitted(carrier, submitting))
        raise


async def _cancel_submitted(carrier: JobCarrier, submitting: asyncio.Future[str]) -> None:
    await carrier.cancel(await submitting)


async def _quietly(cancelling: Coroutine[Any, Any, None]) -> None:
    cancelling_soon = asyncio.ensure_future(cancelling)
    # Cut off itself, this leaves it behind: then nobody asks for its error.
    cancelling_soon.add_done_callback(lambda done: done.cancelled() or done.exception())
    try:
        await asyncio.wait_for(asyncio.shield(cancelling_soon), _CANCEL_WITHIN_S)
    except (QMTError, asyncio.TimeoutError):
        pass  # the error that led here says more; the job ends at its own deadline
