"""What a job may do for its caller: how much it may fetch, and whether it may fetch at all."""

from __future__ import annotations

from typing import Any

from qmt_protocol.errors import HistoryMissing, InvalidRequest, QMTError, ScopeMissing
from qmt_protocol.jobs import HistoryParams, JobParams

from .access import Admission

__all__ = ["allowed", "explained"]


def allowed(params: JobParams, admission: Admission, most_rows: int) -> JobParams:
    """Return a job's parameters as its caller may have them.

    Without the scope ``download`` history comes from the terminal's cache alone.

    Parameters
    ----------
    most_rows
        Most rows that a history job may fetch on its way.

    Raises
    ------
    InvalidRequest
        When it was told to fetch more.
    """
    if not isinstance(params, HistoryParams):
        return params
    is_given = "auto_download_rows" in params.model_fields_set
    if is_given and params.auto_download_rows > most_rows:
        raise InvalidRequest(
            f"auto_download_rows={params.auto_download_rows} is above {most_rows}, which this "
            "gateway allows.",
            hint="Fetch them first by a job `download`; the operator sets the bound as "
            "QMT_BRIDGE_AUTO_DOWNLOAD_ROWS.",
            field="auto_download_rows",
            limit=most_rows,
        )
    changed: dict[str, Any] = {
        "auto_download_rows": min(params.auto_download_rows, most_rows),
        "download": params.download if admission.may("download") else "never",
    }
    return params.model_copy(update=changed)


def explained(error: QMTError, admission: Admission) -> QMTError:
    """Return why a job failed: that history is missing, to who may not fetch it, is a scope."""
    if not isinstance(error, HistoryMissing) or admission.may("download"):
        return error
    return ScopeMissing(
        f"{error.message} {admission.usage.name} lacks the scope download, which fetching takes.",
        hint="Ask who runs this gateway for a key with --scope download, or to have it fetched.",
        **{**error.data, "scope": "download"},
    )
