"""JSON objects of several forms as one: a document, and perhaps a question about it. Knows no files and no models.

Forms that are understood, by their fields:

- context (or document), question, answers (or answer): QA pairs, as SQuAD-like collections are written;
- context, input, and answers or output: LongBench, InfiniteBench, MemoRAG;
- text: a document alone, as in RedPajama;
- conversations or messages; instruction, output: see `conversations`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from acre_rag.training.data.conversations import turns_of

_CONTEXT_FIELDS = ("context", "document", "passage", "text")
_QUESTION_FIELDS = ("question", "query", "input")
_ANSWER_FIELDS = ("answers", "answer", "output")
_YES_NO = {"yes", "no", "maybe", "true", "false"}


@dataclass(frozen=True, kw_only=True)
class Record:
    """A document, with a question and its answers or without.

    Attributes:
        document: the text.
        question: what is asked of it; None for a text to read.
        answers: alternatives, any one is right; empty without a question.
        title: of the article or book that the text is from.
        source: collection it is from.
        licence: of the text, as the file says.
        id: unique within its collection, as far as the file says.
        supporting: numbers, from 1, of the passages ("Passage 1:", ...) that hold the answer.
    """

    document: str
    question: str | None = None
    answers: tuple[str, ...] = ()
    title: str = ""
    source: str = ""
    licence: str = ""
    id: str = ""
    supporting: tuple[int, ...] = ()

    @property
    def yes_or_no(self) -> bool:
        """Whether nothing in the text can be pointed at as the answer."""
        return bool(self.answers) and all(answer.strip().lower() in _YES_NO for answer in self.answers)


def records_of(row: Any) -> list[Record]:
    """The records of one JSON object: one, or one a turn of a conversation.

    Raises:
        UnsplitError: a conversation whose document cannot be told from its question.
        ValueError: not an object, or of an unknown form; names the fields it has.
    """
    if not isinstance(row, Mapping):
        raise ValueError(f"it is not an object but {type(row).__name__}")
    if (turns := turns_of(row)) is not None:
        common = _common(row, turns.document)
        return [replace(common, question=question, answers=(answer,)) for question, answer in turns.asked]
    document = _first(row, _CONTEXT_FIELDS)
    if document is None:
        raise ValueError(f"it has no text to read, only the fields {', '.join(map(str, row)) or 'none'}")
    question = _first(row, _QUESTION_FIELDS)
    if question is None:
        return [_common(row, document)]
    answers = next((row[field] for field in _ANSWER_FIELDS if row.get(field)), None)
    alternatives = tuple(map(str, answers)) if isinstance(answers, list) else (str(answers),) * (answers is not None)
    if not alternatives:
        raise ValueError(f"it has a question but no answer, only the fields {', '.join(map(str, row))}")
    return [replace(_common(row, document), question=question, answers=alternatives)]


def parts_of(row: Any) -> Record:
    """As much of a record as there is: evaluation files may keep questions and documents apart.

    Raises:
        ValueError: neither a document nor a question in it; names the fields it has.
    """
    fields = row if isinstance(row, Mapping) else {}
    try:
        return records_of(row)[0]
    except ValueError:
        document, question = _first(fields, _CONTEXT_FIELDS), _first(fields, _QUESTION_FIELDS)
        if document is None and question is None:
            raise
        return replace(_common(fields, document or ""), question=question)


def _common(row: Mapping[str, Any], document: str) -> Record:
    supporting = row.get("supporting_passages")
    return Record(
        document=document,
        title=str(row.get("title") or ""),
        source=str(row.get("source") or row.get("dataset") or ""),
        licence=str(row.get("license") or row.get("licence") or ""),
        id=str(row.get("id") or row.get("_id") or row.get("doc_id") or ""),
        supporting=tuple(n for n in supporting if isinstance(n, int)) if isinstance(supporting, list) else (),
    )


def _first(row: Mapping[str, Any], fields: tuple[str, ...]) -> str | None:
    return next((row[field] for field in fields if isinstance(row.get(field), str) and row[field].strip()), None)
