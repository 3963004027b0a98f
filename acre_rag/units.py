"""What is refilled or left as a whole: passages or single blocks, and their scores; knows no model.

A unit's score is the attention mass of its tokens, or the score of a retriever's span that overlaps it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from acre_rag.blocks import Run
from acre_rag.document import Document
from acre_rag.errors import ConfigError
from acre_rag.retrieve import Span

Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Unit:
    """What is refilled or left as a whole: a passage or a single block of one document.

    Attributes:
        document: its place among the documents asked.
        blocks: blocks that cover it.
        tokens: its own tokens, scored (those of the tail excepted).
        start: its first character.
        stop: one past its last character.
    """

    document: int
    blocks: Run
    tokens: Run
    start: int
    stop: int


def split_units(documents: Sequence[Document], granularity: str) -> list[Unit]:
    """All units of some documents, in order.

    Args:
        documents: the documents.
        granularity: "passages" or "blocks".
    """
    split = _passage_units if granularity == "passages" else _block_units
    return [unit for index, document in enumerate(documents) for unit in split(index, document)]


def _passage_units(index: int, document: Document) -> Iterator[Unit]:
    n_scored = document.cache.n_blocks * document.cache.interval
    for passage in document.passages:
        if passage.blocks:
            tokens = Run(passage.tokens.start, min(passage.tokens.stop, n_scored))
            yield Unit(index, passage.blocks, tokens, passage.start, passage.stop)


def _block_units(index: int, document: Document) -> Iterator[Unit]:
    interval = document.cache.interval
    for block in range(document.cache.n_blocks):
        run = Run(block, block + 1)
        yield Unit(index, run, Run(block * interval, (block + 1) * interval), *document.chars_of_blocks(run))


def unit_sums(tokens: Sequence[Scores], units: Sequence[Unit]) -> Scores:
    """Attention mass of each unit."""
    sums = [np.concatenate([[0.0], np.cumsum(scores)]) for scores in tokens]
    return np.array([sums[u.document][u.tokens.stop] - sums[u.document][u.tokens.start] for u in units])


def rank_units(units: Sequence[Unit], scores: Scores) -> list[tuple[Unit, float]]:
    """Units with their scores, best first."""
    return [(units[i], float(scores[i])) for i in np.argsort(-scores, kind="stable")]


def span_scores(spans: Sequence[Span], units: Sequence[Unit], documents: Sequence[Document]) -> Scores:
    """Best score among the spans that overlap each unit; `span_floor` where none does."""
    known = {document.id: d for d, document in enumerate(documents)}
    scores = np.full(len(units), span_floor(spans))
    by_document: list[list[int]] = [[] for _ in documents]
    for i, unit in enumerate(units):
        by_document[unit.document].append(i)
    for span in spans:
        if span.document not in known:
            raise ConfigError(f"The retriever returned a span of {span.document!r}, which is not among the documents.")
        for i in by_document[known[span.document]]:
            if units[i].start < span.end and span.start < units[i].stop:
                scores[i] = max(scores[i], span.score)
    return scores


def span_floor(spans: Sequence[Span]) -> float:
    """The score of a unit that no span overlaps: just below the lowest span's, whatever the retriever's scale."""
    lowest = min((span.score for span in spans), default=0.0)
    return lowest - abs(lowest) * 1e-6 - 1e-9


def z_scores(scores: Scores) -> Scores:
    """Scores in standard deviations from their mean; zeros where all are equal."""
    if not len(scores) or (spread := scores.std()) == 0:
        return np.zeros_like(scores)
    standard: Scores = (scores - scores.mean()) / spread
    return standard


def n_covered(units: Sequence[Unit]) -> int:
    """How many blocks of one document some units cover together."""
    return len({block for unit in units for block in range(unit.blocks.start, unit.blocks.stop)})


def fill_exactly(units: Sequence[Unit], block_scores: Scores, n_refill: int, granularity: str) -> list[int]:
    """Exactly `n_refill` blocks, best units first (all layers must refill the same number)."""
    if granularity == "blocks":
        return sorted(np.argsort(-block_scores, kind="stable")[:n_refill].tolist())
    sums = np.array([block_scores[u.blocks.start : u.blocks.stop].sum() for u in units])
    chosen: list[int] = []
    for i in np.argsort(-sums, kind="stable"):
        chosen += [b for b in range(units[i].blocks.start, units[i].blocks.stop) if b not in chosen]
        if len(chosen) >= n_refill:
            break
    return sorted(chosen[:n_refill])
