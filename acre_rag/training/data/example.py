"""One thing to train on: a long document, and perhaps a question whose answer's place in it is known.

Knows text and characters; no tokens, no files.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainingExample:
    """A document, with a question for stage 2 and without one for stage 1."""

    document: str
    question: str | None
    answer: str | None
    gold: tuple[tuple[int, int], ...]  # characters start <= c < stop of the document that answer the question
    id: str
