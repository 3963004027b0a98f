"""Tell a question about the whole document from one that points somewhere; knows scores, no model."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from acre_rag.document import Document
from acre_rag.units import Scores, split_units, unit_sums

_CLEAR_PEAK = 3.0  # standard deviations


def about_the_whole(raw: Sequence[Tensor], documents: Sequence[Document], *, peak: float) -> bool:
    """Whether a question points nowhere in particular, in any document.

    It does when it spreads its attention like one of the content-free questions: no further from the nearest of them
    than they typically are from each other, unless the heads agree on a passage (a peak of several standard
    deviations) and it is not all but one of them. Figures: benchmarks/LOG.md.

    A document of one passage cannot be judged so: whatever is asked, its passage gets all of it. But a question whose
    most attended passage of all is such a one points there, whatever else it would spread over. Where no document has
    more passages, no question counts as one about the whole.
    """
    most_judged = most_alone = 0.0
    for scores, document in zip(raw, documents, strict=True):
        sums, prior = _passage_sums(scores, document), document.cache.prior
        most = float(sums.max(initial=0.0))
        if prior is None or len(sums) < 2:
            most_alone = max(most_alone, most)
            continue
        most_judged = max(most_judged, most)
        apart = np.abs(prior.shares[:, None] - prior.shares[None]).sum(axis=2) + 2 * np.eye(len(prior.shares))
        typical = float(np.median(apart.min(axis=1)))
        nearest = float(np.abs(prior.shares - _shares(sums)).sum(axis=1).min())
        if nearest > typical or (peak > _CLEAR_PEAK and nearest > typical / 2):
            return False
    return most_judged > most_alone


def passage_shares(scores: Tensor, document: Document) -> Scores:
    """How `[n, M * l]` attention spreads over a document's passages; sums to one."""
    return _shares(_passage_sums(scores, document))


def _passage_sums(scores: Tensor, document: Document) -> Scores:
    return unit_sums([scores.cpu().double().sum(dim=0).numpy()], split_units([document], "passages"))


def _shares(sums: Scores) -> Scores:
    shares: Scores = sums / max(float(sums.sum()), 1e-12)
    return shares
