"""Which candidates are taken: caps on kinds that would crowd out the rest, then an even sample. Knows no texts.

Candidates are seen twice: the first time each is given a kind, kept as one byte; the second time the wanted number of
each kind is taken, in order, each candidate as likely as the next (selection sampling: Knuth, The Art of Computer
Programming, volume 2, 3.4.2, algorithm S). So memory does not grow with the texts.
"""

import random
from collections.abc import Mapping
from enum import IntEnum

from acre_rag.errors import TrainingDataError


class Kind(IntEnum):
    """What a candidate is."""

    EXCLUDED = 0
    PLAIN = 1
    SHORT = 2
    YES_NO = 3
    TOO_LONG = 4


USABLE = (Kind.PLAIN, Kind.SHORT, Kind.YES_NO)


def quotas(counts: Mapping[Kind, int], *, caps: Mapping[Kind, float], limit: int | None) -> dict[Kind, int]:
    """How many of each usable kind to take: the most that keeps every cap, scaled down to the limit.

    Args:
        counts: candidates of each kind.
        caps: largest share of a kind among all that is taken; a kind without a cap is taken whole.
        limit: most in all; None for no limit.

    Raises:
        TrainingDataError: a cap is no share, or nothing is left under them.
    """
    if wrong := {kind.name: cap for kind, cap in caps.items() if not 0 <= cap <= 1}:
        raise TrainingDataError(f"A share must be from 0 to 1, not {wrong}.")
    if limit is not None and limit < 1:
        raise TrainingDataError(f"limit={limit} must be 1 or more.")
    taken = {kind: counts.get(kind, 0) for kind in USABLE}
    while True:
        total = sum(taken.values())
        fewer = {kind: min(n, int(caps.get(kind, 1.0) * total)) for kind, n in taken.items()}
        if fewer == taken:
            break
        taken = fewer
    total = sum(taken.values())
    if not total:
        had = ", ".join(f"{counts.get(kind, 0)} {kind.name.lower()}" for kind in Kind)
        raise TrainingDataError(f"Nothing is left to train on (candidates: {had}). Give more data, or raise a share.")
    if limit is None or total <= limit:
        return taken
    scaled = {kind: n * limit // total for kind, n in taken.items()}
    largest = max(scaled, key=lambda kind: taken[kind])
    scaled[largest] += limit - sum(scaled.values())
    return scaled


class Selection:
    """Takes the wanted number of each kind from candidates that come one by one.

    Args:
        kinds: a byte a candidate, in the order in which they will come.
        wanted: how many of each kind.
        seed: of the choice.
    """

    def __init__(self, kinds: bytes | bytearray, wanted: Mapping[Kind, int], *, seed: int) -> None:
        self._kinds = kinds
        self._left = {kind: kinds.count(kind) for kind in wanted}
        self._wanted = dict(wanted)
        self._rng = random.Random(f"selection {seed}")

    def takes(self, index: int) -> bool:
        """Whether the candidate of this number is taken; ask once for each, in order.

        Raises:
            TrainingDataError: there were not so many at the first reading.
        """
        if index >= len(self._kinds):
            raise TrainingDataError("A source has changed while it was read. Build again when nothing writes to it.")
        kind = Kind(self._kinds[index])
        if kind not in self._wanted:
            return False
        taken = self._rng.random() * self._left[kind] < self._wanted[kind]
        self._left[kind] -= 1
        self._wanted[kind] -= taken
        return taken
