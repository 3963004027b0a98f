"""Question answering among distractors: the passage that answers stands among others; knows no model and no length."""

import random
from collections.abc import Sequence

from acre_rag.evaluation.item import EvalItem
from acre_rag.evaluation.ruler.quiz import Fill, Quiz, QuizMaker

_PASSAGE_WORDS = 80

BOOK_QUESTIONS = (
    ("What was the jar labelled that Alice took from a shelf?", ("ORANGE MARMALADE",), "labelled 'ORANGE MARMALADE'"),
    (
        "What lay on the three-legged table made of solid glass?",
        ("a tiny golden key", "golden key"),
        "there was nothing on it except a tiny golden key",
    ),
    ("Which words were marked in currants on the small cake?", ("EAT ME",), "beautifully marked in currants"),
    ("What elegant thing did the Dodo solemnly present to Alice?", ("a thimble", "thimble"), "this elegant thimble"),
    (
        "What was the Caterpillar quietly smoking?",
        ("a long hookah", "a hookah", "hookah"),
        "quietly smoking a long hookah",
    ),
    ("What served as mallets in the croquet game?", ("live flamingoes", "flamingoes"), "the mallets live flamingoes"),
    (
        "Which animal sat fast asleep at the tea-table?",
        ("a Dormouse", "Dormouse"),
        "a Dormouse was sitting between them",
    ),
    (
        "What stood on the table in the very middle of the court?",
        ("a large dish of tarts", "tarts"),
        "with a large dish of tarts upon it",
    ),
)
"""Question, right answers, and words of the passage of *Alice's Adventures in Wonderland* that answers it."""


def question_maker(
    book: str, fill: Fill, *, texts: Sequence[str] | None = None, pairs: Sequence[EvalItem] | None = None
) -> QuizMaker:
    """Each question's own passage among the other passages, numbered.

    Args:
        book: *Alice's Adventures in Wonderland*: its questions and passages where nothing else is given.
        fill: makes a document of the wanted length.
        texts: distractors instead of the book's.
        pairs: questions instead of the book's, each with its passage as the document; their passages are distractors
            of one another.
    """
    if pairs:
        asked = [(pair.question, pair.answers, pair.document) for pair in pairs]
    else:
        passages = passages_of(book)
        asked = [
            (question, answers, next(passage for passage in passages if evidence in passage))
            for question, answers, evidence in BOOK_QUESTIONS
        ]
    more = texts if texts is not None else [] if pairs else [book]
    own = [passage for _, _, passage in asked]
    others = list(dict.fromkeys(own + [passage for text in more for passage in passages_of(text)]))

    def make(rng: random.Random, i: int) -> Quiz:
        question, answers, passage = asked[i % len(asked)]
        distractors = rng.sample(others, len(others))
        distractors.remove(passage)
        haystack = fill(
            lambda n: distractors[:n],
            [passage],
            [rng.random()],
            separator="\n\n",
            label="Document {i}:\n",
            most=len(distractors),
        )
        return Quiz(haystack, question, answers, (0,))

    return make


def passages_of(text: str) -> list[str]:
    """Whole paragraphs, joined to passages of `_PASSAGE_WORDS` words or more."""
    passages: list[str] = []
    held: list[str] = []
    for paragraph in text.split("\n\n"):
        held.append(paragraph.strip())
        if sum(len(each.split()) for each in held) >= _PASSAGE_WORDS:
            passages.append("\n".join(held))
            held = []
    return passages + (["\n".join(held)] if "".join(held) else [])
