"""What is too near an evaluation document is found exactly: against sets of word tuples, the slow way."""

import random
import re

import pytest

from acre_rag.errors import TrainingDataError
from acre_rag.training.data.overlap import SHINGLE_WORDS, Exclusion, shingles
from acre_rag.training.data.record import Record


def slow_shingles(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + SHINGLE_WORDS]) for i in range(len(words) - SHINGLE_WORDS + 1)}


def slow_share(text: str, documents: list[str]) -> float:
    own = slow_shingles(text)
    others = [slow_shingles(document) for document in documents]
    return max((len(own & other) / min(len(own), len(other)) for other in others if own and other), default=0.0)


def words(rng: random.Random, n: int, vocabulary: int = 500) -> str:
    return " ".join(f"w{rng.randrange(vocabulary)}" for _ in range(n))


@pytest.mark.parametrize("threshold", [0.01, 0.08, 0.5, 1.0])
def test_overlap_is_that_of_the_slow_way(threshold: float) -> None:
    """Texts with a stretch of an evaluation document of every length in them, long ones and short ones."""
    rng = random.Random(0)
    documents = [words(rng, n) for n in (5, 9, 40, 300, 3000)]
    exclusion = Exclusion((Record(document=d, id=str(i)) for i, d in enumerate(documents)), threshold=threshold)
    decisions = []
    for _ in range(300):
        stolen = rng.choice(documents).split()
        start = rng.randrange(len(stolen))
        taken = " ".join(stolen[start : start + rng.randrange(120)])
        text = f"{words(rng, rng.randrange(200))} {taken.upper()}, {words(rng, rng.randrange(200))}"
        expected = slow_share(text, documents)
        found = exclusion.of_text(text)
        assert (found is not None) == (expected >= threshold)
        if found:
            assert found.share == pytest.approx(expected)
        decisions.append(found is not None)
    assert any(decisions) and not all(decisions)


def test_the_document_that_overlaps_is_named() -> None:
    rng = random.Random(1)
    first, second = words(rng, 100), words(rng, 100)
    exclusion = Exclusion(
        [Record(document=first, source="quiz", id="a"), Record(document=second, source="quiz", id="b")], threshold=0.08
    )
    found = exclusion.of_text(second[50:])
    assert found is not None and found.document == "quiz b" and found.share == 1.0


def test_a_repeated_shingle_counts_once() -> None:
    """A refrain of the text must not add up to an overlap."""
    rng = random.Random(2)
    line = words(rng, 9)
    document = f"{line} {words(rng, 400)}"
    text = " ".join(f"{line} {words(rng, 1)}" for _ in range(20))
    assert slow_share(text, [document]) < 0.02
    assert Exclusion([Record(document=document)], threshold=0.08).of_text(text) is None


def test_questions_are_the_same_whatever_their_case_and_marks() -> None:
    rows = [
        Record(document="", question="Who wrote  'Emma'?", id="q1"),
        Record(document="", question="Where?", id="q2"),
    ]
    exclusion = Exclusion(rows, threshold=0.08)
    assert exclusion.of_question("who wrote Emma") is not None
    assert exclusion.of_question("who wrote Emma, and when?") is None
    assert exclusion.of_text("a b c d e f g h i j k") is None


def test_shingles_are_the_same_in_every_process() -> None:
    """They must not hang on Python's own hash, which differs from run to run."""
    assert shingles("one two three four five six seven eight nine").tolist() == [9999037620314048149]
    assert len(shingles("one two three four five six seven eight")) == 0


@pytest.mark.parametrize("threshold", [0.0, -1.0, 1.5])
def test_a_threshold_that_is_no_share_is_refused(threshold: float) -> None:
    with pytest.raises(TrainingDataError, match="threshold"):
        Exclusion([], threshold=threshold)
