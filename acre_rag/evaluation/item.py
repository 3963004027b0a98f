"""One question about one document with its right answers, and a fair sample of many; knows no files and no models."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from acre_rag.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class EvalItem:
    """One question of a dataset.

    Attributes:
        id: unique within the dataset.
        dataset: the dataset's name, as `task_of` knows it.
        document_id: shared by all questions about one document.
        document: the whole text.
        question: the question, with the options behind it where a task shows them.
        answers: right answers, any one of them; all of them for tasks scored by `ruler_all`.
        options: of a multiple-choice question, in order.
        facts: what else is known, ready for JSON. "words": length of the document; "gold": `[start, stop]` characters
            that hold the answer; and the fields that the dataset has of its own ("question_type", "evidence", ...).
    """

    id: str
    dataset: str
    document_id: str
    document: str
    question: str
    answers: tuple[str, ...]
    options: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)


def sample(items: Sequence[EvalItem], *, limit: int, seed: int, documents: int | None = None) -> list[EvalItem]:
    """Questions spread evenly over documents; the same for the same seed, so every system gets the same.

    A larger limit keeps the smaller one's questions (with the same `documents`), so a run can be prolonged.

    Args:
        items: all questions.
        limit: most questions.
        seed: of the choice.
        documents: most documents; all by default. Reading is the dear part: few documents with several questions each
            are cheap, one question for each of many is not.

    Returns:
        Items grouped by document.

    Raises:
        ConfigError: a number is below 1.
    """
    for name, value in (("limit", limit), ("documents", documents)):
        if value is not None and value < 1:
            raise ConfigError(f"{name}={value} must be 1 or more.")
    groups: dict[str, list[EvalItem]] = {}
    for item in items:
        groups.setdefault(item.document_id, []).append(item)
    names = list(groups)
    random.Random(seed).shuffle(names)
    names = names[:documents]
    for name in names:
        random.Random(f"{seed} {name}").shuffle(groups[name])
    rounds = max((len(groups[name]) for name in names), default=0)
    turns = [(name, turn) for turn in range(rounds) for name in names if turn < len(groups[name])]
    counts = {name: sum(each == name for each, _ in turns[:limit]) for name in names}
    return [item for name in names for item in groups[name][: counts[name]]]
