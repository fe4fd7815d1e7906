"""A read-only questionnaire to a live terminal: what its edition does, compared and written down.

Apart from the door this is the only place that touches xtdata itself, because it asks what the door
must be built on. Every question runs in a child process (``python -m qmt_terminal.probe``), so a
call that hangs or aborts ends that question alone. ``qmt doctor --probe`` imports this package.
"""

from .compare import Difference, compare, load_references, nearest
from .questions import QUESTIONS, Question
from .report import Report
from .runner import Choice, Prober

__all__ = [
    "QUESTIONS",
    "Choice",
    "Difference",
    "Prober",
    "Question",
    "Report",
    "compare",
    "load_references",
    "nearest",
]
