"""Means with bootstrap intervals, and differences paired by question. Numbers in, numbers out; knows no systems."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from acre_rag.errors import MissingExtraError

CONFIDENCE = 0.95
_RESAMPLES = 2000
_SEED = 0


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


def mean_of(values: Sequence[float]) -> Estimate:
    """Mean of values, with the percentile bootstrap over values (Efron 1979; `scipy.stats.bootstrap`).

    Questions about one document are not independent, and are treated as if they were: with few documents the truth is
    wider than the interval.
    """
    return mean_of_means([values])


def mean_of_means(groups: Sequence[Sequence[float]]) -> Estimate:
    """Mean of the groups' means, each group weighing the same; values are drawn anew within each group.

    Args:
        groups: values of each group; none is empty.
    """
    samples = [np.asarray(group, dtype=np.float64) for group in groups]
    mean = float(np.mean([sample.mean() for sample in samples]))
    low, high = _interval(samples)
    return Estimate(mean=mean, low=low, high=high, n=sum(map(len, samples)))


def paired_differences(scores: Mapping[str, float], baseline: Mapping[str, float]) -> list[float]:
    """`scores - baseline` of each question that both have, in the order of `scores`."""
    return [score - baseline[question] for question, score in scores.items() if question in baseline]


def _interval(samples: Sequence[NDArray[np.float64]]) -> tuple[float | None, float | None]:
    if any(len(sample) < 2 for sample in samples):
        return None, None
    try:
        from scipy.stats import bootstrap  # type: ignore[import-untyped]
    except ImportError as error:
        raise MissingExtraError("scipy", "evaluation", "A bootstrap interval") from error
    found = bootstrap(
        samples,
        _mean_of_means,
        n_resamples=_RESAMPLES,
        vectorized=True,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(_SEED),
    ).confidence_interval
    return float(found.low), float(found.high)


def _mean_of_means(*samples: NDArray[np.float64], axis: int = -1) -> Any:
    return np.mean([sample.mean(axis=axis) for sample in samples], axis=0)
