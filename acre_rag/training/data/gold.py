"""Where in a text the answer to a question stands. Knows words and characters; no models."""

import re
from collections.abc import Sequence

from acre_rag.training.data.record import Record

Span = tuple[int, int]
_WORD = re.compile(r"\w+")
_PASSAGE = re.compile(r"^Passage (\d+):\n", re.MULTILINE)
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+|\n+")


def answer_spans(text: str, answers: Sequence[str]) -> list[Span]:
    """Characters `start <= c < stop` of the first place of each answer that occurs in a text, in any case."""
    lower = text.lower()
    return [(at, at + len(answer)) for answer in answers if answer and (at := lower.find(answer.lower())) >= 0]


def holds(text: str, answer: str) -> bool:
    """Whether an answer's words stand in a text, one after another."""
    wanted = _words(answer)
    return bool(wanted) and f" {' '.join(wanted)} " in f" {' '.join(_words(text))} "


def evidence(record: Record) -> tuple[Span, ...]:
    """The part of a record's document that answers its question; empty when nothing tells where that is.

    The supporting passages where the record names them; else, of the sentences that hold an answer, the one that shares
    most words with the question.
    """
    if record.supporting:
        return _supporting(record)
    if record.question is None or record.yes_or_no:
        return ()
    asked = set(_words(record.question))
    holders = [
        (start, stop)
        for start, stop in _sentences(record.document)
        if any(holds(record.document[start:stop], answer) for answer in record.answers)
    ]
    if not holders:
        return ()
    return (max(holders, key=lambda span: len(asked.intersection(_words(record.document[span[0] : span[1]])))),)


def _supporting(record: Record) -> tuple[Span, ...]:
    """Characters of the passages that a record names."""
    heads = list(_PASSAGE.finditer(record.document))
    stops = [head.start() for head in heads[1:]] + [len(record.document)]
    spans = {int(head.group(1)): (head.end(), stop) for head, stop in zip(heads, stops, strict=True)}
    return tuple(spans[number] for number in record.supporting if number in spans)


def _sentences(text: str) -> list[Span]:
    """Sentences, roughly: a full stop before white space ends one, also after an abbreviation."""
    starts = [0, *(end.end() for end in _SENTENCE_END.finditer(text))]
    stops = [*starts[1:], len(text)]
    return [(a, a + len(text[a:b].rstrip())) for a, b in zip(starts, stops, strict=True) if text[a:b].strip()]


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())
