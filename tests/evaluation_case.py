"""What the tests of evaluation share: a few documents with questions, and rows made by a real run on the tiny model."""

import json
from pathlib import Path
from typing import Any

from conftest import tiny_decoder

from acre_rag.evaluation.board import Options
from acre_rag.evaluation.forms import Form
from acre_rag.evaluation.item import EvalItem
from acre_rag.evaluation.row_files import read_rows
from acre_rag.evaluation.rows import Row
from acre_rag.evaluation.runner import evaluate

ROOMS = ("drum", "flute", "harp", "horn")
FORMS = [Form(name="acre"), Form(name="acre-l1"), Form(name="acre-learned")]


def item(dataset: str, document: int, question: int, *, lines: int = 12, words: str = "") -> EvalItem:
    """A question about one of several small documents."""
    text = "\n\n".join(f"{words}The {ROOMS[i % 4]} of house {document} is in room {i}." for i in range(lines))
    return EvalItem(
        id=f"{document}-{question}",
        dataset=dataset,
        document_id=f"house-{document}",
        document=text,
        question=f"Where is the {ROOMS[question]}?",
        answers=(f"room {question}",),
    )


def items(dataset: str = "own:houses", *, documents: int = 2, questions: int = 2, lines: int = 12) -> list[EvalItem]:
    """All questions of a small data set."""
    return [item(dataset, d, q, lines=lines) for d in range(documents) for q in range(questions)]


def run(out: Path, *datasets: list[EvalItem], forms: list[Form] = FORMS, **options: Any) -> list[Row]:
    """A real run on the tiny model: its rows."""
    named = {each[0].dataset: each for each in datasets}
    evaluate(tiny_decoder(), forms, named, out=out, options=Options(**options))
    return read_rows([out])


def write_data(path: Path, count: int = 4) -> Path:
    """The same questions as a user's own file."""
    lines = [
        {"id": each.id, "document_id": each.document_id, "context": each.document, "question": each.question}
        | {"answers": list(each.answers)}
        for each in items(documents=count, questions=2)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path
