"""Text retrieval over a document's passages: BM25, and the form any other retriever takes. No model, no cache."""

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import bm25s
import numpy as np
from numpy.typing import NDArray

from acre_rag.document import Document

logging.getLogger("bm25s").setLevel(logging.WARNING)  # the library's own DEBUG would say a line for each question

UNSPACED = re.compile(
    "[\u3005-\u3007\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\uff66-\uff9f"  # Kana
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Han
    "\u0e01-\u0e3a\u0e40-\u0e4e\u0e81-\u0ece\u1000-\u103f\u1780-\u17d3]"  # Thai, Lao, Myanmar, Khmer
)
"""A character of a script that puts no spaces between words."""

_RUN = re.compile(f"{UNSPACED.pattern}{{2,}}")


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
    tokens = _words(texts)
    [words] = _words([question])
    known = {word for text in tokens for word in text}
    words = [word for word in words if word in known]
    if not words:
        return np.zeros(len(texts))
    index = bm25s.BM25()
    index.index(tokens, show_progress=False)
    return np.asarray(index.get_scores(words), dtype=np.float64)


def _words(texts: Sequence[str]) -> list[list[str]]:
    """The library's words of each text; of a run of characters without spaces, each two neighbours.

    Such a run would be one word to the library, and Thai marks would end it: no question would find it.
    """
    spaced: list[list[str]] = bm25s.tokenize(
        [_RUN.sub(" ", text) for text in texts], stopwords="en", show_progress=False, return_ids=False
    )
    return [[*words, *_neighbours(text)] for words, text in zip(spaced, texts, strict=True)]


def _neighbours(text: str) -> list[str]:
    return [run[i : i + 2] for run in _RUN.findall(text) for i in range(len(run) - 1)]
