"""Which questions a benchmark asks of which documents and of which model: its options, and the questions by document."""

import argparse
from collections.abc import Iterator
from pathlib import Path

from acre_rag.evaluation.datasets import load_dataset
from acre_rag.evaluation.item import EvalItem, sample


def parser(about: str | None, *, sets: str, questions: int, documents: int) -> argparse.ArgumentParser:
    """Options of data, model and result, with these defaults; a benchmark adds its own."""
    made = argparse.ArgumentParser(description=about)
    made.add_argument("--data", type=Path, required=True, help="folder with the data sets")
    made.add_argument("--sets", default=sets)
    made.add_argument("--questions", type=int, default=questions, help="most questions of a data set")
    made.add_argument("--documents", type=int, default=documents, help="most documents of a data set")
    made.add_argument("--model", default="smollm2-135m")
    made.add_argument("--heads", type=Path)
    made.add_argument("--name", default="smollm2-135m")
    made.add_argument("--window", type=int)
    return made


def by_document(name: str, options: argparse.Namespace) -> Iterator[tuple[str, list[EvalItem]]]:
    """A data set's sample: the id of each document and the questions about it."""
    data = load_dataset(name, path=options.data)
    items = sample(data, limit=options.questions, documents=options.documents, seed=0)
    for document_id in dict.fromkeys(item.document_id for item in items):
        yield document_id, [item for item in items if item.document_id == document_id]
