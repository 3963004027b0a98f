"""What the tests of evaluation share: a few documents with questions, rows made by a real run on the tiny model,
and rows by hand."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from conftest import tiny_decoder

from acre_rag.evaluation.board import Options
from acre_rag.evaluation.forms import Form
from acre_rag.evaluation.item import EvalItem
from acre_rag.evaluation.row_files import read_rows
from acre_rag.evaluation.rows import Row, Run
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


def row(system: str, dataset: str, item: str, score: float, **more: object) -> Row:
    """A row with round figures."""
    run = Run(
        system=system,
        name=system,
        options={},
        dataset=dataset,
        metric="qa_f1",
        model="tiny",
        weights="w",
        dtype="float32",
        window=512,
        template="t",
        max_new_tokens=8,
        stop=(),
        seed=0,
        documents=None,
    )
    filled = {
        "document": "d" + item,
        "document_tokens": 1000,
        "question": f"question {item}",
        "gold": ("gold",),
        "answer": f"{system} says",
        "finished": True,
        "tokens": {"prompt": 10, "cached": 90, "refilled": 50, "generated": 5},
        "seconds": {"read": 4.0, "question": 2.0, "first_token": 1.0},
        "memory": {"peak_bytes": 2**20, "kind": "tested"},
    }
    return Row(run=run, item=item, score=score, **{**filled, **more})


FAILED = {
    "error": {"kind": "CapacityError", "message": "too long"},
    "seconds": {"read": 4.0},
    "tokens": {},
    "memory": {},
}
BY_HAND = [
    *(row("acre", "a", str(i), score) for i, score in enumerate((10, 20, 60))),
    *(row("acre", "b", str(i), score) for i, score in enumerate((0, 100))),
    *(row("bm25", "a", str(i), score) for i, score in enumerate((40, 30, 80))),
    row("bm25", "b", "0", 0, **FAILED),
    row("bm25", "b", "1", 70),
    row("full", "a", "0", 90, seconds={"read": 8.0, "question": 6.0, "first_token": 5.0}),
    Row(run=replace(row("full", "b", "0", 0).run), error={"kind": "UnavailableError", "message": "no CUDA"}),
]
