"""The retrieval systems by name."""

from typing import Any

from acre_rag.baselines.system import System


def _system(name: str, title: str, place: str, about: str, **options: Any) -> System:
    return System(name, title, "retrieval", f"acre_rag.baselines.rag.{place}", about, tuple(options.items()))


RETRIEVAL_SYSTEMS: tuple[System, ...] = (
    _system("bm25", "BM25", "plain:make_bm25", "5 chunks of 512 tokens by BM25, read as text: the floor"),
    _system("rag", "RAG", "plain:make_rag", "5 chunks of 512 tokens by dense vectors, read as text"),
    _system("rq-rag", "RQ-RAG", "rq_rag:make_rq_rag", "the question rewritten, decomposed, disambiguated; 5 hits each"),
    _system(
        "rq-rag-tree",
        "RQ-RAG (tree)",
        "rq_rag:make_rq_rag",
        "an answer per kind of rewriting, the surest is kept",
        mode="tree",
    ),
    _system(
        "rq-rag-checkpoint",
        "RQ-RAG (checkpoint)",
        "rq_rag:make_rq_rag",
        "the released model's tree over special tokens",
        mode="checkpoint",
    ),
    _system(
        "memorag",
        "MemoRAG (gists memory)",
        "memorag:make_memorag",
        "clues from gists of the document are searched, then read as text, as MemoRAG-Lite",
    ),
    _system(
        "memorag-full",
        "MemoRAG (full cache memory)",
        "memorag:make_memorag",
        "clues from the model's own cache of the document",
        memory="full",
    ),
    _system(
        "memorag-acre",
        "MemoRAG (untrained ACRE memory)",
        "memorag:make_memorag",
        "clues from ACRE's compact layer as nobody trained it: no memory that MemoRAG's authors propose",
        memory="acre",
    ),
    _system(
        "memorag-learned",
        "MemoRAG (learned ACRE memory)",
        "memorag:make_memorag",
        "clues from ACRE's compact layer as an adapter of acre train has it",
        memory="learned",
    ),
    _system(
        "memorag-released",
        "MemoRAG (released memory)",
        "memorag:make_memorag",
        "clues from the released memory model; needs CUDA and its weights",
        memory="released",
    ),
)
