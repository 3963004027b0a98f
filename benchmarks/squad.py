"""The squad_article data: whole Wikipedia articles, questions, and where in an article an answer stands."""

import gzip
import json
from pathlib import Path
from typing import Any

from acre_rag import Document


def load(folder: Path) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Items, and texts by document id."""

    def read(name: str) -> list[dict[str, Any]]:
        with gzip.open(folder / name, "rt", encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]

    texts = {document["doc_id"]: document["context"] for document in read("squad_article.docs.jsonl.gz")}
    return read("squad_article.jsonl.gz"), texts


def answer_places(whole: str, item: dict[str, Any]) -> list[tuple[int, int]]:
    """Characters of each answer in the paragraph of the whole text that the question was written for."""
    low, high = _paragraph(whole, item["paragraph"])
    text = whole.lower()
    return [(at, at + len(a)) for a in item["answers"] if (at := text.find(a.lower(), low, high)) >= 0]


def gold_passages(document: Document, item: dict[str, Any]) -> set[int]:
    """Numbers of the passages that hold an answer there."""
    places = answer_places(document.text, item)
    return {i for i, p in enumerate(document.passages) if any(p.start < b and a < p.stop for a, b in places)}


def _paragraph(text: str, number: int) -> tuple[int, int]:
    """Characters of a source paragraph (0 is the first after the title)."""
    separator = "\n\n" if "\n\n" in text else "\n"
    paragraphs = text.split(separator)
    start = sum(len(p) + len(separator) for p in paragraphs[: number + 1])
    return start, start + len(paragraphs[number + 1])
