"""Text retrieval over a document's passages: BM25, and the form any other retriever takes. No model, no cache."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import bm25s
import numpy as np
from numpy.typing import NDArray

from acre_rag.document import Document

logging.getLogger("bm25s").setLevel(logging.WARNING)  # the library's own DEBUG would say a line for each question


@dataclass(frozen=True)
class Span:
    """Characters `start <= c < end` of one document that a retriever returned, with its score."""

    document: str
    start: int
    end: int
    score: float


Retriever = Callable[[str, Sequence[Document]], Sequence[Span]]
"""Question and documents to spans, best first. Any LlamaIndex or LangChain retriever fits behind it."""


def bm25_retriever(question: str, documents: Sequence[Document]) -> list[Span]:
    """BM25 over all passages of all documents (library: bm25s); passages without a common word are left out."""
    passages = [(document, passage) for document in documents for passage in document.passages]
    scores = bm25_scores(question, [document.text[passage.start : passage.stop] for document, passage in passages])
    return [
        Span(passages[i][0].id, passages[i][1].start, passages[i][1].stop, float(scores[i]))
        for i in np.argsort(-scores, kind="stable")
        if scores[i] > 0
    ]


def bm25_scores(question: str, texts: Sequence[str]) -> NDArray[np.float64]:
    """BM25 score of each text, `[n]`; zero for a question without any indexed word."""
    tokens = bm25s.tokenize(list(texts), stopwords="en", show_progress=False, return_ids=False)
    words = bm25s.tokenize([question], stopwords="en", show_progress=False, return_ids=False)[0]
    known = {word for text in tokens for word in text}
    words = [word for word in words if word in known]
    if not words:
        return np.zeros(len(texts))
    index = bm25s.BM25()
    index.index(tokens, show_progress=False)
    return np.asarray(index.get_scores(words), dtype=np.float64)
