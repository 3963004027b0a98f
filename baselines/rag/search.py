"""What a search over chunks is: texts to an index, a query to hits. Knows no way of searching and no model."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

I = TypeVar("I")  # noqa: E741 (an index)


@dataclass(frozen=True)
class Hit:
    """A chunk that a search returned.

    Attributes:
        document: which of the indexes asked.
        chunk: which of its chunks.
        score: higher is better; comparable between the queries of one search.
    """

    document: int
    chunk: int
    score: float


class Search(ABC, Generic[I]):
    """A way of searching."""

    @abstractmethod
    def index(self, texts: Sequence[str], done: Callable[[int], None]) -> I:
        """Make one document's chunks searchable.

        Args:
            texts: its chunks, in order.
            done: called now and then with how many are done; an exception raised there ends the work.
        """

    @abstractmethod
    def best(self, query: str, indexes: Sequence[I], n_hits: int) -> list[Hit]:
        """The best chunks of all documents together, best first; the earlier one of equals."""

    @property
    def facts(self) -> dict[str, str]:
        """What a result row should say of it."""
        return {}


def best_of(scores: Sequence[NDArray[np.floating]], n_hits: int) -> list[Hit]:
    """The `n_hits` highest of all documents' scores, best first; `scores[d]` is `[chunks of document d]`."""
    hits = [Hit(d, c, float(score)) for d, each in enumerate(scores) for c, score in enumerate(each)]
    return sorted(hits, key=lambda hit: -hit.score)[:n_hits]


def union(found: Iterable[Sequence[Hit]]) -> list[Hit]:
    """Hits of several queries without repetition: all first ones, then all second ones, and so on.

    A chunk that several queries found keeps its best place and its best score.
    """
    lists = list(found)
    scores: dict[tuple[int, int], float] = {}
    for rank in range(max(map(len, lists), default=0)):
        for hit in sorted((hits[rank] for hits in lists if rank < len(hits)), key=lambda hit: -hit.score):
            place = (hit.document, hit.chunk)
            scores[place] = max(scores.get(place, hit.score), hit.score)
    return [Hit(document, chunk, score) for (document, chunk), score in scores.items()]
