"""BM25 over chunks: the floor that every retriever should pass. Knows no vectors."""

from collections.abc import Callable, Sequence

import numpy as np

from acre_rag.baselines.rag.search import Hit, Search, best_of
from acre_rag.retrieve import bm25_scores


class BM25Search(Search[tuple[str, ...]]):
    """BM25 (library: bm25s). A word's weight depends on all documents asked, so they are counted per question."""

    def index(self, texts: Sequence[str], done: Callable[[int], None]) -> tuple[str, ...]:
        """The chunks as they are."""
        done(len(texts))
        return tuple(texts)

    def best(self, query: str, indexes: Sequence[tuple[str, ...]], n_hits: int) -> list[Hit]:
        """The best chunks; without a common word, the first ones with score 0."""
        scores = bm25_scores(query, [text for texts in indexes for text in texts])
        return best_of(np.split(scores, np.cumsum([len(texts) for texts in indexes])[:-1]), n_hits)

    @property
    def facts(self) -> dict[str, str]:
        """The retriever."""
        return {"retriever": "BM25"}
