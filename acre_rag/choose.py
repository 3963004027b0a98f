"""Ranked units to a selection within the budget (Eq. 17): numbers in, blocks out; knows no model and no question."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from acre_rag.blocks import Run
from acre_rag.config import ACREConfig
from acre_rag.document import Document
from acre_rag.errors import CapacityError
from acre_rag.units import Scores, Unit, rank_units


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


def refill_budget(documents: Sequence[Document], *, window: int, reserved_tokens: int, config: ACREConfig) -> int:
    """Eq. 17 in tokens: `min(W - M, eta)`, where `W` also has to hold the prompt, the tails and the answer.

    L1 entries that do not stay in the window while decoding (`l1_context=False`) take nothing from it.

    Args:
        documents: documents asked.
        window: `W`.
        reserved_tokens: question and answer.
        config: gives `eta`.

    Raises:
        CapacityError: nothing is left; states the numbers.
    """
    caches = [document.cache for document in documents]
    n_l1 = sum(cache.n_blocks for cache in caches) if config.l1_context else 0
    fixed = len(caches[0].prefix) + sum(len(cache.tail) for cache in caches)
    room = window - n_l1 - fixed - reserved_tokens
    if room < 0:
        raise CapacityError(
            f"Question and answer ({reserved_tokens:,} tokens), {n_l1:,} L1 entries and {fixed:,} tokens of prompt and "
            f"document ends need {window - room:,} places, more than window={window:,}. Ask a shorter question or "
            "fewer documents, generate fewer tokens, or read with a larger window or interval."
        )
    return min(room, config.budget)


def no_room(documents: Sequence[Document], *, budget_tokens: int, config: ACREConfig) -> tuple[str, ...]:
    """A note where the budget holds no block of any document, though refilling is wanted; else nothing."""
    smallest = min((document.interval for document in documents if document.n_blocks), default=0)
    if not config.budget or budget_tokens >= smallest:
        return ()
    if budget_tokens == config.budget:
        return (f"nothing was refilled: budget={budget_tokens} is less than one block of {smallest} tokens",)
    return (
        f"nothing was refilled: {budget_tokens} tokens of the window are left, less than one block of {smallest}; ask "
        "a shorter question or fewer documents, generate fewer tokens, or read with a larger window or interval",
    )


def best_units(
    units: Sequence[Unit],
    scores: Scores,
    documents: Sequence[Document],
    config: ACREConfig,
    budget_tokens: int,
) -> Selection:
    """Best units first, until the budget (Eq. 17) or the number of passages is reached."""
    ranked = rank_units(units, scores)
    most = config.max_passages if config.granularity == "passages" else len(ranked)
    return within_budget(
        ranked[:most], documents, budget_tokens, "passages", tuple(zip(units, scores.tolist(), strict=True))
    )


def spread_units(
    units: Sequence[Unit],
    scores: Scores,
    documents: Sequence[Document],
    config: ACREConfig,
    budget_tokens: int,
) -> Selection:
    """A question about the whole: the opening (cut short by a small budget), then units spread evenly to the end."""
    fitting = budget_tokens // max(
        (len(unit.blocks) * documents[unit.document].cache.interval for unit in units), default=1
    )
    most = min(len(units), max(1, fitting), config.max_passages if config.granularity == "passages" else len(units))
    places = sorted({round(place) for place in np.linspace(0, len(units) - 1, num=most)}) if units else []
    ranked = [(units[i], float(scores[i])) for i in places]
    return within_budget(ranked, documents, budget_tokens, "document", tuple(zip(units, scores.tolist(), strict=True)))


def within_budget(
    ranked: Sequence[tuple[Unit, float]],
    documents: Sequence[Document],
    budget_tokens: int,
    scope: str,
    unit_scores: tuple[tuple[Unit, float], ...],
) -> Selection:
    """Units in the given order until the budget is used up; the last one may be cut short."""
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
