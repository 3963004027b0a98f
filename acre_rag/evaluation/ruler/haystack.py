"""Documents of a wanted length with given sentences hidden in them; knows no task."""

import math
import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from acre_rag.errors import ConfigError


@dataclass(frozen=True)
class Haystack:
    """A text, and where in it the hidden parts stand.

    Attributes:
        text: the whole.
        spans: `(start, stop)` characters of each hidden part, in the order in which they were given.
        tokens: length of the text.
    """

    text: str
    spans: tuple[tuple[int, int], ...]
    tokens: int


def sentences_of(texts: Iterable[str]) -> list[str]:
    """Sentences in order, white space made single; a line that ends a paragraph ends a sentence too."""
    paragraphs = (paragraph for text in texts for paragraph in re.split(r"\n\s*\n", text))
    sentences = (piece for each in paragraphs for piece in re.split(r"(?<=[.!?])\s+", " ".join(each.split())))
    return [sentence for sentence in sentences if sentence]


def spread_depths(n: int, rng: random.Random) -> list[float]:
    """Ascending places of `n` hidden parts, from RULER's 40 evenly spaced ones."""
    return sorted(depth / 39 for depth in rng.sample(range(40), n))


def filled_haystack(
    pieces: Callable[[int], Sequence[str]],
    hidden: Sequence[str],
    depths: Sequence[float],
    *,
    tokenizer: Any,
    tokens: int,
    separator: str,
    label: str = "",
    most: int | None = None,
) -> Haystack:
    """The longest text of at most `tokens` tokens: hidden parts among as many pieces as fit.

    Args:
        pieces: gives the first `n` pieces of hay.
        hidden: parts to hide.
        depths: place of each, 0 (start) to 1 (end).
        tokenizer: of the model that will read it; special tokens are not counted.
        tokens: most tokens of the document; the prompt around it comes on top.
        separator: between parts.
        label: before each part, with `{i}` for its number from 1.
        most: pieces that there are; `None` when they do not end.

    Raises:
        ConfigError: the hidden parts alone are longer, or all the hay leaves a tenth of `tokens` empty.
    """

    def build(n: int) -> Haystack:
        text, spans = _placed(pieces(n), hidden, depths, separator=separator, label=label)
        return Haystack(text, spans, len(tokenizer(text, add_special_tokens=False)["input_ids"]))

    best = empty = build(0)
    if empty.tokens > tokens:
        raise ConfigError(f"tokens={tokens:,} is too few: what is to be hidden has {empty.tokens:,} tokens alone.")
    fits, too_many = 0, math.inf if most is None else most + 1
    n = min(64, too_many - 1)
    # Length is nearly linear in n: each try aims by the rate of the last one, between what fits and what does not.
    while fits < n < too_many:
        tried = build(int(n))
        if tried.tokens > tokens:
            too_many = n
        else:
            best, fits = tried, int(n)
        rate = max(1.0, (tried.tokens - empty.tokens) / n)
        n = min(fits + max(1, (tokens - best.tokens) // rate), too_many - 1)
    if fits == most and best.tokens < 0.9 * tokens:
        raise ConfigError(
            f"There is hay for {best.tokens:,} of {tokens:,} tokens. Pass more texts or pairs, or ask for fewer tokens."
        )
    return best


def _placed(
    pieces: Sequence[str], hidden: Sequence[str], depths: Sequence[float], *, separator: str, label: str
) -> tuple[str, tuple[tuple[int, int], ...]]:
    """All parts in order, joined; a hidden part stands before the piece at its depth."""
    order: list[tuple[float, int, str, int | None]] = [(i, 1, piece, None) for i, piece in enumerate(pieces)]
    order += [
        (round(depth * len(pieces)), 0, part, j) for j, (part, depth) in enumerate(zip(hidden, depths, strict=True))
    ]
    text, spans = [], dict.fromkeys(range(len(hidden)), (0, 0))
    at = 0
    for i, (_, _, part, number) in enumerate(sorted(order, key=lambda each: each[:2]), 1):
        before = (separator if at else "") + label.format(i=i)
        if number is not None:
            spans[number] = (at + len(before), at + len(before) + len(part))
        text.append(before + part)
        at += len(text[-1])
    return "".join(text), tuple(spans.values())
