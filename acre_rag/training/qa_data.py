"""Documents with questions whose answers' places are known: composed from QA pairs, or made with needles.

Knows text only: no model, no tokens.
"""

import gzip
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from acre_rag.errors import CalibrationError

_DOCUMENT_CHARS = 26_000
_YES_NO = {"yes", "no", "maybe", "true", "false"}


@dataclass(frozen=True)
class LocatedQuestion:
    """A question, and the characters `start <= c < stop` of its document that answer it."""

    question: str
    start: int
    stop: int


@dataclass(frozen=True)
class LocatedDocument:
    """A text and questions about it."""

    text: str
    questions: tuple[LocatedQuestion, ...]


def load_pairs(path: Path) -> list[dict[str, Any]]:
    """QA pairs from `.jsonl` or `.jsonl.gz`: objects with "context", "question", "answers", optional "title".

    Raises:
        CalibrationError: missing, damaged, or without those fields.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8") as lines:
            pairs: list[dict[str, Any]] = [json.loads(line) for line in lines if line.strip()]
    except (OSError, EOFError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CalibrationError(f"{path} cannot be read as JSON lines ({error}).") from error
    if not pairs or not all(isinstance(p, dict) and {"context", "question", "answers"} <= p.keys() for p in pairs):
        raise CalibrationError(f"{path} needs one object a line with the fields context, question and answers.")
    return pairs


def compose(pairs: Sequence[dict[str, Any]], *, n_questions: int, seed: int) -> list[LocatedDocument]:
    """Long documents from short passages: passages of one title stand together, so distractors are near relatives.

    Args:
        pairs: as `load_pairs` gives them.
        n_questions: questions wanted in all, spread evenly over the documents.
        seed: of the sample.
    """
    rng = random.Random(seed)
    by_context: dict[str, list[dict[str, Any]]] = {}
    for pair in pairs:
        by_context.setdefault(pair["context"], []).append(pair)
    title_of = {context: str(each[0].get("title") or context) for context, each in by_context.items()}
    titles = sorted(set(title_of.values()))
    rng.shuffle(titles)
    rank = {title: i for i, title in enumerate(titles)}
    contexts = sorted(by_context, key=lambda context: (rank[title_of[context]], context))
    documents: list[LocatedDocument] = []
    groups = _filled(contexts)
    wanted = -(-n_questions // min(10, len(groups)))  # ten documents where the data allows: variety matters more
    for group in groups[:10]:
        documents.append(_joined(group, by_context, wanted, rng))
    return [document for document in documents if document.questions]


def needles(*, n_questions: int, seed: int) -> list[LocatedDocument]:
    """Sentences with made-up facts in the shipped book; distractor needles name other things of the same kind."""
    rng = random.Random(seed)
    book = (resources.files("acre_rag") / "data" / "alice.txt").read_text(encoding="utf-8")
    paragraphs = book.split("\n\n")
    documents: list[LocatedDocument] = []
    while sum(len(document.questions) for document in documents) < n_questions:
        first = rng.randrange(len(paragraphs) - 250)
        documents.append(_with_needles(paragraphs[first : first + 150], rng))
    return documents


_THINGS = (
    ("The harbour master of {} is called {}.", "What is the harbour master of {} called?"),
    ("The secret ingredient of the soup in {} is {}.", "What is the secret ingredient of the soup in {}?"),
    ("The best student of the school in {} plays {}.", "What does the best student of the school in {} play?"),
    ("The oldest tree of {} was planted by {}.", "Who planted the oldest tree of {}?"),
    ("The key to the tower of {} is kept by {}.", "Who keeps the key to the tower of {}?"),
    ("The new bridge at {} was paid for by {}.", "Who paid for the new bridge at {}?"),
)
_PLACES = ("Arvika", "Bellano", "Corvara", "Dornoch", "Elmira", "Fresno", "Gdansk", "Horta", "Izmir", "Jaipur")
_NAMES = ("Marisol", "juniper", "Tobias Crane", "saffron", "the oboe", "Ingrid Vale", "cardamom", "Oskar Lind")


def _with_needles(paragraphs: Sequence[str], rng: random.Random) -> LocatedDocument:
    facts = [(thing, place, rng.choice(_NAMES)) for thing in rng.sample(_THINGS, 4) for place in rng.sample(_PLACES, 2)]
    places = sorted(rng.sample(range(len(paragraphs)), len(facts)))
    rng.shuffle(facts)
    text, questions = "", []
    pending = dict(zip(places, facts, strict=True))
    for i, paragraph in enumerate(paragraphs):
        if i in pending:
            (statement, question), place, name = pending[i]
            sentence = statement.format(place, name)
            questions.append(LocatedQuestion(question.format(place), len(text), len(text) + len(sentence)))
            text += sentence + " "
        text += paragraph + "\n\n"
    return LocatedDocument(text, tuple(questions))


def _filled(contexts: Sequence[str]) -> list[list[str]]:
    groups: list[list[str]] = [[]]
    for context in contexts:
        if sum(map(len, groups[-1])) > _DOCUMENT_CHARS:
            groups.append([])
        groups[-1].append(context)
    return groups


def _joined(
    contexts: Sequence[str], pairs: dict[str, list[dict[str, Any]]], wanted: int, rng: random.Random
) -> LocatedDocument:
    text, questions = "", []
    for context in contexts:
        for pair in pairs[context]:
            answers = [str(answer) for answer in pair["answers"]]
            if all(answer.strip().lower() in _YES_NO for answer in answers):
                continue  # nothing in the text to point at
            places = [(at, at + len(a)) for a in answers if a and (at := context.lower().find(a.lower())) >= 0]
            start, stop = places[0] if places else (0, len(context))
            questions.append(LocatedQuestion(str(pair["question"]), len(text) + start, len(text) + stop))
        text += context + "\n\n"
    return LocatedDocument(text, tuple(rng.sample(questions, min(wanted, len(questions)))))
