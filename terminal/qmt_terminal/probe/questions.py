"""All questions, in the order in which they are asked."""

from __future__ import annotations

from typing import Final

from .disturb_questions import DISTURB_QUESTIONS
from .download_questions import DOWNLOAD_QUESTIONS
from .push_questions import PUSH_QUESTIONS
from .question import Question
from .read_questions import READ_QUESTIONS
from .reference_questions import FIRST_QUESTIONS, REFERENCE_QUESTIONS

__all__ = ["QUESTIONS", "Question"]

QUESTIONS: Final[dict[str, Question]] = {
    question.name: question
    for question in (
        *FIRST_QUESTIONS,
        *READ_QUESTIONS,  # before any subscription: what of the market is known without one
        *PUSH_QUESTIONS,
        *REFERENCE_QUESTIONS,
        *DOWNLOAD_QUESTIONS,  # after the reads of what is not on the disk
        *DISTURB_QUESTIONS,
    )
}
