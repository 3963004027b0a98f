"""BGE-M3's three scores together: dense, sparse and ColBERT. Knows nothing of the model but `BGEM3`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from acre_rag.baselines.rag.bge_m3 import BGEM3
from acre_rag.baselines.rag.dense import flat_index, nearest
from acre_rag.baselines.rag.embedder import BATCH
from acre_rag.baselines.rag.search import Hit, Search

Fusion = Literal["dense", "dense+sparse", "all"]

WEIGHTS: Mapping[Fusion, tuple[float, float, float]] = {
    "dense": (1.0, 0.0, 0.0),
    "dense+sparse": (1.0, 0.3, 0.0),
    "all": (1.0, 0.3, 1.0),
}
"""Weights of dense, sparse and ColBERT scores: those of FlagEmbedding's `ensemble_score` (the model's own training)."""

_CANDIDATES = 200


@dataclass(frozen=True, eq=False)
class FusedIndex:
    """One document.

    Attributes:
        vectors: FAISS index of dense vectors.
        words: token weights of each chunk.
        tokens: `[tokens, d]` float16 of each chunk, some 1 MB at 512 tokens; empty without ColBERT.
    """

    vectors: Any
    words: list[dict[str, float]]
    tokens: list[NDArray[np.float16]]


class FusedSearch(Search[FusedIndex]):
    """The 200 nearest chunks of each document by dense score, ranked anew by the weighted sum.

    The paper (arXiv 2402.03216) ranks 200 dense candidates anew by ColBERT in the same way, because comparing every
    token of every chunk is dear; a document of up to 200 chunks (100K tokens) is ranked whole.

    Args:
        embedder: BGE-M3.
        fusion: which scores are added.
    """

    def __init__(self, embedder: BGEM3, fusion: Fusion) -> None:
        self.embedder = embedder
        self.fusion = fusion
        self.weights = WEIGHTS[fusion]

    def index(self, texts: Sequence[str], done: Callable[[int], None]) -> FusedIndex:
        """Dense vectors, token weights and, if asked for, token vectors."""
        vectors, words, tokens = [], [], []
        for start in range(0, len(texts), BATCH):
            encoded = self.embedder.encode(texts[start : start + BATCH], colbert=self._colbert)
            vectors.append(encoded.dense)
            words += encoded.sparse
            tokens += [each.astype(np.float16) for each in encoded.colbert]
            done(min(start + BATCH, len(texts)))
        return FusedIndex(flat_index(np.concatenate(vectors)), words, tokens)

    def best(self, query: str, indexes: Sequence[FusedIndex], n_hits: int) -> list[Hit]:
        """The best chunks by the weighted sum of scores."""
        asked = self.embedder.encode([query], colbert=self._colbert)
        n_each = max(_CANDIDATES, n_hits)
        candidates = nearest(asked.dense, [each.vectors for each in indexes], n_each)
        dense_weight, sparse_weight, colbert_weight = self.weights
        hits = []
        for hit in candidates:
            index = indexes[hit.document]
            score = dense_weight * hit.score
            score += sparse_weight * self.embedder.sparse_score(asked.sparse[0], index.words[hit.chunk])
            if self._colbert:
                tokens = index.tokens[hit.chunk].astype(np.float32)
                score += colbert_weight * self.embedder.colbert_score(asked.colbert[0], tokens)
            hits.append(Hit(hit.document, hit.chunk, score))
        return sorted(hits, key=lambda hit: -hit.score)[:n_hits]

    @property
    def facts(self) -> dict[str, str]:
        """The embedding model and the fusion."""
        return {"retriever": self.fusion, "embedder": self.embedder.about}

    @property
    def _colbert(self) -> bool:
        return self.weights[2] > 0
