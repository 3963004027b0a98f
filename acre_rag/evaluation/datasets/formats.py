"""Records to items. The published formats differ only in the names of their fields, so one reader takes them all.

| format | document | question | answers | ids |
| --- | --- | --- | --- | --- |
| LongBench | context | input | answers | _id |
| InfiniteBench | context | input | answer, options | id |
| UltraDomain | context | input | answers | _id, context_id |
| normalised | context, or `NAME.docs.jsonl` by doc_id | question | answers, options | id, doc_id |
| a user's own | context or document | question | answer or answers, options | id, document_id |

A user's own file needs a document, a question and an answer a line, no more. `context` is the text; `document` is the
text, or the name of a file beside the questions (any kind that `acre ask` reads). Other fields become facts.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from acre_rag.document import text_digest
from acre_rag.errors import EvaluationError
from acre_rag.evaluation.datasets.lines import read_lines
from acre_rag.evaluation.item import EvalItem
from acre_rag.evaluation.metrics import LETTERS, chosen_option
from acre_rag.evaluation.tasks import Task
from acre_rag.extract import extract

_QUESTION = ("question", "input")
_ANSWERS = ("answers", "answer")
_TEXT = ("context", "document")
_ID = ("id", "_id")
_DOCUMENT_ID = ("document_id", "doc_id", "context_id")
_WORDS = ("context_words", "length")
_CONSUMED = {*_QUESTION, *_ANSWERS, *_TEXT, *_ID, *_DOCUMENT_ID, *_WORDS, "options", "dataset"}
_MOST_NAME_CHARS = 255


def read_items(task: Task, path: Path, member: str | None = None) -> list[EvalItem]:
    """All items of a file.

    Args:
        task: of the dataset.
        path: file of the questions; documents that they share may stand beside it in `NAME.docs.jsonl[.gz]`.
        member: file in a zip archive.

    Raises:
        EvaluationError: a line is damaged or incomplete, a document is missing, or there is no item.
    """
    beside = path.with_name(path.name.replace(".jsonl", ".docs.jsonl"))
    shared = _shared_documents(beside) if member is None and beside != path and beside.is_file() else {}
    texts: dict[str, str] = {}
    items: dict[str, EvalItem] = {}
    for number, (place, record) in enumerate(read_lines(path, member)):
        name = str(_first(record, _DOCUMENT_ID, default=""))
        text = _text(record, name, shared, path, place)
        name = name or text_digest(text)[:12]
        if texts.setdefault(name, text) != text:
            raise EvaluationError(f"{place}: document {name!r} has another text than before. Name it differently.")
        id = str(_first(record, _ID, default=f"{name}-{number}"))
        if id in items:
            id = f"{id}#{number}"
        items[id] = _item(task, record, id=id, document_id=name, document=texts[name], place=place)
    if not items:
        raise EvaluationError(f"{path} holds no question.")
    return list(items.values())


def _item(task: Task, record: Mapping[str, Any], *, id: str, document_id: str, document: str, place: str) -> EvalItem:
    question, answers, options = _question(record, place), _answers(record, place), _options(record, place)
    words = _first(record, _WORDS, default=None)
    facts: dict[str, Any] = {"words": words if isinstance(words, int) else len(document.split())}
    facts |= {key: value for key, value in record.items() if key not in _CONSUMED and value is not None}
    if task.metric == "option_accuracy":
        if all(chosen_option(answer, options) is None for answer in answers):
            raise EvaluationError(
                f"{place}: no answer of {list(answers)} names one of the {len(options)} options {list(options)}. "
                "Give the right option's text or letter."
            )
        facts["bare_question"] = question
        question = with_options(question, options)
    return EvalItem(
        id=id,
        dataset=task.name,
        document_id=document_id,
        document=document,
        question=question,
        answers=answers,
        options=options,
        facts=facts,
    )


def with_options(question: str, options: tuple[str, ...]) -> str:
    """The question as it is put, its options below it, a letter before each."""
    return "\n".join([question, *(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))])


def _first(record: Mapping[str, Any], names: tuple[str, ...], *, default: Any) -> Any:
    return next((record[name] for name in names if record.get(name) is not None), default)


def _question(record: Mapping[str, Any], place: str) -> str:
    question = _first(record, _QUESTION, default=None)
    if not isinstance(question, str) or not question.strip():
        raise EvaluationError(f"{place} has no question (a text in the field {' or '.join(_QUESTION)}).")
    return question.strip()


def _answers(record: Mapping[str, Any], place: str) -> tuple[str, ...]:
    given = _first(record, _ANSWERS, default=())
    answers = given if isinstance(given, list) else [given] if given != () else []
    if not answers or not all(isinstance(answer, str | int | float) for answer in answers):
        raise EvaluationError(f"{place} has no answers (texts in the field {' or '.join(_ANSWERS)}).")
    return tuple(map(str, answers))


def _options(record: Mapping[str, Any], place: str) -> tuple[str, ...]:
    options = record.get("options") or ()
    if not isinstance(options, list | tuple) or not all(isinstance(option, str) for option in options):
        raise EvaluationError(f"{place}: options must be a list of texts.")
    if len(options) > len(LETTERS):
        raise EvaluationError(f"{place} has {len(options)} options, more than the {len(LETTERS)} letters.")
    return tuple(options)


def _text(record: Mapping[str, Any], name: str, shared: Mapping[str, str], path: Path, place: str) -> str:
    text = record.get("context")
    if text is None and name in shared:
        text = shared[name]
    if text is None and isinstance(record.get("document"), str):
        text = _text_or_file(record["document"], path.parent, place)
    if not isinstance(text, str) or not text.strip():
        missing = f" ({name!r} is not in the .docs.jsonl file beside it)" if name else ""
        raise EvaluationError(f"{place} has no document{missing}: a text in the field {' or '.join(_TEXT)}.")
    return text


def _text_or_file(value: str, folder: Path, place: str) -> str:
    """A text as it is; a file beside the questions when the value looks like its name: one line with a suffix."""
    if len(value) > _MOST_NAME_CHARS or len(value.splitlines()) != 1 or not Path(value.strip()).suffix[1:].isalnum():
        return value
    file = folder / value.strip()
    if not file.resolve().is_relative_to(folder.resolve()):
        raise EvaluationError(f"{place}: document {value!r} lies outside {folder}; move it beside the questions.")
    if not file.is_file():
        if len(value.split()) > 1:
            return value  # a sentence that ends in "at 5.30"
        raise EvaluationError(f"{place}: document {value!r} is not in {folder}.")
    return extract(file).text


def _shared_documents(path: Path) -> dict[str, str]:
    texts: dict[str, str] = {}
    for place, record in read_lines(path):
        name = _first(record, (*_DOCUMENT_ID, *_ID), default=None)
        text = _first(record, _TEXT, default=None)
        if name is None or not isinstance(text, str):
            raise EvaluationError(f"{place} needs the fields doc_id and context.")
        texts[str(name)] = text
    return texts
