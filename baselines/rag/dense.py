"""Dense search: chunks as vectors in a FAISS index. Knows no embedding model beyond the `Embedder` protocol."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from acre_rag.baselines.rag.embedder import BATCH, Embedder
from acre_rag.baselines.rag.search import Hit, Search
from acre_rag.errors import MissingExtraError


class DenseSearch(Search[Any]):
    """Cosine similarity (library: faiss, an exact flat index of inner products of normalised vectors).

    Each document has an index of its own; the best of each compete by score, which is the same as one index of all.

    Args:
        embedder: texts to vectors.
    """

    def __init__(self, embedder: Embedder) -> None:
        self.embedder = embedder

    def index(self, texts: Sequence[str], done: Callable[[int], None]) -> Any:
        """A `faiss.IndexFlatIP` of `[n, d]` vectors."""
        parts = []
        for start in range(0, len(texts), BATCH):
            parts.append(self.embedder.embed(texts[start : start + BATCH]))
            done(min(start + BATCH, len(texts)))
        return flat_index(np.concatenate(parts))

    def best(self, query: str, indexes: Sequence[Any], n_hits: int) -> list[Hit]:
        """The chunks nearest to the query."""
        return nearest(self.embedder.embed([query], queries=True), indexes, n_hits)[:n_hits]

    @property
    def facts(self) -> dict[str, str]:
        """The embedding model."""
        return {"retriever": "dense", "embedder": self.embedder.about}


def flat_index(vectors: NDArray[np.float32]) -> Any:
    """A `faiss.IndexFlatIP` of `[n, d]` normalised vectors.

    Raises:
        MissingExtraError: faiss is not installed.
    """
    try:
        import faiss
    except ImportError:
        raise MissingExtraError("faiss-cpu", "baselines", "Dense retrieval") from None
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    return index


def nearest(query: NDArray[np.float32], indexes: Sequence[Any], n_each: int) -> list[Hit]:
    """The `n_each` nearest of each index, all together best first; `query` is `[1, d]`."""
    hits = []
    for document, index in enumerate(indexes):
        scores, chunks = index.search(query, min(n_each, index.ntotal))
        hits += [Hit(document, int(c), float(s)) for c, s in zip(chunks[0], scores[0], strict=True)]
    return sorted(hits, key=lambda hit: (-hit.score, hit.document, hit.chunk))
