"""Which passage size and how many prior questions find most, by questions that were measured. Knows no model.

Every variant is compared on the same questions and with as many refilled tokens as the engine's own options take.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from acre_rag.config import ACREConfig
from acre_rag.prompts import WHOLE_DOCUMENT_QUESTIONS
from acre_rag.training.masses import PASSAGE_TOKENS, SIZES, Attended, agreement

N_PRIORS = len(WHOLE_DOCUMENT_QUESTIONS)
_STEPS = {0: None, len(WHOLE_DOCUMENT_QUESTIONS[::4]): 4, N_PRIORS: 1}
_REFILLED = PASSAGE_TOKENS * ACREConfig().max_passages

Hits = NDArray[np.float64]


def choices(asked: Sequence[Attended], heads: Sequence[int]) -> dict[str, Any]:
    """What a heads file says of passage size and prior.

    Args:
        asked: the questions of calibration.
        heads: the chosen heads, as numbers of rows of the masses.

    Returns:
        "by_passage_tokens" and "by_prior_questions": a row a variant, with its recall and its paired difference from
        the engine's own; "passage_tokens", "max_passages" and "prior_questions": the best.
    """
    sizes = {size: _measure(asked, heads, passage_tokens=size) for size in SIZES}
    priors = {n: _measure(asked, heads, prior_step=step) for n, step in _STEPS.items()}
    best_size = _best({size: hits for size, (hits, _) in sizes.items()}, PASSAGE_TOKENS)
    return {
        "by_passage_tokens": [
            {"passage_tokens": size, "max_passages": _most(size), **_row(sizes[size], sizes[PASSAGE_TOKENS])}
            for size in sizes
        ],
        "by_prior_questions": [{"prior_questions": n, **_row(priors[n], priors[N_PRIORS])} for n in priors],
        "passage_tokens": best_size,
        "max_passages": _most(best_size),
        "prior_questions": _best({n: hits for n, (hits, _) in priors.items()}, N_PRIORS),
    }


def _most(passage_tokens: int) -> int:
    """As many passages of this size as refill what the engine's own options refill."""
    return max(1, round(_REFILLED / passage_tokens))


def _measure(
    asked: Sequence[Attended], heads: Sequence[int], *, passage_tokens: int = PASSAGE_TOKENS, prior_step: int | None = 1
) -> tuple[Hits, float]:
    """For each question whether a right passage is among the first, and how many tokens these refill on average."""
    hits, refilled = [], []
    for each in asked:
        mass, gold = each.measured(passage_tokens=passage_tokens, prior_step=prior_step)
        first = np.argsort(-agreement(mass, heads))[: _most(passage_tokens)]
        hits.append(bool(set(first) & set(gold)))
        refilled.append(int(each.refilled[passage_tokens][first].sum()))
    return np.array(hits, dtype=np.float64), float(np.mean(refilled))


def _best(hits: dict[int, Hits], usual: int) -> int:
    """The usual value, unless another finds more by more than one paired standard error."""
    gains = {value: _paired(each, hits[usual]) for value, each in hits.items()}
    better = [value for value, (difference, error) in gains.items() if difference > error]
    return max(better, key=lambda value: gains[value][0], default=usual)


def _row(measured: tuple[Hits, float], usual: tuple[Hits, float]) -> dict[str, float]:
    difference, error = _paired(measured[0], usual[0])
    return {
        "refilled_tokens": round(measured[1]),
        "recall": round(float(measured[0].mean()), 3),
        "difference": round(difference, 3),
        "standard_error": round(error, 3),
    }


def _paired(ours: Hits, theirs: Hits) -> tuple[float, float]:
    """Mean difference over questions, and its standard error."""
    differences = ours - theirs
    return float(differences.mean()), float(differences.std(ddof=1)) / len(differences) ** 0.5
