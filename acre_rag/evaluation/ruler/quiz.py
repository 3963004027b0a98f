"""A haystack with its question: what every RULER-style task makes; knows none of them."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from acre_rag.evaluation.ruler.haystack import Haystack


@dataclass(frozen=True)
class Quiz:
    """A haystack and a question about what is hidden in it.

    Attributes:
        haystack: the document.
        question: about it.
        answers: right ones.
        gold: numbers of the hidden parts that answer it.
    """

    haystack: Haystack
    question: str
    answers: tuple[str, ...]
    gold: tuple[int, ...]


QuizMaker = Callable[[random.Random, int], Quiz]
"""Makes the quiz of a number, from a random source that is that number's own."""

Fill = Callable[..., Haystack]
"""`filled_haystack` with its tokenizer and length."""
