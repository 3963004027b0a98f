"""RULER-style tasks made on the spot: `generate` makes needles, variable tracking and questions among distractors.

After RULER (arXiv 2404.06654, NVIDIA/RULER `scripts/data/synthetic/`): its tasks, wording and counts, with the shipped
book (or given texts) for its essays and word lists of our own. Lengths count the document alone. Knows no model;
prompts and metrics are in tasks.py.
"""

import random
from collections.abc import Sequence
from functools import partial
from importlib import resources
from typing import Any

from acre_rag.errors import ConfigError, EvaluationError
from acre_rag.evaluation.item import EvalItem
from acre_rag.evaluation.ruler.distractors import question_maker
from acre_rag.evaluation.ruler.haystack import Haystack, filled_haystack, sentences_of
from acre_rag.evaluation.ruler.needles import NEEDLES, needle_maker
from acre_rag.evaluation.ruler.quiz import Fill, Quiz, QuizMaker
from acre_rag.evaluation.ruler.variables import variable_maker

RULER: tuple[str, ...] = (*NEEDLES, "ruler_vt", "ruler_qa")
"""Every task that `generate` makes."""


def generate(
    name: str,
    *,
    tokenizer: Any,
    tokens: int,
    count: int,
    seed: int = 0,
    texts: Sequence[str] | None = None,
    pairs: Sequence[EvalItem] | None = None,
) -> list[EvalItem]:
    """Items of one task, each with a document of its own; the same for the same arguments.

    Args:
        name: one of `RULER`.
        tokenizer: of the model that will read the documents.
        tokens: length of each document: at most that, and within a sentence or passage of it.
        count: items.
        seed: of every choice.
        texts: hay instead of the shipped book; distractors of "ruler_qa". Short hay is repeated for needles.
        pairs: questions of "ruler_qa", each with its passage as the document; the other passages are distractors.

    Raises:
        EvaluationError: unknown task.
        ConfigError: too few tokens for what is hidden, or too little hay.
    """
    if name not in RULER:
        raise EvaluationError(f"Unknown RULER-style task {name!r}; known: {', '.join(RULER)}.")
    if count < 1:
        raise ConfigError(f"count={count} must be 1 or more.")
    make = _maker(name, partial(filled_haystack, tokenizer=tokenizer, tokens=tokens), texts, pairs)
    return [_item(f"{name}-{tokens}-{seed}-{i}", name, make(_random(name, seed, i), i)) for i in range(count)]


def questions(name: str, *, count: int, seed: int = 0) -> list[str]:
    """What `generate` asks in its first items of a task, whatever their length; makes no document.

    Args:
        name: one of `RULER`.
        count: questions.
        seed: of every choice.
    """
    make = _maker(name, lambda *_, **__: Haystack("", (), 0), None, None)
    return [make(_random(name, seed, i), i).question for i in range(count)]


def _maker(name: str, fill: Fill, texts: Sequence[str] | None, pairs: Sequence[EvalItem] | None) -> QuizMaker:
    book = (resources.files("acre_rag") / "data" / "alice.txt").read_text(encoding="utf-8")
    if name in NEEDLES:
        return needle_maker(NEEDLES[name], sentences_of([book] if texts is None else texts), fill)
    if name == "ruler_vt":
        return variable_maker(fill)
    return question_maker(book, fill, texts=texts, pairs=pairs)


def _random(name: str, seed: int, i: int) -> random.Random:
    return random.Random(f"{name} {seed} {i}")


def _item(id: str, name: str, quiz: Quiz) -> EvalItem:
    haystack = quiz.haystack
    return EvalItem(
        id=id,
        dataset=name,
        document_id=id,
        document=haystack.text,
        question=quiz.question,
        answers=quiz.answers,
        facts={
            "words": len(haystack.text.split()),
            "tokens": haystack.tokens,
            "gold": [list(haystack.spans[i]) for i in quiz.gold],
        },
    )
