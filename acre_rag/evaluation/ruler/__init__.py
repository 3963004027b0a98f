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
from acre_rag.evaluation.ruler.haystack import filled_haystack, sentences_of
from acre_rag.evaluation.ruler.needles import NEEDLES, needle_maker
from acre_rag.evaluation.ruler.quiz import Quiz
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
    fill = partial(filled_haystack, tokenizer=tokenizer, tokens=tokens)
    book = (resources.files("acre_rag") / "data" / "alice.txt").read_text(encoding="utf-8")
    if name in NEEDLES:
        make = needle_maker(NEEDLES[name], sentences_of([book] if texts is None else texts), fill)
    elif name == "ruler_vt":
        make = variable_maker(fill)
    else:
        make = question_maker(book, fill, texts=texts, pairs=pairs)
    return [
        _item(f"{name}-{tokens}-{seed}-{i}", name, make(random.Random(f"{name} {seed} {i}"), i)) for i in range(count)
    ]


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
