"""Makes a long document around the passage that answers a question, and says where in it the evidence stands.

The passage goes among distractor passages or into a stretch of a book, at a place that is as likely anywhere. Knows no
files and no models.
"""

import random
from collections.abc import Iterable, Iterator

from acre_rag.training.data.example import TrainingExample
from acre_rag.training.data.gold import Span, evidence, holds
from acre_rag.training.data.record import Record
from acre_rag.training.data.stretches import Lengths

_GAP = "\n\n"
_MOST_PASSAGES = 20_000
_MISSES = 20


class Pool:
    """A fair sample of passages to distract with, of bounded size, however many are offered.

    Reservoir sampling (Vitter, 1985, algorithm R). Passages of the same title are near relatives: they distract best.

    Args:
        seed: of the sample.
        longest_chars: longer passages are not taken: they would leave no room for others.
    """

    def __init__(self, *, seed: int, longest_chars: int) -> None:
        self._rng = random.Random(f"pool {seed}")
        self._longest = longest_chars
        self._offered = 0
        self._passages: list[tuple[str, str]] = []  # title, text
        self._last = ""
        self._relatives: dict[str, list[int]] = {}

    def __len__(self) -> int:
        """Passages kept."""
        return len(self._passages)

    def offer(self, record: Record) -> None:
        """Perhaps keep the document of a record."""
        text = record.document.strip()
        if len(text) > self._longest or text == self._last:
            return  # questions about one passage follow one another
        self._last = text
        self._offered += 1
        if len(self._passages) < _MOST_PASSAGES:
            self._passages.append((record.title, text))
        elif (place := self._rng.randrange(self._offered)) < _MOST_PASSAGES:
            self._passages[place] = (record.title, text)

    def seal(self) -> None:
        """All is offered: put relatives together."""
        for i, (title, _) in enumerate(self._passages):
            self._relatives.setdefault(title, []).append(i)

    def draw(self, record: Record, rng: random.Random) -> Iterator[str]:
        """Passages that do not answer a record's question: every other one a relative, while there are any."""
        relatives = list(self._relatives.get(record.title, ())) if record.title else []
        rng.shuffle(relatives)
        seen: set[int] = set()
        misses = 0
        while self._passages and misses < _MISSES:
            i = relatives.pop() if relatives and len(seen) % 2 == 0 else rng.randrange(len(self._passages))
            if i in seen or _gives_away(self._passages[i][1], record):
                misses += 1
                continue
            seen.add(i)
            misses = 0
            yield self._passages[i][1]


def compose_example(
    record: Record, others: Iterable[str], *, lengths: Lengths, rng: random.Random, id: str
) -> TrainingExample | None:
    """A question about a long document.

    Args:
        record: the question, its answers and the passage they are in.
        others: what to put around the passage, in order; as much as fits is taken.
        lengths: of the document.
        rng: draws its length and the place of the passage.
        id: of the example.

    Returns:
        The example, its gold the evidence in the passage, or the whole passage where nothing tells more and it is less
        than half of the document; None when there is not enough to reach the least length.
    """
    passage = record.document.strip()
    pieces, size = _filled(others, len(passage), wanted=lengths.draw(rng), most=lengths.max_chars)
    if size < lengths.min_chars:
        return None
    before = rng.randint(0, len(pieces))
    start = sum(len(piece) + len(_GAP) for piece in pieces[:before])
    document = _GAP.join([*pieces[:before], passage, *pieces[before:]])
    return TrainingExample(
        document=document,
        question=record.question,
        answer=record.answers[0].strip(),
        gold=_gold(record, start, len(document)),
        id=id,
    )


def _filled(others: Iterable[str], size: int, *, wanted: int, most: int) -> tuple[list[str], int]:
    """Pieces that bring a document to the wanted length, and that length."""
    pieces: list[str] = []
    misses = 0
    if size >= wanted:
        return pieces, size
    for piece in others:
        longer = size + len(_GAP) + len(piece)
        if longer > most:
            misses += 1
        else:
            pieces.append(piece)
            size = longer
        if size >= wanted or misses > _MISSES:
            break
    return pieces, size


def _gold(record: Record, start: int, n_chars: int) -> tuple[Span, ...]:
    dropped = len(record.document) - len(record.document.lstrip())
    length = len(record.document.strip())
    found = [(max(0, a - dropped), min(length, b - dropped)) for a, b in evidence(record)]
    if not found and 2 * length < n_chars:
        found = [(0, length)]
    return tuple((start + a, start + b) for a, b in found if a < b)


def _gives_away(passage: str, record: Record) -> bool:
    """Whether a passage is the right one, or holds the answer too."""
    right = record.document
    if passage in right or right.strip() in passage:
        return True
    return not record.yes_or_no and any(holds(passage, answer) for answer in record.answers)
