"""Question to chosen blocks (Eq. 15-17): four strategies behind one interface; reads no L2 and decodes nothing."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from acre_rag.blocks import Run
from acre_rag.cache import Prior
from acre_rag.choose import Selection, best_units, spread_units, within_budget
from acre_rag.config import ASKS_A_RETRIEVER, ACREConfig
from acre_rag.decoder import Decoder
from acre_rag.document import Document
from acre_rag.errors import ConfigError
from acre_rag.heads import RetrievalHeads
from acre_rag.question import Question, global_view, question_queries
from acre_rag.retrieve import Retriever, bm25_retriever
from acre_rag.scores import head_scores, pooled_scores
from acre_rag.units import (
    Scores,
    Unit,
    fill_exactly,
    n_covered,
    rank_units,
    span_floor,
    span_scores,
    split_units,
    unit_sums,
    z_scores,
)
from acre_rag.whole import about_the_whole, passage_shares


class Selector:
    """Chooses blocks with one model.

    Args:
        decoder: the model.
        heads: its retrieval heads; `None` falls back to pooled scores of all heads (less sharp).
    """

    def __init__(self, decoder: Decoder, heads: RetrievalHeads | None) -> None:
        self._decoder = decoder
        self._rows = heads.rows(decoder) if heads else []

    def select(
        self,
        question: Question,
        documents: Sequence[Document],
        *,
        config: ACREConfig,
        budget_tokens: int,
        retriever: Retriever = bm25_retriever,
    ) -> Selection:
        """Choose blocks for a question.

        Args:
            question: the question.
            documents: documents asked.
            config: strategy and granularity.
            budget_tokens: most tokens that may be refilled (Eq. 17, see `refill_budget`).
            retriever: text retriever of the "retriever" and "hybrid" strategies.

        Raises:
            ConfigError: the strategy cannot serve these documents.
        """
        if not config.budget:  # L1 alone was asked for: no scores, which would cost a pass over L1
            return within_budget((), documents, 0, "passages", ())
        if config.select == "paper":
            return self._paper(question, documents, config=config, budget_tokens=budget_tokens)
        units = split_units(documents, config.granularity)
        if config.select == "retriever":
            return _by_retriever(question, documents, config, budget_tokens, retriever)
        raw = self._raw_scores(documents, self._queries(question, documents))
        tokens = without_prior(raw, documents) if config.prior else _as_arrays(raw)
        scores = self._agreement(tokens, units)
        passages = units if config.granularity == "passages" else split_units(documents, "passages")
        if about_the_whole(raw, documents, peak=float(self._agreement(tokens, passages).max(initial=0.0))):
            return spread_units(units, scores, documents, config, budget_tokens)
        if config.select == "hybrid":
            scores = _both(scores, span_scores(retriever(question.text, documents), units, documents))
        return best_units(units, scores, documents, config, budget_tokens)

    def prior(self, document: Document, questions: Sequence[Question]) -> Prior | None:
        """What content-free questions attend to in a document, computed once; none for a document without blocks."""
        if not document.n_blocks:
            return None
        one = [document]
        raw = torch.stack([self._raw_scores(one, self._queries(q, one))[0] for q in questions])  # [q, n, M * l]
        shares = np.stack([passage_shares(each, document) for each in raw])
        return Prior(raw.mean(dim=0), shares)

    def by_promise(
        self,
        question: Question,
        documents: Sequence[Document],
        *,
        select: str = "consensus",
        retriever: Retriever = bm25_retriever,
    ) -> list[int]:
        """Places of the documents, the one with the best passage first: for when not all of them fit the window.

        The passages are scored as `select` will score them: by the heads, by the retriever, or by both. The question
        is read behind the prompt alone, so nothing grows with the number of documents but scores.

        Args:
            question: the question.
            documents: documents asked.
            select: the strategy; "paper" is served by the heads.
            retriever: text retriever of the "retriever" and "hybrid" strategies.

        Raises:
            ConfigError: the retriever returned a span of another document.
        """
        units = [*split_units(documents, "passages"), *_without_blocks(documents)]
        by_text = by_heads = np.zeros(len(units))
        if select in ASKS_A_RETRIEVER:
            by_text = span_scores(retriever(question.text, documents), units, documents)
        if select != "retriever":
            tokens = without_prior(self._raw_scores(documents, self._queries(question, documents)), documents)
            by_heads = self._agreement(tokens, units)
        best = np.full(len(documents), -np.inf)
        np.maximum.at(best, [unit.document for unit in units], _both(by_heads, by_text))
        return [int(i) for i in np.argsort(-best, kind="stable")]

    def _agreement(self, tokens: Sequence[Scores], units: Sequence[Unit]) -> Scores:
        """Weighted mean over heads of each unit's standard score: one loud head does not outvote the others."""
        weights = [head.weight for head, _ in self._rows] or [1.0]
        per_head = [z_scores(unit_sums([each[h] for each in tokens], units)) for h in range(len(weights))]
        return np.average(per_head, axis=0, weights=weights)

    def _queries(self, question: Question, documents: Sequence[Document]) -> Tensor:
        """The question read over a document's L1 entries; behind the prompt alone when there are several documents.

        Measured (benchmarks/many_documents.py): entries of other documents blur the question.
        """
        caches = [document.cache for document in documents]
        view = global_view(caches) if len(caches) == 1 else caches[0].prefix
        return question_queries(self._decoder, view, question.ids, own=question.own)

    def _raw_scores(self, documents: Sequence[Document], queries: Tensor) -> list[Tensor]:
        """Attention to every blocked token, `[n, M * l]` float32 for each document, one row per retrieval head."""
        caches = [document.cache for document in documents]
        scaling = self._decoder.scaling
        if self._rows:
            keys = torch.cat([cache.head_keys for cache in caches], dim=1)
            scores = head_scores(queries, keys, rows=self._rows, scaling=scaling)
            return list(scores.split([cache.n_blocks * cache.interval for cache in caches], dim=1))
        l1_keys = torch.cat([cache.l1.keys for cache in caches], dim=2)
        per_block = pooled_scores(queries, l1_keys, scaling=scaling).sum(dim=0).split([c.n_blocks for c in caches])
        return [
            (blocks / cache.interval).repeat_interleave(cache.interval)[None]
            for blocks, cache in zip(per_block, caches, strict=True)
        ]

    def _paper(
        self, question: Question, documents: Sequence[Document], *, config: ACREConfig, budget_tokens: int
    ) -> Selection:
        """Eq. 15-17 as written: each layer chooses its own blocks from the L1 entries."""
        if len(documents) != 1:
            raise ConfigError(
                f"select='paper' chooses per layer, for one document; {len(documents)} were given. "
                "Ask one document at a time, or use select='consensus'."
            )
        document = documents[0]
        queries = self._queries(question, documents)
        cache = document.cache
        scores = pooled_scores(
            queries,
            cache.l1.keys,
            scaling=self._decoder.scaling,
            rope=self._decoder.rope,
            distance=cache.n_blocks + len(cache.tail) + question.own.start,
        )
        per_layer = scores.cpu().double().numpy()  # [L, M]; cpu first: MPS has no float64
        units = split_units(documents, config.granularity)
        interval = cache.interval
        n_refill = min(budget_tokens // interval, cache.n_blocks)
        if config.granularity == "passages":
            widest = sum(sorted((len(unit.blocks) for unit in units), reverse=True)[: config.max_passages])
            n_refill = min(n_refill, widest, n_covered(units))  # neighbours may share a block, white space is in none
        rows = [fill_exactly(units, layer, n_refill, config.granularity) for layer in per_layer]
        blocks = np.array(rows, dtype=np.int64).reshape(len(per_layer), n_refill)
        shared = unit_sums([np.repeat(per_layer.mean(axis=0) / interval, interval)], units)
        counts = np.bincount(blocks.ravel(), minlength=cache.n_blocks) / len(per_layer)
        ranked = [(u, float(s)) for u, s in rank_units(units, shared) if counts[u.blocks.start : u.blocks.stop].any()]
        shown = ranked[: max(1, config.max_passages if config.granularity == "passages" else n_refill)]
        return Selection(
            (blocks,), tuple(shown) if n_refill else (), "passages", tuple(zip(units, shared, strict=True))
        )


def _without_blocks(documents: Sequence[Document]) -> list[Unit]:
    """Documents shorter than one block, as a whole: no head scores them, but a retriever may find them."""
    nothing = Run(0, 0)
    return [Unit(i, nothing, nothing, 0, len(d.text)) for i, d in enumerate(documents) if not d.n_blocks]


def _both(by_heads: Scores, by_text: Scores) -> Scores:
    """One opinion of two, in standard deviations."""
    mean: Scores = (z_scores(by_heads) + z_scores(by_text)) / 2
    return mean


def without_prior(raw: Sequence[Tensor], documents: Sequence[Document]) -> list[Scores]:
    """Scores of every blocked token, the prior taken off.

    Several documents share one softmax; each prior is scaled to the mass that its document received.
    """
    results = []
    for scores, document in zip(raw, documents, strict=True):
        prior = document.cache.prior
        if prior is not None:
            share = scores.sum(dim=1, keepdim=True) / prior.scores.sum(dim=1, keepdim=True).clamp_min(1e-12)
            scores = scores - share * prior.scores
        results.append(scores)
    return _as_arrays(results)


def _as_arrays(scores: Sequence[Tensor]) -> list[Scores]:
    return [each.cpu().double().numpy() for each in scores]


def _by_retriever(
    question: Question,
    documents: Sequence[Document],
    config: ACREConfig,
    budget_tokens: int,
    retriever: Retriever,
) -> Selection:
    """Blocks that cover the retriever's spans; passages widen each span to the passages that it touches."""
    spans = retriever(question.text, documents)
    units = split_units(documents, config.granularity)
    scores = span_scores(spans, units, documents)
    floor = span_floor(spans)
    touched = [(unit, score) for unit, score in rank_units(units, scores) if score > floor]
    if config.granularity == "passages":
        touched = touched[: config.max_passages]
    return within_budget(touched, documents, budget_tokens, "passages", tuple(zip(units, scores.tolist(), strict=True)))
