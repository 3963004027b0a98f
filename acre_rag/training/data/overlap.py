"""Does a text share words with an evaluation document, or ask its question? Exact; knows no training.

Texts are compared by their shingles (runs of nine words, in lower case, without punctuation). The share that counts is
of the shorter text's shingles: |A and B| / min(|A|, |B|). Shingles are 64-bit hashes in one sorted array, some twelve
bytes each, so a few million are searched at once with numpy. MinHash sketches would be smaller, but at a threshold of
a few per cent their estimate is mostly noise.
"""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from acre_rag.errors import TrainingDataError
from acre_rag.training.data.record import Record

SHINGLE_WORDS = 9
_WORD = re.compile(r"\w+")
_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd: multiplying by it loses nothing modulo 2^64

Hashes = NDArray[np.uint64]


@dataclass(frozen=True)
class Overlap:
    """Why something must not be trained on: the evaluation document, and the share of shingles; 1 for its question."""

    document: str
    share: float


class Exclusion:
    """Evaluation documents and questions to keep out of training.

    Args:
        records: what must not be trained on.
        threshold: share of the shorter text's shingles from which two texts overlap.

    Raises:
        TrainingDataError: the threshold is no share.
    """

    def __init__(self, records: Iterable[Record], *, threshold: float) -> None:
        if not 0 < threshold <= 1:
            raise TrainingDataError(f"threshold={threshold} must be above 0 and at most 1; 0.08 is usual.")
        self.threshold = threshold
        self.names: list[str] = []
        self.questions: dict[str, str] = {}
        hashes: list[Hashes] = []
        known: dict[bytes, str] = {}  # many questions share one document
        for record in records:
            name = f"{record.source} {record.id}".strip()
            if record.question is not None:
                self.questions.setdefault(_plain(record.question), name)
            digest = hashlib.sha256(record.document.encode("utf-8", "surrogatepass")).digest()
            if digest not in known:
                known[digest] = name
                self.names.append(name)
                hashes.append(shingles(record.document))
        self._sizes = np.array([len(each) for each in hashes], dtype=np.int64)
        owners = np.repeat(np.arange(len(hashes), dtype=np.int32), self._sizes)
        joined = np.concatenate([*hashes, np.empty(0, np.uint64)])
        order = np.argsort(joined, kind="stable")
        self._hashes, self._owners = joined[order], owners[order]

    def of_text(self, text: str) -> Overlap | None:
        """The document that a text shares most with, if that is enough."""
        own = shingles(text)
        if not len(own) or not len(self._hashes):
            return None
        first = np.searchsorted(self._hashes, own, side="left")
        last = np.searchsorted(self._hashes, own, side="right")
        hit = np.flatnonzero(last > first)
        if not len(hit):
            return None
        owners = np.concatenate([self._owners[a:b] for a, b in zip(first[hit], last[hit], strict=True)])
        shared = np.bincount(owners, minlength=len(self._sizes))
        shares = shared / np.minimum(np.maximum(self._sizes, 1), len(own))
        best = int(shares.argmax())
        return Overlap(self.names[best], float(shares[best])) if shares[best] >= self.threshold else None

    def of_question(self, question: str) -> Overlap | None:
        """The document of which the same is asked, whatever its case and punctuation."""
        name = self.questions.get(_plain(question))
        return None if name is None else Overlap(name, 1.0)


def shingles(text: str) -> Hashes:
    """Hash of each different shingle of a text, sorted; none of a text of fewer than nine words."""
    words = np.fromiter((_word_hash(word) for word in _words(text)), dtype=np.uint64)
    n = len(words) - SHINGLE_WORDS + 1
    if n < 1:
        return np.empty(0, np.uint64)
    hashes = np.zeros(n, np.uint64)
    for i in range(SHINGLE_WORDS):
        hashes = hashes * _FACTOR + words[i : i + n]
    return np.unique(hashes)


@lru_cache(maxsize=1 << 18)
def _word_hash(word: str) -> int:
    """The same in every process, as `hash` is not."""
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _plain(question: str) -> str:
    return " ".join(_words(question))
