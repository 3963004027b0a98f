"""Find a model's retrieval heads: which heads point at the passage that answers a question. Knows no files.

For every question and every head: the share of attention (un-rotated keys, mean over the question's own tokens) that
each passage receives, less what content-free questions give it. Heads that put most on the right passage are kept.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from acre_rag.config import ACREConfig
from acre_rag.decoder import Decoder
from acre_rag.document import Document
from acre_rag.engine import ACRE
from acre_rag.errors import CalibrationError
from acre_rag.heads import Head, RetrievalHeads
from acre_rag.prompts import SHORT_ANSWER, WHOLE_DOCUMENT_QUESTIONS
from acre_rag.question import global_view
from acre_rag.training.data.located import LocatedDocument, compose, needles
from acre_rag.training.data.source import load_pairs
from acre_rag.units import Scores, z_scores

Mass = NDArray[np.float32]
Measured = tuple[Mass, list[int]]
"""Of one question: mass of each head on each passage, `[L * H, P]`, and the numbers of the right passages."""
_WINDOW = 4096
_MIN_QUESTIONS = 10


def calibrate(
    decoder: Decoder,
    *,
    data: Sequence[Path] = (),
    n_questions: int = 120,
    n_heads: int = 6,
    seed: int = 0,
    report: Callable[[str], None] = lambda line: None,
) -> RetrievalHeads:
    """Find retrieval heads.

    Args:
        decoder: the model.
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
    measured = []
    for number, document in enumerate(documents, 1):
        measured += head_masses(decoder, document)
        report(f"document {number}/{len(documents)}, {len(measured)} questions")
    heads, facts = choose_heads(measured, decoder, n_heads)
    facts |= {
        "data": [*(path.name for path in data), "needles"],
        "documents": len(documents),
        "questions": len(measured),
        "seed": seed,
        "dtype": str(decoder.dtype).removeprefix("torch."),
        "model": decoder.name if not Path(decoder.name).exists() else Path(decoder.name).name,
    }
    return RetrievalHeads(heads, decoder.digest, decoder.architecture, facts)


def head_masses(decoder: Decoder, located: LocatedDocument) -> list[Measured]:
    """For each question: attention share beyond the prior `[L * H, P]`, and the passages that hold the answer."""
    window = min(_WINDOW, decoder.model_window)
    acre = ACRE(decoder, config=ACREConfig(window=window), heads=None, template=SHORT_ANSWER)
    document = acre.add(located.text)
    blocks = document.cache.l2.take(torch.arange(document.n_blocks))
    keys = blocks[:, :, 0].permute(1, 2, 0, 3, 4).flatten(2, 3)  # [L, Hkv, M * l, D]
    prior = np.mean([_masses(acre, document, keys, q) for q in WHOLE_DOCUMENT_QUESTIONS], axis=0)
    results = []
    for item in located.questions:
        gold = [i for i, p in enumerate(document.passages) if p.start < item.stop and item.start < p.stop]
        results.append((_masses(acre, document, keys, item.question) - prior, gold))
    return results


def choose_heads(
    measured: Sequence[Measured], decoder: Decoder, n_heads: int
) -> tuple[tuple[Head, ...], dict[str, Any]]:
    """Heads with most mass on the right passage, weighted equally; as many as rank it best.

    Weights learned on top (greedy, listwise regression) did not help on other data: see benchmarks/LOG.md.

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


def found(measured: Measured, heads: Sequence[int], k: int) -> bool:
    """Whether a right passage is among the first `k` by the agreement of some heads (numbers of rows of the masses)."""
    mass, gold = measured
    return bool(set(np.argsort(-_agreement(mass, heads))[:k]) & set(gold))


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


def _masses(acre: ACRE, document: Document, keys: Tensor, question: str) -> Mass:
    """Attention share of each passage for every head, `[L * H, P]`."""
    decoder = acre.decoder
    queries = acre.question_queries(question, global_view([document.cache]))  # [L, H, T, D]
    n_scored = keys.shape[2]
    cover = torch.zeros(n_scored, len(document.passages), device=keys.device)
    for i, passage in enumerate(document.passages):
        cover[passage.tokens.start : min(passage.tokens.stop, n_scored), i] = 1
    shares = []
    for layer_queries, layer_keys in zip(queries, keys.to(queries.device), strict=True):
        grouped = layer_queries.unflatten(0, (decoder.n_kv_heads, -1)).float() * decoder.scaling  # [Hkv, g, T, D]
        logits = grouped.flatten(1, 2) @ layer_keys.float().transpose(1, 2)  # [Hkv, g * T, N]
        share = (logits.softmax(dim=-1) @ cover.to(logits.device)).unflatten(1, grouped.shape[1:3]).mean(dim=2)
        shares.append(share.flatten(0, 1))  # [H, P]
    return torch.cat(shares).cpu().numpy()


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
        scores = _agreement(mass, heads)
        ranks.append(1 / (1 + int((scores > scores[gold].max()).sum())))
    return np.array(ranks)


def _recall(measured: Sequence[Measured], heads: Sequence[int], k: int) -> float:
    return float(np.mean([found(each, heads, k) for each in measured]))


def _agreement(mass: Mass, heads: Sequence[int]) -> Scores:
    """Mean of the heads' standard scores, as selection takes it, `[P]`."""
    agreement: Scores = np.mean([z_scores(mass[head].astype(np.float64)) for head in heads], axis=0)
    return agreement
