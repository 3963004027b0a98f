"""Question to chosen blocks (Eq. 15-17): four strategies behind one interface; reads no L2 and decodes nothing."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from acre_rag.blocks import Run
from acre_rag.cache import Prior
from acre_rag.config import ACREConfig
from acre_rag.document import Document
from acre_rag.errors import CapacityError, ConfigError
from acre_rag.heads import RetrievalHeads
from acre_rag.models import Decoder
from acre_rag.question import global_view, question_queries
from acre_rag.retrieve import Retriever, bm25_retriever
from acre_rag.scores import head_scores, pooled_scores
from acre_rag.units import Scores, Unit, fill_exactly, rank_units, span_scores, split_units, unit_sums, z_scores

_CLEAR_PEAK = 3.0  # standard deviations


@dataclass(frozen=True)
class Question:
    """A question in the model's tokens.

    Attributes:
        text: the user's words.
        ids: `[T]`, everything after the document.
        own: the user's words in `ids`, without the template's.
    """

    text: str
    ids: Tensor
    own: slice


@dataclass(frozen=True)
class Selection:
    """What a question chose.

    Attributes:
        blocks: per document `[k]` block numbers, ascending; `[L, k]` where each layer chooses for itself.
        units: chosen units with their scores, best first.
        scope: "passages", or "document" for a question about the whole.
        unit_scores: every unit with its score, for heat maps and diagnosis.
    """

    blocks: tuple[NDArray[np.int64], ...]
    units: tuple[tuple[Unit, float], ...]
    scope: str
    unit_scores: tuple[tuple[Unit, float], ...]


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
        if config.select == "paper":
            return self._paper(question, documents, config=config, budget_tokens=budget_tokens)
        units = split_units(documents, config.granularity)
        if config.select == "retriever":
            return _by_retriever(question, documents, config, budget_tokens, retriever)
        raw = self._raw_scores(question, documents)
        tokens = _without_prior(raw, documents)
        scores = self._agreement(tokens, units)
        passages = units if config.granularity == "passages" else split_units(documents, "passages")
        if _about_the_whole(raw, documents, peak=float(self._agreement(tokens, passages).max(initial=0.0))):
            return _spread(units, scores, documents, config, budget_tokens)
        if config.select == "hybrid":
            spans = retriever(question.text, documents)
            scores = (z_scores(scores) + z_scores(span_scores(spans, units, documents))) / 2
        return _top(units, scores, documents, config, budget_tokens)

    def with_prior(self, document: Document, questions: Sequence[Question]) -> Document:
        """The document with its prior: what content-free questions attend to, computed once."""
        if not document.cache.n_blocks:
            return document
        raw = torch.stack([self._raw_scores(question, [document])[0] for question in questions])  # [q, n, M * l]
        shares = np.stack([_passage_shares(each, document) for each in raw])
        return replace(document, cache=replace(document.cache, prior=Prior(raw.mean(dim=0), shares)))

    def _agreement(self, tokens: Sequence[Scores], units: Sequence[Unit]) -> Scores:
        """Weighted mean over heads of each unit's standard score: one loud head does not outvote the others."""
        weights = [head.weight for head, _ in self._rows] or [1.0]
        per_head = [z_scores(unit_sums([each[h] for each in tokens], units)) for h in range(len(weights))]
        return np.average(per_head, axis=0, weights=weights)

    def _queries(self, question: Question, documents: Sequence[Document]) -> Tensor:
        view = global_view([document.cache for document in documents])
        return question_queries(self._decoder, view, question.ids, own=question.own)

    def _raw_scores(self, question: Question, documents: Sequence[Document]) -> list[Tensor]:
        """Attention to every blocked token, `[n, M * l]` float32 for each document, one row per retrieval head."""
        queries = self._queries(question, documents)
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
        per_layer = scores.double().cpu().numpy()  # [L, M]
        units = split_units(documents, config.granularity)
        interval = cache.interval
        n_refill = min(budget_tokens // interval, cache.n_blocks)
        if config.granularity == "passages":
            widest = sum(sorted((len(unit.blocks) for unit in units), reverse=True)[: config.max_passages])
            n_refill = min(n_refill, widest)
        rows = [fill_exactly(units, layer, n_refill, config.granularity) for layer in per_layer]
        blocks = np.array(rows, dtype=np.int64).reshape(len(per_layer), n_refill)
        shared = unit_sums([np.repeat(per_layer.mean(axis=0) / interval, interval)], units)
        counts = np.bincount(blocks.ravel(), minlength=cache.n_blocks) / len(per_layer)
        ranked = [(u, float(s)) for u, s in rank_units(units, shared) if counts[u.blocks.start : u.blocks.stop].any()]
        shown = ranked[: max(1, config.max_passages if config.granularity == "passages" else n_refill)]
        return Selection(
            (blocks,), tuple(shown) if n_refill else (), "passages", tuple(zip(units, shared, strict=True))
        )


def refill_budget(documents: Sequence[Document], *, window: int, reserved_tokens: int, config: ACREConfig) -> int:
    """Eq. 17 in tokens: `min(W - M, eta)`, where `W` also has to hold the prompt, the tails and the answer.

    Args:
        documents: documents asked.
        window: `W`.
        reserved_tokens: question and answer.
        config: gives `eta`.

    Raises:
        CapacityError: nothing is left; states the numbers.
    """
    caches = [document.cache for document in documents]
    n_l1 = sum(cache.n_blocks for cache in caches)
    fixed = len(caches[0].prefix) + sum(len(cache.tail) for cache in caches)
    room = window - n_l1 - fixed - reserved_tokens
    if room < 0:
        raise CapacityError(
            f"Question and answer ({reserved_tokens:,} tokens), {n_l1:,} L1 entries and {fixed:,} tokens of prompt and "
            f"document ends need {window - room:,} places, more than window={window:,}. Ask a shorter question or "
            "fewer documents, generate fewer tokens, or read with a larger window or interval."
        )
    return min(room, config.budget)


def _without_prior(raw: Sequence[Tensor], documents: Sequence[Document]) -> list[Scores]:
    """Scores of every blocked token, the prior taken off.

    Several documents share one softmax; each prior is scaled to the mass that its document received.
    """
    results = []
    for scores, document in zip(raw, documents, strict=True):
        prior = document.cache.prior
        if prior is not None:
            share = scores.sum(dim=1, keepdim=True) / prior.scores.sum(dim=1, keepdim=True).clamp_min(1e-12)
            scores = scores - share * prior.scores
        results.append(scores.double().cpu().numpy())
    return results


def _passage_shares(scores: Tensor, document: Document) -> Scores:
    """How `[n, M * l]` attention spreads over a document's passages; sums to one."""
    sums = unit_sums([scores.double().sum(dim=0).cpu().numpy()], split_units([document], "passages"))
    shares: Scores = sums / max(float(sums.sum()), 1e-12)
    return shares


def _about_the_whole(raw: Sequence[Tensor], documents: Sequence[Document], *, peak: float) -> bool:
    """Whether a question points nowhere in particular, in any document.

    It does when it spreads its attention like one of the content-free questions: no further from the nearest of them
    than they typically are from each other, unless the heads agree on a passage (a peak of several standard
    deviations) and it is not all but one of them. Figures: benchmarks/LOG.md.
    """
    for scores, document in zip(raw, documents, strict=True):
        prior = document.cache.prior
        if prior is None:
            return False
        apart = np.abs(prior.shares[:, None] - prior.shares[None]).sum(axis=2) + 2 * np.eye(len(prior.shares))
        typical = float(np.median(apart.min(axis=1)))
        nearest = float(np.abs(prior.shares - _passage_shares(scores, document)).sum(axis=1).min())
        if nearest > typical or (peak > _CLEAR_PEAK and nearest > typical / 2):
            return False
    return True


def _top(
    units: Sequence[Unit],
    scores: Scores,
    documents: Sequence[Document],
    config: ACREConfig,
    budget_tokens: int,
) -> Selection:
    """Best units first, until the budget (Eq. 17) or the number of passages is reached."""
    ranked = rank_units(units, scores)
    most = config.max_passages if config.granularity == "passages" else len(ranked)
    return _within_budget(
        ranked[:most], documents, budget_tokens, "passages", tuple(zip(units, scores.tolist(), strict=True))
    )


def _within_budget(
    ranked: Sequence[tuple[Unit, float]],
    documents: Sequence[Document],
    budget_tokens: int,
    scope: str,
    unit_scores: tuple[tuple[Unit, float], ...],
) -> Selection:
    chosen: list[set[int]] = [set() for _ in documents]
    used: list[tuple[Unit, float]] = []
    left = budget_tokens
    for unit, score in ranked:
        interval = documents[unit.document].cache.interval
        new = [b for b in range(unit.blocks.start, unit.blocks.stop) if b not in chosen[unit.document]]
        new = new[: left // interval]
        if not new:
            continue
        chosen[unit.document].update(new)
        left -= len(new) * interval
        used.append((replace(unit, blocks=Run(unit.blocks.start, new[-1] + 1)), score))
    blocks = tuple(np.array(sorted(each), dtype=np.int64) for each in chosen)
    return Selection(blocks, tuple(used), scope, unit_scores)


def _spread(
    units: Sequence[Unit],
    scores: Scores,
    documents: Sequence[Document],
    config: ACREConfig,
    budget_tokens: int,
) -> Selection:
    """A question about the whole: the opening, then units spread evenly to the end."""
    fitting = budget_tokens // max(
        (len(unit.blocks) * documents[unit.document].cache.interval for unit in units), default=1
    )
    most = min(len(units), fitting, config.max_passages if config.granularity == "passages" else len(units))
    places = sorted({round(place) for place in np.linspace(0, len(units) - 1, num=most)}) if units else []
    ranked = [(units[i], float(scores[i])) for i in places]
    return _within_budget(ranked, documents, budget_tokens, "document", tuple(zip(units, scores.tolist(), strict=True)))


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
    touched = [(unit, score) for unit, score in rank_units(units, scores) if score > scores.min(initial=0.0)]
    if config.granularity == "passages":
        touched = touched[: config.max_passages]
    return _within_budget(
        touched, documents, budget_tokens, "passages", tuple(zip(units, scores.tolist(), strict=True))
    )
