"""Progress of jobs for a person: a bar on stderr, only where a terminal is attached."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from qmt_protocol.jobs import Progress
from qmt_reading.callbacks import OnProgress

if TYPE_CHECKING:
    from tqdm import tqdm

__all__ = ["ShowProgress", "shown"]

ShowProgress = bool | OnProgress | None
"""``True`` or ``None``: a bar where stderr is a terminal; ``False``: none; or a callback."""


class _Bar:
    def __init__(self, label: str) -> None:
        self._label = label
        self._bar: tqdm[Any] | None = None

    def __call__(self, progress: Progress) -> None:
        if progress.total <= 0:
            return
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(total=progress.total, desc=self._label, file=sys.stderr, leave=False)
        self._bar.total = progress.total
        self._bar.n = progress.finished
        self._bar.set_postfix_str(progress.message, refresh=False)
        self._bar.refresh()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


@contextmanager
def shown(progress: ShowProgress, label: str) -> Iterator[OnProgress | None]:
    """Give what is to be told of a job's progress; a bar goes when the job ends."""
    if callable(progress):
        yield progress
    elif progress is False or not sys.stderr.isatty():
        yield None
    else:
        bar = _Bar(label)
        try:
            yield bar
        finally:
            bar.close()
