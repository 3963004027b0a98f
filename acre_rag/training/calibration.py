"""Find a model's retrieval heads: which heads point at the passage that answers a question. Knows no files.

For every question and every head: the share of attention (un-rotated keys, mean over the question's own tokens) that
each passage receives, less what content-free questions give it. Heads that put most on the right passage are kept.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from acre_rag.decoder import Decoder
from acre_rag.errors import CalibrationError
from acre_rag.heads import Head, RetrievalHeads
from acre_rag.proxies import PooledProxy, Proxy
from acre_rag.training.choices import choices
from acre_rag.training.data.located import LocatedDocument, compose, needles
from acre_rag.training.data.source import load_pairs
from acre_rag.training.masses import Attended, Measured, agreement, attended, found

_MIN_QUESTIONS = 10


def calibrate(
    decoder: Decoder,
    *,
    proxy: Proxy | None = None,
    data: Sequence[Path] = (),
    n_questions: int = 120,
    n_heads: int = 6,
    seed: int = 0,
    report: Callable[[str], None] = lambda line: None,
) -> RetrievalHeads:
    """Find retrieval heads, and measure with them what passage size and what prior find most.

    Args:
        decoder: the model.
        proxy: what an L1 entry is (questions are read over them); pooled by default.
        data: files of QA pairs (see `load_pairs`); with none, needles in the shipped book alone. Use data of another
            kind than what will be evaluated.
        n_questions: questions in all; with data, a quarter of them are needles.
        n_heads: most heads to keep.
        seed: of the sample.
        report: called with a line of progress per document.

    Raises:
        CalibrationError: too few questions, or no head finds anything.
    """
    if n_heads < 1:
        raise CalibrationError(f"n_heads={n_heads} must be 1 or more.")
    if n_questions < _MIN_QUESTIONS:
        raise CalibrationError(
            f"n_questions={n_questions} is too few to tell heads apart: use {_MIN_QUESTIONS} or more."
        )
    documents = _documents(data, n_questions, seed)
    asked: list[Attended] = []
    for number, document in enumerate(documents, 1):
        asked += attended(decoder, document, proxy=proxy)
        report(f"document {number}/{len(documents)}, {len(asked)} questions")
    heads, facts = choose_heads([each.measured() for each in asked], decoder, n_heads)
    facts |= choices(asked, [head.layer * decoder.n_heads + head.head for head in heads])
    facts |= {
        "data": [*(path.name for path in data), "needles"],
        "documents": len(documents),
        "questions": len(asked),
        "l1": proxy.name if proxy else PooledProxy.name,
        "seed": seed,
        "dtype": str(decoder.dtype).removeprefix("torch."),
        "model": decoder.name if not Path(decoder.name).exists() else Path(decoder.name).name,
    }
    return RetrievalHeads(heads, decoder.digest, decoder.architecture, facts)


def choose_heads(
    measured: Sequence[Measured], decoder: Decoder, n_heads: int
) -> tuple[tuple[Head, ...], dict[str, Any]]:
    """Heads with most mass on the right passage, weighted equally; as many as rank it best.

    Weights learned on top (greedily) did not help on other data: see benchmarks/LOG.md.

    Raises:
        CalibrationError: no head puts anything on the right passages.
    """
    gains = head_gains(measured)
    order = np.argsort(-gains)
    if gains[order[0]] <= 0.01:
        raise CalibrationError("No attention head points at the right passages; this model has no retrieval heads.")
    usable = [int(head) for head in order[:n_heads] if gains[head] > 0]
    best = _how_many([_reciprocal_ranks(measured, usable[:n]) for n in range(1, len(usable) + 1)])
    kept = usable[:best]
    heads = tuple(Head(h // decoder.n_heads, h % decoder.n_heads, 1 / best) for h in kept)
    facts = {
        "mass_on_right_passage": [round(float(gains[h]), 4) for h in kept],
        "passages_per_document": round(float(np.mean([mass.shape[1] for mass, _ in measured])), 1),
        "recall_at_1": round(_recall(measured, kept, 1), 3),
        "recall_at_2": round(_recall(measured, kept, 2), 3),
        "recall_at_4": round(_recall(measured, kept, 4), 3),
    }
    return heads, facts


def head_gains(measured: Sequence[Measured]) -> NDArray[np.float32]:
    """Mean mass that each head puts on the right passage, `[L * H]`: what heads are ranked by."""
    gains: NDArray[np.float32] = np.mean([mass[:, gold].max(axis=1) for mass, gold in measured], axis=0)
    return gains


def _documents(data: Sequence[Path], n_questions: int, seed: int) -> list[LocatedDocument]:
    if not data:
        return needles(n_questions=n_questions, seed=seed)
    pairs = [pair for path in data for pair in load_pairs(path)]
    composed = compose(pairs, n_questions=n_questions - n_questions // 4, seed=seed)
    n_found = sum(len(document.questions) for document in composed)
    if n_found < _MIN_QUESTIONS // 2:
        raise CalibrationError(
            f"The data gives {n_found} questions with an answer to point at; {_MIN_QUESTIONS} are needed. Add QA pairs."
        )
    return composed + needles(n_questions=n_questions // 4, seed=seed)


def _how_many(ranks: Sequence[NDArray[np.float64]]) -> int:
    """Most heads whose mean reciprocal rank is within one standard error of the best.

    A few dozen questions cannot tell two heads from six; more heads carry over better to other documents.
    """
    best = max(ranks, key=lambda each: float(each.mean()))
    enough = float(best.mean() - best.std() / len(best) ** 0.5)
    return max(n for n, each in enumerate(ranks, 1) if float(each.mean()) >= enough)


def _reciprocal_ranks(measured: Sequence[Measured], heads: Sequence[int]) -> NDArray[np.float64]:
    """For each question, one over the place of the best right passage."""
    ranks = []
    for mass, gold in measured:
        scores = agreement(mass, heads)
        ranks.append(1 / (1 + int((scores > scores[gold].max()).sum())))
    return np.array(ranks)


def _recall(measured: Sequence[Measured], heads: Sequence[int], k: int) -> float:
    return float(np.mean([found(each, heads, k) for each in measured]))
