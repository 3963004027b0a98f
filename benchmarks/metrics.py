"""Scores of answers: token F1 as LongBench computes it (lower case, no punctuation, no articles, best reference)."""

import re
import string
from collections import Counter
from collections.abc import Sequence


def normalised(text: str) -> str:
    """Lower case, without punctuation, articles and extra white space."""
    plain = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", plain).split())


def qa_f1(answer: str, references: Sequence[str]) -> float:
    """Token-multiset F1 against the best reference, 0 to 100."""
    return 100 * max(_f1(normalised(answer).split(), normalised(reference).split()) for reference in references)


def _f1(answer: list[str], reference: list[str]) -> float:
    common = sum((Counter(answer) & Counter(reference)).values())
    if not common:
        return 0.0
    precision, recall = common / len(answer), common / len(reference)
    return 2 * precision * recall / (precision + recall)
