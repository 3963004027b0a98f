"""Documents with questions whose answers' places are known: composed from QA pairs, or made with needles.

For the calibration of retrieval heads. Knows text only: no model, no tokens.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

from acre_rag.training.data.gold import answer_spans
from acre_rag.training.data.record import Record

_DOCUMENT_CHARS = 26_000


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


def compose(
    pairs: Sequence[Record],
    *,
    n_questions: int,
    seed: int,
    n_documents: int = 10,
    document_chars: int = _DOCUMENT_CHARS,
) -> list[LocatedDocument]:
    """Long documents from short passages: passages of one title stand together, so distractors are near relatives.

    Args:
        pairs: as `load_pairs` gives them.
        n_questions: questions wanted in all, spread evenly over the documents.
        seed: of the sample.
        n_documents: most documents; fewer where the data gives less. Variety matters more than questions a document.
        document_chars: a document ends with the passage that passes this length.
    """
    rng = random.Random(seed)
    by_context: dict[str, list[Record]] = {}
    for pair in pairs:
        by_context.setdefault(pair.document, []).append(pair)
    title_of = {context: each[0].title or context for context, each in by_context.items()}
    titles = sorted(set(title_of.values()))
    rng.shuffle(titles)
    rank = {title: i for i, title in enumerate(titles)}
    contexts = sorted(by_context, key=lambda context: (rank[title_of[context]], context))
    documents: list[LocatedDocument] = []
    groups = _filled(contexts, document_chars)
    wanted = -(-n_questions // min(n_documents, len(groups)))
    for group in groups[:n_documents]:
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


def _filled(contexts: Sequence[str], document_chars: int) -> list[list[str]]:
    groups: list[list[str]] = [[]]
    for context in contexts:
        if sum(map(len, groups[-1])) > document_chars:
            groups.append([])
        groups[-1].append(context)
    return groups


def _joined(
    contexts: Sequence[str], pairs: dict[str, list[Record]], wanted: int, rng: random.Random
) -> LocatedDocument:
    text, questions = "", []
    for context in contexts:
        for pair in pairs[context]:
            if pair.question is None or pair.yes_or_no:
                continue  # nothing in the text to point at
            start, stop = (answer_spans(context, pair.answers) or [(0, len(context))])[0]
            questions.append(LocatedQuestion(pair.question, len(text) + start, len(text) + stop))
        text += context + "\n\n"
    return LocatedDocument(text, tuple(rng.sample(questions, min(wanted, len(questions)))))
