"""Cuts texts into stretches of a wanted length at paragraph bounds, and estimates tokens. Knows no files, no models."""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

from semantic_text_splitter import TextSplitter

from acre_rag.errors import TrainingDataError

CHARS_PER_TOKEN = 4.3
"""English prose under a vocabulary of 50,000 or more."""
_ROOM = 0.75  # of the most: with pieces of a quarter of it, a stretch that is too short has room for one more
_PARAGRAPH_END = re.compile(r"\n[ \t]*\n\s*")


@dataclass(frozen=True)
class Lengths:
    """How long a document may be.

    Attributes:
        min_tokens: least, estimated.
        max_tokens: most, estimated.
        chars_per_token: what the estimate divides by.

    Raises:
        TrainingDataError: absurd, or so narrow that a stretch could not end with a paragraph.
    """

    min_tokens: int
    max_tokens: int
    chars_per_token: float = CHARS_PER_TOKEN

    def __post_init__(self) -> None:
        """Refuse what no text can satisfy."""
        if not 1 <= self.min_tokens <= _ROOM * self.max_tokens or not 0.5 <= self.chars_per_token <= 20:
            raise TrainingDataError(
                f"Lengths of {self.min_tokens} to {self.max_tokens} tokens of {self.chars_per_token} characters leave "
                "no room to end with a paragraph: let the most be a third more than the least, as in 2048..4096."
            )

    @property
    def min_chars(self) -> int:
        """Least characters."""
        return round(self.min_tokens * self.chars_per_token)

    @property
    def max_chars(self) -> int:
        """Most characters."""
        return round(self.max_tokens * self.chars_per_token)

    def draw(self, rng: random.Random) -> int:
        """Characters of one document, each length as likely as any other."""
        return rng.randint(self.min_chars, self.max_chars)

    def tokens(self, n_chars: int) -> int:
        """Estimated tokens of so many characters."""
        return round(n_chars / self.chars_per_token)


def stretches(text: str, lengths: Lengths, rng: random.Random) -> Iterator[str]:
    """Consecutive stretches of a text, each of a length drawn anew, that begin and end with a paragraph.

    A paragraph longer than a quarter of the longest stretch is cut at sentences. What is too short for the least
    length, at the end of a text, is left out.
    """
    spans = _pieces(text, lengths.max_chars)
    first, wanted = 0, lengths.draw(rng)
    for i, (_, stop) in enumerate(spans):
        start = spans[first][0]
        following = spans[i + 1][1] if i + 1 < len(spans) else None
        if stop - start >= lengths.min_chars and (following is None or following - start > wanted):
            yield text[start:stop]
            first, wanted = i + 1, lengths.draw(rng)
        elif following is not None and following - start > lengths.max_chars:
            first = i + 1  # too short as it is, and too long with the next piece: rare, and left out


def paragraphs(text: str) -> list[str]:
    """The paragraphs of a text, without the blank lines between them."""
    return [paragraph for paragraph in _PARAGRAPH_END.split(text.strip()) if paragraph]


def _pieces(text: str, most: int) -> list[tuple[int, int]]:
    """Characters of each paragraph, or of its parts where it is longer than `most` allows."""
    ends = [(end.start(), end.end()) for end in _PARAGRAPH_END.finditer(text)]
    starts = [0, *(end for _, end in ends)]
    stops = [*(start for start, _ in ends), len(text)]
    pieces: list[tuple[int, int]] = []
    for start, stop in zip(starts, stops, strict=True):
        if not text[start:stop].strip():
            continue
        if stop - start <= most // 4:
            pieces.append((start, stop))
            continue
        chunks = TextSplitter(max(1, most // 4)).chunk_indices(text[start:stop])
        pieces += [(start + at, start + at + len(chunk)) for at, chunk in chunks]
    return pieces
