"""Retrieval as most people know it: the question's nearest chunks are read, then answered from. Knows no rewriting."""

from collections.abc import Sequence
from time import perf_counter

from acre_rag.answer import Answer
from acre_rag.baselines.base import Call, Held, Setting
from acre_rag.baselines.rag.bm25 import BM25Search
from acre_rag.baselines.rag.fused import Fusion
from acre_rag.baselines.rag.retrieval import CHUNK_TOKENS, N_HITS, Indexed, RetrievalBaseline
from acre_rag.baselines.rag.searches import dense_search


class PlainRAG(RetrievalBaseline):
    """One search by the question itself; arguments of `RetrievalBaseline`."""

    def answer(self, question: str, documents: Sequence[Held[Indexed]], call: Call) -> Answer:
        """The answer from the question's hits."""
        start = perf_counter()
        hits = self.retrieval.find([question], documents, call)
        evidence = self.retrieval.evidence(hits, documents, self.retrieval.room(question, call))
        return self.retrieval.answer(question, documents, evidence, call, start=start)


def make_bm25(setting: Setting, *, hits: int = N_HITS, chunk_tokens: int = CHUNK_TOKENS) -> PlainRAG:
    """BM25 over chunks; options as `Retrieval`."""
    return PlainRAG(setting, BM25Search(), hits=hits, chunk_tokens=chunk_tokens)


def make_rag(
    setting: Setting, *, fusion: Fusion = "dense", hits: int = N_HITS, chunk_tokens: int = CHUNK_TOKENS
) -> PlainRAG:
    """Dense retrieval; options as `dense_search` and `Retrieval`."""
    return PlainRAG(setting, dense_search(setting, fusion), hits=hits, chunk_tokens=chunk_tokens)
