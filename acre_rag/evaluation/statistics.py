"""Means with bootstrap intervals, and differences paired by question. Numbers in, numbers out; knows no systems."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
ENOUGH_DOCUMENTS = 5
"""From so many on, documents are drawn anew too; an interval over fewer would say nothing."""

_RESAMPLES = 2000
_SEED = 0

Sample = Mapping[str, Sequence[float]]
"""Values of questions by their document; no document is without one."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean with its interval.

    Attributes:
        mean: the mean.
        low: lower end of the 95 % interval; `None` where there are too few values for one.
        high: upper end.
        n: values behind it.
    """

    mean: float
    low: float | None
    high: float | None
    n: int


def mean_of(sample: Sample) -> Estimate:
    """Mean over questions, with the percentile bootstrap (Efron 1979).

    With `ENOUGH_DOCUMENTS`, in two stages: documents are drawn anew, then questions within each (Davison and Hinkley
    1997, section 3.8), since questions about one document are not independent. With fewer only questions are drawn:
    such an interval holds for these documents, and is too narrow for others.
    """
    return mean_of_means([sample])


def mean_of_means(samples: Sequence[Sample]) -> Estimate:
    """Mean of the samples' means, each sample weighing the same; values are drawn anew within each sample.

    Args:
        samples: of each data set; none is empty.
    """
    values = [[value for of in sample.values() for value in of] for sample in samples]
    low, high = _interval(samples) if all(len(each) > 1 for each in values) else (None, None)
    return Estimate(mean=float(np.mean([*map(np.mean, values)])), low=low, high=high, n=sum(map(len, values)))


def paired_differences(scores: Mapping[str, float], baseline: Mapping[str, float]) -> dict[str, float]:
    """`scores - baseline` of each question that both have, in the order of `scores`."""
    return {question: score - baseline[question] for question, score in scores.items() if question in baseline}


def _interval(samples: Sequence[Sample]) -> tuple[float, float]:
    rng = np.random.default_rng(_SEED)
    means = np.mean([_drawn_means(_drawn_together(sample), rng) for sample in samples], axis=0)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def _drawn_together(sample: Sample) -> list[Sequence[float]]:
    """The documents; all of them as one where they are too few to be drawn."""
    if len(sample) >= ENOUGH_DOCUMENTS:
        return list(sample.values())
    return [[value for of in sample.values() for value in of]]


def _drawn_means(documents: Sequence[Sequence[float]], rng: np.random.Generator) -> NDArray[np.float64]:
    """Means `[_RESAMPLES]` of as many documents, each with as many of its values as it has."""
    sizes = np.array([len(each) for each in documents])
    padded = np.zeros((len(documents), sizes.max()))
    for row, each in zip(padded, documents, strict=True):
        row[: len(each)] = each
    total, count = np.zeros(_RESAMPLES), np.zeros(_RESAMPLES)
    for _ in documents:
        chosen = rng.integers(len(documents), size=_RESAMPLES)
        n = sizes[chosen]
        places = rng.integers(n[:, None], size=(_RESAMPLES, padded.shape[1]))
        drawn = padded[chosen[:, None], places]
        total += np.where(np.arange(padded.shape[1]) < n[:, None], drawn, 0).sum(axis=1)
        count += n
    return total / count
